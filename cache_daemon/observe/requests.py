"""Requests: each has an id, and its end is logged."""

import logging
import time
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cache_daemon.observe.context import REQUEST, TRACEPARENT, request_id

_HEADER: Final = "X-Request-Id"
_PATH: Final = 500  # characters of it that are logged
_READS: Final = ("GET", "HEAD", "OPTIONS")
_log = logging.getLogger("cache_daemon.requests")


class Requests:
    """Wraps an application. Changes of state are logged at info, reads at debug.

    Queries and headers are never logged.
    """

    def __init__(self, app: ASGIApp, name: str) -> None:
        """`name` says which of the daemon's doors it is."""
        self._app = app
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        own = request_id(headers.get(_HEADER, ""))
        REQUEST.set(own)  # for this task: uvicorn makes one per request
        TRACEPARENT.set(headers.get("traceparent", ""))
        started = time.monotonic()
        marked = Marked(send, own)
        try:
            await self._app(scope, receive, marked.send)
        finally:
            level = logging.DEBUG if scope["method"] in _READS else logging.INFO
            _log.log(
                level,
                "request",
                extra={
                    "door": self._name,
                    "method": scope["method"],
                    "path": scope["path"][:_PATH],
                    "status": marked.status,
                    "ms": round((time.monotonic() - started) * 1000, 1),
                },
            )


class Marked:
    """Puts the id into the answer, and sees how it begins; `inner` is what it passes on to."""

    def __init__(self, send: Send, own: str) -> None:
        self.inner = send
        self.status = 0  # nothing was answered
        self._own = own

    async def send(self, message: Message) -> None:
        """Send one message."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[_HEADER] = self._own
        await self.inner(message)
