"""uvicorn as this daemon needs it: several servers in one process, on sockets that are bound."""

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp


class Server(uvicorn.Server):
    """One of several in this process: signals are ours. Does nothing when there is nothing to do.

    uvicorn looks ten times a second whether it shall end; this one waits to be told.
    """

    on_started: Callable[[], object] = staticmethod(lambda: None)

    def __init__(
        self, app: ASGIApp, bound: socket.socket, tls: ssl.SSLContext | None = None
    ) -> None:
        """`app` answers on the socket."""
        config = uvicorn.Config(
            app,
            log_config=None,  # ours
            http="httptools",
            loop="asyncio",
            timeout_graceful_shutdown=3,
            timeout_keep_alive=30,
            lifespan="off",
            access_log=False,
            date_header=False,  # nobody caches by it, and it would have to be renewed every second
        )
        config.load()
        config.ssl = tls
        super().__init__(config)
        self._bound = bound
        self._ending: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run_here(self) -> None:
        """Answer until `end`."""
        await self.serve([self._bound])

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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self.on_started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


class Beside:
    """An application on threads and event loops of its own: a cold disk stops one of them only.

    sendfile does not hold the interpreter's lock, so several of them send at the same time.
    """

    def __init__(
        self, app: ASGIApp, bound: socket.socket, ended: Callable[[], None], threads: int
    ) -> None:
        """All threads accept from one socket; `ended` is called when the last answer is given."""
        self._servers = [Server(app, bound.dup()) for _ in range(threads)]
        bound.close()
        self._ended = ended
        self._threads = [
            threading.Thread(
                target=asyncio.run, args=(server.run_here(),), daemon=True, name="mirror"
            )
            for server in self._servers
        ]

    def start(self) -> None:
        """Begin to answer."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Let answers end, for a moment."""
        for server in self._servers:
            server.end()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(5)
        self._ended()


def unix_socket(path: Path) -> socket.socket:
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
