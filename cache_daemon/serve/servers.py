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
    """A server on a thread and event loop of its own."""

    def __init__(self, server: Server, ended: Callable[[], None]) -> None:
        """`ended` is called when the last answer is given."""
        self._server = server
        self._ended = ended
        self._thread = threading.Thread(
            target=asyncio.run, args=(server.run_here(),), daemon=True, name="mirror"
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Let answers end, for a moment."""
        self._server.end()
        if self._thread.is_alive():
            self._thread.join(5)
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
