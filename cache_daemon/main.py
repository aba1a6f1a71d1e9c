"""The process: settings, the store, the API on its sockets, and an end that loses nothing."""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hmac import compare_digest
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import SecretStr, ValidationError
from pydantic_settings import CliApp
from starlette.types import ASGIApp

from cache_daemon.config import Settings, read_token
from cache_daemon.fetch.access import Access, Policy
from cache_daemon.fetch.admission import algorithms, both, whole_layers
from cache_daemon.fetch.fetcher import Fetcher
from cache_daemon.fetch.grants import Grants
from cache_daemon.fetch.node import Node
from cache_daemon.fetch.queue import Queue
from cache_daemon.mirror.app import Mirror
from cache_daemon.mirror.desk import Desk
from cache_daemon.mirror.shelf import Shelf
from cache_daemon.mirror.upstream import Upstream
from cache_daemon.serve.app import create
from cache_daemon.space.room import Limits
from cache_daemon.store.proof import Prover
from cache_daemon.store.scrub import Scrub
from cache_daemon.store.store import Store
from cache_daemon.store.warm import Warmer
from modelpack.disk.heap import keep_freed_memory
from modelpack.oci.settings import ConnectSettings
from modelpack.spec.errors import ModelpackError

_log = logging.getLogger("cache_daemon")


def main() -> None:
    """Run the daemon until SIGTERM.

    Exit codes: 0, 1 where the store or a socket cannot be used, 2 for settings that make no sense.
    """
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        for one in error.errors():
            where = ".".join(str(part) for part in one["loc"])
            sys.stderr.write(f"modelpack-cache-daemon: {where}: {one['msg']}\n")
        sys.exit(2)
    if settings.print_config:
        sys.stdout.write(settings.model_dump_json(indent=2, exclude={"print_config"}) + "\n")
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    keep_freed_memory()
    try:
        token = read_token(settings.token_file) if settings.token_file else None
        node = open_node(settings)
        scrub = Scrub(node.store, settings.scrub_bytes_per_second, settings.scrub_hours * 3600)
        prover = Prover(node.store, lambda: node.queue.busy)
        mirror = open_mirror(settings, node, prover) if settings.mirror else None
        app = create(node, scrub)
        sockets: list[tuple[ASGIApp, socket.socket]] = [(app, _unix_socket(settings.socket))]
        mirror_socket = _tcp_socket(settings.mirror) if mirror else None
        if settings.listen and token is not None:
            sockets.append((_guarded(app, token), _tcp_socket(settings.listen)))
    except (ModelpackError, OSError, ValueError) as error:
        hint = getattr(error, "hint", "")
        sys.stderr.write(f"modelpack-cache-daemon: {error}\n")
        sys.stderr.write(f"  next: {hint}\n" if hint else "")
        sys.exit(1)
    _log.info(
        "serving socket=%s listen=%s mirror=%s",
        settings.socket, settings.listen or "-", settings.mirror or "-",
    )  # fmt: skip
    node.start()
    prover.start()
    scrub.start()
    beside = _Beside(mirror, mirror_socket) if mirror and mirror_socket else None
    try:
        asyncio.run(_serve(sockets))
    finally:
        if beside:
            beside.close()
        scrub.close()
        prover.close()
        settings.socket.unlink(missing_ok=True)
        node.close()


def open_node(settings: Settings) -> Node:
    """Open the store and connect it with the registries; raises BadStore, DiskError."""
    limits = Limits(
        settings.keep_free,
        settings.most,
        prefetch_share=settings.prefetch_share,
        namespaces=settings.namespace_bytes,
    )
    store = Store(settings.root, limits)
    policy = Policy(tuple(settings.registries), tuple(settings.layouts))
    connect = connect_settings(settings)
    rules = [algorithms(settings.chunk_digests)]
    if settings.layer_check == "before":
        rules.append(whole_layers(store))
    fetcher = Fetcher(store, settings.jobs, both(*rules))
    queue = Queue(fetcher, slots=settings.slots, grace_seconds=settings.grace_seconds)
    _log.info("store opened root=%s models=%d", settings.root, len(store.snapshots()))
    grants = Grants(settings.grant_seconds, settings.max_stale)
    warmer = Warmer(store, settings.warm_keep_free)
    return Node(store, Access(policy, connect), queue, grants, warmer)


def connect_settings(settings: Settings) -> ConnectSettings:
    """Return how registries are talked to, without anybody's credentials."""
    return ConnectSettings(plain_http=settings.plain_http, ca_file=settings.ca_file)


def open_mirror(settings: Settings, node: Node, prover: Prover) -> Mirror:
    """Build the registry mirror."""
    upstream = Upstream(connect_settings(settings))
    return Mirror(Desk(node, Shelf(node.store, prover), upstream), settings.mirror_for)


class _Beside:
    """The mirror, on a thread and loop of its own: sendfile waits for cold disks."""

    def __init__(self, mirror: Mirror, bound: socket.socket) -> None:
        self._mirror = mirror
        self._server = _server(mirror)
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._server.serve([bound]),), daemon=True, name="mirror"
        )
        self._thread.start()

    def close(self) -> None:
        """Let answers end, for a moment."""
        self._server.end()
        self._thread.join(5)
        self._mirror.close()


async def _serve(sockets: list[tuple[ASGIApp, socket.socket]]) -> None:
    servers = [_server(app) for app, _ in sockets]
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for server in servers:
            server.end()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await asyncio.gather(
        *(server.serve([bound]) for server, (_, bound) in zip(servers, sockets, strict=True))
    )


def _unix_socket(path: Path) -> socket.socket:
    """Bind with its final mode: nobody may connect in between."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX)
    before = os.umask(0o117)
    try:
        bound.bind(str(path))
    finally:
        os.umask(before)
    return bound


def _tcp_socket(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host.strip("[]"), int(port)), family=family)


class _Server(uvicorn.Server):
    """One of several in this process: signals are ours. Does nothing when there is nothing to do.

    uvicorn looks ten times a second whether it shall end; this one waits to be told.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ending: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        """Wait for `end`."""
        self._ending, self._loop = asyncio.Event(), asyncio.get_running_loop()
        if not await self.on_tick(0):
            await self._ending.wait()

    def end(self) -> None:
        """Stop soon; from any thread."""
        self.should_exit = True
        if self._loop is not None and self._ending is not None:
            self._loop.call_soon_threadsafe(self._ending.set)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


def _server(app: ASGIApp) -> _Server:
    config = uvicorn.Config(
        app,
        log_level="warning",
        http="httptools",
        loop="asyncio",
        timeout_graceful_shutdown=3,
        timeout_keep_alive=30,
        lifespan="off",
        access_log=False,
        date_header=False,  # nobody caches by it, and it would have to be renewed every second
    )
    return _Server(config)


def _guarded(app: FastAPI, token: SecretStr) -> FastAPI:
    """Wrap the application for TCP: everything but liveness needs the token."""
    outer = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    expected = f"Bearer {token.get_secret_value()}"

    @outer.middleware("http")
    async def check(request: Request, call_next):  # type: ignore[no-untyped-def]  # noqa: ANN202, ANN001
        given = request.headers.get("Authorization", "")
        if request.url.path != "/v1/live" and not compare_digest(given.encode(), expected.encode()):
            return Response("a token is needed\n", 401, {"WWW-Authenticate": "Bearer"})
        return await call_next(request)

    outer.mount("", app)
    return outer


if __name__ == "__main__":
    main()
