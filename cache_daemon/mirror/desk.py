"""What to answer a runtime with: from here, while it arrives, or straight from the registry."""

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from urllib3.response import BaseHTTPResponse

from cache_daemon.api.values import Priority
from cache_daemon.fetch.job import Job
from cache_daemon.fetch.node import Ask, Node
from cache_daemon.mirror.asked import Asked
from cache_daemon.mirror.rights import Rights
from cache_daemon.mirror.shelf import Found, Shelf
from cache_daemon.mirror.upstream import Answer, Upstream
from cache_daemon.store.layers import Layer, indexed_layers
from modelpack.oci.credentials import Credential
from modelpack.spec import names
from modelpack.spec.digest import Digest
from modelpack.spec.errors import ModelpackError, RegistryError
from modelpack.spec.manifest import Manifest, decode

_REMEMBERED: Final = 20_000  # blobs and tags that manifests named
_MODELS: Final = 1_000
_PROOF_SECONDS: Final = 10.0
_FAILED_SECONDS: Final = 60.0  # after a failure the registry itself is asked for so long
_START_SECONDS: Final = 10.0
_log = logging.getLogger("cache_daemon.mirror")
NOT_HERE: Final = Answer(404, {})
NOT_NOW: Final = Answer(503, {"Retry-After": "5"})


@dataclass(frozen=True, slots=True)
class Following:
    """A layer whose bytes are on their way to this node; `waiter` leaves the job again."""

    job: Job
    waiter: int
    layer: Layer


@dataclass(frozen=True, slots=True)
class Relayed:
    """A blob that comes from the registry and is not kept; close the response."""

    answer: Answer
    response: BaseHTTPResponse


Reply = Answer | Found | Following | Relayed


class Desk:
    """Decides; blocking, and thread-safe. Never raises for what the other side does."""

    def __init__(self, node: Node, shelf: Shelf, upstream: Upstream) -> None:
        self._node = node
        self._shelf = shelf
        self._upstream = upstream
        self._rights = Rights(node.grants, upstream)
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._keys: dict[str, str] = {}  # of the snapshots that were fetched for somebody

    def manifest(self, asked: Asked, method: str, authorization: str) -> Answer:
        """Answer for a manifest: the registry's own, or the one we have by a right that holds."""
        here = self._shelf.manifest(asked) if asked.by_digest else None
        if here and self._rights.fresh(asked, authorization):
            return _manifest(here, asked.target)
        try:
            answer = self._upstream.manifest(asked, method, authorization)
        except RegistryError as error:
            _away(asked, error)
            return self._without_registry(asked, authorization)
        if answer.status != 200:
            return _refusal(answer)
        if method == "HEAD":
            self._remember_tag(asked, authorization, answer)
            return answer
        digest = str(Digest.of(answer.body))
        if asked.by_digest and digest != asked.target:
            return NOT_HERE
        self._remember(asked, authorization, digest, answer.body)
        return answer

    def blob(self, asked: Asked, method: str, authorization: str, range_: str) -> Reply:
        """Answer for a blob."""
        try:
            refused = self._rights.refusal(asked, authorization)
        except RegistryError as error:
            _away(asked, error)
            return NOT_NOW
        if refused is not None:
            return _refusal(refused)
        try:
            found: Reply | None = self._shelf.blob(asked, _PROOF_SECONDS)
            if found is None and method == "GET":
                # It may have arrived while we looked: look again.
                found = self._follow(asked, authorization) or self._shelf.blob(
                    asked, _PROOF_SECONDS
                )
        except (ModelpackError, OSError):
            found = None  # not by us, then: no room, no rights, an artifact that is not right
        return found or self._relay(asked, method, authorization, range_)

    def leave(self, following: Following) -> None:
        """The runtime has what it wanted, or has hung up."""
        self._node.queue.leave(following.job, following.waiter)

    def _follow(self, asked: Asked, authorization: str) -> Following | None:
        """Fetch the model that a blob belongs to, for keeping, and read along."""
        manifest = self._known_as(asked.name, asked.target)
        if not manifest:
            return None
        joined = self._join(f"{asked.name}@{manifest}", authorization)
        if joined is None:
            return None
        job, waiter = joined
        following = None
        try:
            model = job.wait_for_bytes(_START_SECONDS)
            index = job.wanted.artifact.index
            if model is not None and index is not None:
                for layer in indexed_layers(index, model.has_file):
                    if layer.digest == asked.target:
                        following = Following(job, waiter, layer)
        finally:
            if following is None:
                self._node.queue.leave(job, waiter)
        return following

    def _join(self, reference: str, authorization: str) -> tuple[Job, int] | None:
        """Join the fetch of a model, or begin it; the caller may read it, or a blob of it."""
        under_way = self._node.queue.job(self._keys.get(reference, ""))
        if under_way is not None and under_way.disappointed(_FAILED_SECONDS):
            return None  # a runtime that is promised bytes and gets none too often gives up
        if under_way is not None and not under_way.over:
            return self._node.queue.submit(under_way.wanted, Priority.POD)
        token = authorization.removeprefix("Bearer ")
        credential = Credential(registry_token=token) if token else None
        joined = self._node.join(Ask(ref=reference, priority=Priority.POD, credential=credential))
        if joined is not None:
            if len(self._keys) > _MODELS:
                self._keys.clear()
            self._keys[reference] = joined[0].wanted.key
        return joined

    def _relay(self, asked: Asked, method: str, authorization: str, range_: str) -> Reply:
        try:
            if method == "HEAD":
                answer = self._upstream.blob_exists(asked, authorization)
                return answer if answer.allowed else _refusal(answer)
            answer, response = self._upstream.blob(asked, authorization, range_)
        except RegistryError as error:
            _away(asked, error)
            return NOT_NOW
        if answer.allowed or answer.status == 416:
            return Relayed(answer, response)
        response.close()
        return _refusal(answer)

    def _without_registry(self, asked: Asked, authorization: str) -> Answer:
        """Answer from what is here, for whom the registry allowed it lately."""
        if not self._rights.stale(asked, authorization):
            return NOT_NOW
        digest = asked.target if asked.by_digest else self._known_as(asked.name, asked.target)
        if not digest:
            return NOT_NOW
        here = self._shelf.manifest(Asked(asked.registry, asked.repository, asked.kind, digest))
        return _manifest(here, digest) if here else NOT_NOW

    def _remember(self, asked: Asked, authorization: str, digest: str, data: bytes) -> None:
        try:
            manifest = decode(data, asked.name)
        except ModelpackError:
            return
        named = [asked.target, digest]
        followed = []
        if isinstance(manifest, Manifest):
            named += [one.digest for one in (manifest.config, *manifest.layers)]
            roles = [(one.annotations or {}).get(names.ROLE) for one in manifest.layers]
            if names.ROLE_INDEX in roles:
                followed = [
                    one.digest
                    for one, role in zip(manifest.layers, roles, strict=True)
                    if role != names.ROLE_INDEX
                ]
        self._rights.allow(asked, authorization, named)
        with self._lock:
            for target in (asked.target, *followed):
                self._known[asked.name, target] = digest
                self._known.move_to_end((asked.name, target))
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)

    def _remember_tag(self, asked: Asked, authorization: str, answer: Answer) -> None:
        digest = answer.headers.get("Docker-Content-Digest", "")
        self._rights.allow(asked, authorization, [asked.target])
        if not asked.by_digest and digest.startswith("sha256:"):
            with self._lock:
                self._known[asked.name, asked.target] = digest

    def _known_as(self, name: str, target: str) -> str:
        with self._lock:
            return self._known.get((name, target), "")


def _away(asked: Asked, error: RegistryError) -> None:
    reference = f"{asked.name}{'@' if asked.by_digest else ':'}{asked.target}"
    _log.warning(
        "the registry cannot be asked", extra={"reference": reference, "error": str(error)}
    )


def _manifest(here: tuple[str, bytes], digest: str) -> Answer:
    media_type, data = here
    headers = {"Content-Type": media_type, "Docker-Content-Digest": digest}
    return Answer(200, {**headers, "Content-Length": str(len(data))}, data)


def _refusal(answer: Answer) -> Answer:
    """Return what makes a runtime do the right thing: log in, or go to the registry itself."""
    if answer.status == 401 and "WWW-Authenticate" in answer.headers:
        return Answer(401, {"WWW-Authenticate": answer.headers["WWW-Authenticate"]})
    return NOT_HERE
