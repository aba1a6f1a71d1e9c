"""From what a caller asks for to the snapshot it is, with the caller's own rights."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from cache_daemon.api.values import Priority
from cache_daemon.fetch.access import Access
from cache_daemon.fetch.grants import Grants
from cache_daemon.fetch.request import Wanted, resolve
from cache_daemon.observe.spans import span
from cache_daemon.store.store import Store
from modelpack.oci.credentials import Credential
from modelpack.spec.errors import Denied, NotFound, Unauthorized, Unavailable
from modelpack.spec.reference import Reference
from modelpack.spec.registry import Repository

_log = logging.getLogger("cache_daemon.fetch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a caller wants, and on whose behalf. `deadline` is a time, 0 for none."""

    ref: str
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    priority: Priority = Priority.PREFETCH
    namespace: str = ""
    deadline: float = 0.0
    credential: Credential | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Finder:
    """Asks registries, and remembers what they allowed. Thread-safe."""

    store: Store
    access: Access
    grants: Grants

    def find(self, ask: Ask) -> tuple[str, Wanted | None]:
        """Return the key of a model, and what to fetch unless it is known to be here.

        A grant spares the question only where a digest is asked for: what a tag names is the
        registry's to say, as long as it can be reached. Raises as `resolve` does.
        """
        reference = Reference.parse(ask.ref)
        with self.store.counts.watching():
            self.access.policy.check(reference)
        identity = self._identity(ask)
        grant = self.grants.fresh(identity) if reference.digest else None
        if grant is None or not self.store.has(grant.key):
            try:
                wanted = self.resolve(ask)
            except Unavailable:
                grant = self.grants.stale(identity)
                if grant is None or not self.store.has(grant.key):
                    raise
            else:
                return wanted.key, wanted
        return grant.key, None

    def resolve(self, ask: Ask) -> Wanted:
        """Ask the registry. Raises its errors, the artifact's, Refused."""
        with self.store.counts.watching(), span("resolve", reference=ask.ref) as here:
            wanted = self._resolve(ask)
            here.note(digest=str(wanted.artifact.digest), key=wanted.key)
            return wanted

    def _resolve(self, ask: Ask) -> Wanted:
        reference = Reference.parse(ask.ref)
        identity = self._identity(ask)

        def open_(reference: Reference) -> Repository:
            return self.access.repository(reference, ask.credential)

        try:
            wanted = resolve(reference, open_, ask.include, ask.exclude, ask.namespace)
        except (NotFound, Unauthorized, Denied) as error:
            self.grants.forget(identity)
            _log.info("the registry refuses", extra={"reference": ask.ref, "error": str(error)})
            raise
        digest = str(wanted.artifact.digest)
        self.grants.remember(identity, reference.name, digest, wanted.key)
        self.store.check_refused(digest, wanted.name)
        return wanted

    def _identity(self, ask: Ask) -> bytes:
        what = (ask.ref, *(f"+{one}" for one in ask.include), *(f"-{one}" for one in ask.exclude))
        return self.grants.identity(ask.credential, *what)
