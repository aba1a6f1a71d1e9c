"""The process: settings, the store, the API on its sockets, and an end that loses nothing."""

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_settings import CliApp

from cache_daemon.config import Settings, read_token
from cache_daemon.fetch.access import Access, Policy
from cache_daemon.fetch.fetcher import Fetcher
from cache_daemon.fetch.grants import Grants
from cache_daemon.fetch.limit import SourceLimits, Sources
from cache_daemon.fetch.node import Node
from cache_daemon.fetch.queue import Queue
from cache_daemon.serve.app import create
from cache_daemon.serve.listen import Tls, bind, guarded
from cache_daemon.space.room import Limits
from cache_daemon.store.scrub import Scrub
from cache_daemon.store.store import Store
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
        app = create(node, scrub)
        servers = [(_server(app), _unix_socket(settings.socket))]
        if settings.listen:
            outer = guarded(app, token) if token else app
            servers.append((_server(outer, _tls(settings)), bind(settings.listen)))
    except (ModelpackError, OSError, ValueError) as error:
        hint = getattr(error, "hint", "")
        sys.stderr.write(f"modelpack-cache-daemon: {error}\n")
        sys.stderr.write(f"  next: {hint}\n" if hint else "")
        sys.exit(1)
    _log.info("serving socket=%s listen=%s", settings.socket, settings.listen or "-")
    scrub.start()
    try:
        asyncio.run(_serve(servers))
    finally:
        scrub.close()
        settings.socket.unlink(missing_ok=True)
        node.close()


def open_node(settings: Settings) -> Node:
    """Open the store and connect it with the registries; raises BadStore, DiskError."""
    store = Store(settings.root, Limits(settings.keep_free, settings.most))
    policy = Policy(
        tuple(settings.registries), tuple(settings.layouts), tuple(settings.trusted_hosts)
    )
    connect = ConnectSettings(plain_http=settings.plain_http, ca_file=settings.ca_file)
    limits = SourceLimits(
        connections=settings.connections_per_source,
        bytes_per_second=settings.bytes_per_second,
        prefetch_share=settings.prefetch_rate_share,
    )
    fetcher = Fetcher(store, settings.jobs, Sources(limits))
    queue = Queue(fetcher, slots=settings.slots, grace_seconds=settings.grace_seconds)
    _log.info("store opened root=%s models=%d", settings.root, len(store.snapshots()))
    grants = Grants(settings.grant_seconds, settings.max_stale)
    return Node(store, Access(policy, connect), queue, grants)


async def _serve(servers: list[tuple[uvicorn.Server, socket.socket]]) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for server, _ in servers:
            server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await asyncio.gather(*(server.serve([bound]) for server, bound in servers))


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


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return Tls(settings.tls_cert, settings.tls_key, settings.client_ca).context()


class _Server(uvicorn.Server):
    """Signals are ours: there are several servers in this process."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


def _server(app: FastAPI, tls: ssl.SSLContext | None = None) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        log_level="warning",
        loop="asyncio",
        timeout_graceful_shutdown=3,
        timeout_keep_alive=30,
        lifespan="off",
        access_log=False,
    )
    config.load()
    config.ssl = tls
    return _Server(config)


if __name__ == "__main__":
    main()
