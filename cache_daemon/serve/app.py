"""The control API, version 1. Handlers are plain functions: FastAPI runs them on threads."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated

from fastapi import FastAPI, Path, Response
from fastapi.responses import StreamingResponse

from cache_daemon.api.errors import Draining
from cache_daemon.api.values import KEY_LENGTH, Lease, Priority, State
from cache_daemon.fetch.node import Model, Node
from cache_daemon.serve import problems
from cache_daemon.serve.bodies import EnsureBody, LeaseBody, PinBody, RevokeBody, WarmBody
from cache_daemon.serve.metrics import Metrics
from cache_daemon.space.room import Disk
from cache_daemon.store.scrub import Scrub
from cache_daemon.store.warm import Warmed

_log = logging.getLogger("cache_daemon.serve")
_Key = Annotated[str, Path(pattern=rf"^[0-9a-f]{{{KEY_LENGTH}}}$")]
# The name of a file: no separators, no leading dot.
_LeaseId = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]
_PROBLEMS = {
    code: {"description": words, "content": {"application/problem+json": {}}}
    for code, words in {
        400: "the request cannot be used", 403: "the registry, or the operator, refuses",
        404: "no such model, lease or artifact", 405: "this path has other methods",
        409: "held by somebody",
        422: "the artifact or the request is not valid", 502: "the registry answers nonsense",
        503: "not now: unreachable, or draining", 507: "does not fit",
    }.items()
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Removed:
    """Bytes that a removal made free."""

    bytes_freed: int


@dataclass(frozen=True, slots=True)
class Revoked:
    """How many grants were forgotten."""

    grants: int


@dataclass(frozen=True, slots=True)
class Collection:
    """What a collection removed."""

    snapshots: list[str]
    bytes_freed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The cache in numbers; bytes."""

    models: int
    bytes_used: int
    bytes_free: int
    bytes_total: int
    leases: int
    pins: int
    fetching: int
    queued: int
    draining: bool
    paused: bool
    bytes_held: int
    bytes_capacity: int
    mirror_answers: dict[str, int]
    mirror_bytes: dict[str, int]


def create(node: Node, scrub: Scrub) -> FastAPI:
    """Build the application around a node."""
    app = FastAPI(
        title="modelpack cache daemon",
        version="1",
        description="One verified copy of every model per node.",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        responses=_PROBLEMS,  # type: ignore[arg-type]  # narrower than FastAPI's own type
    )
    problems.install(app)
    metrics = Metrics(node, scrub)
    _models(app, node)
    _leases(app, node)
    _operations(app, node)
    _brakes(app, node)

    @app.get("/metrics", include_in_schema=False)
    def metrics_text() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    return app


def _models(app: FastAPI, node: Node) -> None:
    @app.post("/v1/models", status_code=202)
    def ensure(body: EnsureBody) -> Model:
        """See to it that a model comes to the node; returns at once."""
        ask = replace(body.ask(body.priority), deadline=body.deadline)
        return node.ensure(ask, pin=body.pin, until=body.until)

    @app.get("/v1/models")
    def list_models() -> list[Model]:
        """List all models, those on their way first."""
        return node.models()

    @app.get("/v1/models/{key}")
    def show(key: _Key) -> Model:
        """Show one model."""
        return node.model(key)

    @app.get("/v1/models/{key}/events", response_class=StreamingResponse)
    def watch(key: _Key) -> StreamingResponse:
        """Follow a model (server-sent events), until it is here or will not come."""
        node.model(key)  # an unknown key is a 404, not an empty stream
        return StreamingResponse(_events(node, key), media_type="text/event-stream")

    @app.delete("/v1/models/{key}")
    def remove(key: _Key) -> Removed:
        """Remove a model, or cancel its fetch."""
        return Removed(node.remove(key))

    @app.post("/v1/models/{key}/warm")
    def warm(key: _Key, body: WarmBody) -> Warmed:
        """Read a model into the page cache, as far as memory allows; asked again, it goes on."""
        return node.warm(key, body.seconds)

    @app.put("/v1/models/{key}/pin", status_code=204)
    def pin(key: _Key, body: PinBody) -> None:
        """Keep a model whatever happens."""
        node.pin(key, until=body.until, reason=body.reason)

    @app.delete("/v1/models/{key}/pin", status_code=204)
    def unpin(key: _Key) -> None:
        """Stop keeping a model."""
        node.unpin(key)


def _leases(app: FastAPI, node: Node) -> None:
    @app.put("/v1/leases/{lease}", response_model=Lease | Model)
    def lease(lease: _LeaseId, body: LeaseBody, response: Response) -> Lease | Model:
        """Hold a model: 200 and the lease, or 202 and the model while it is on its way.

        With `warm` it is also read into the page cache, as far as time and memory allow.
        """
        started = time.monotonic()
        found = node.lease(lease, body.ask(Priority.POD), body.owner.value(), body.seconds)
        if isinstance(found, Model):
            response.status_code = 202
        elif body.warm:
            node.warm(found.key, max(0.0, body.seconds - (time.monotonic() - started)))
        return found

    @app.get("/v1/leases")
    def list_leases() -> list[Lease]:
        """List all leases."""
        return node.store.leases()

    @app.delete("/v1/leases/{lease}", status_code=204)
    def release(lease: _LeaseId) -> None:
        """Let go."""
        node.store.release(lease)


def _operations(app: FastAPI, node: Node) -> None:
    @app.post("/v1/gc")
    def collect() -> Collection:
        """Remove what nothing needs: files without a snapshot, staging areas given up."""
        done = node.store.collect()
        return Collection(done.snapshots, done.bytes_freed)

    @app.post("/v1/revoke")
    def revoke(body: RevokeBody) -> Revoked:
        """Forget who was allowed what: everybody's grants, or those for one repository."""
        gone = node.grants.revoke(body.repository)
        _log.info("grants revoked", extra={"repository": body.repository or "all", "grants": gone})
        return Revoked(gone)

    @app.get("/v1/stats")
    def stats() -> Stats:
        """The cache in numbers."""
        return statistics(node, node.store.disk())

    @app.get("/v1/live")
    def live() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "live"}

    @app.get("/v1/ready")
    def ready() -> dict[str, str]:
        """Whether new models can come: the disk takes them, and the node is not being drained."""
        node.store.check_writable()
        if node.queue.draining:
            raise Draining("this node is being drained", hint="POST /v1/drain was called")
        return {"status": "ready"}


def _brakes(app: FastAPI, node: Node) -> None:
    @app.post("/v1/drain", status_code=204)
    def drain() -> None:
        """Take nothing new; what is under way ends."""
        node.queue.drain()

    @app.delete("/v1/drain", status_code=204)
    def undrain() -> None:
        """Take new fetches again."""
        node.queue.drain(on=False)

    @app.post("/v1/pause", status_code=204)
    def pause() -> None:
        """Begin no more fetches for now; those under way go on, new ones wait."""
        node.queue.pause()

    @app.delete("/v1/pause", status_code=204)
    def resume() -> None:
        """Begin fetches again."""
        node.queue.pause(on=False)


def statistics(node: Node, disk: Disk) -> Stats:
    """Return the cache in numbers."""
    states = [job.state for job in node.queue.jobs()]
    return Stats(
        models=len(node.store.snapshots()),
        bytes_used=node.store.used(),
        bytes_free=disk.free,
        bytes_total=disk.total,
        leases=len(node.store.leases()),
        pins=len(node.store.pins()),
        fetching=states.count(State.FETCHING),
        queued=states.count(State.QUEUED),
        draining=node.queue.draining,
        paused=node.queue.paused,
        bytes_held=node.store.held(),
        bytes_capacity=node.store.capacity(),
        mirror_answers=node.store.counts.mirror_answers.read(),
        mirror_bytes=node.store.counts.mirror_bytes.read(),
    )


def _events(node: Node, key: str) -> Iterator[str]:
    for model in node.watch(key):
        yield f"event: model\ndata: {json.dumps(asdict(model))}\n\n"
