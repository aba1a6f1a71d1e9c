"""`/v2/` of the OCI distribution specification, read-only, as an ASGI application.

Bytes of files go out by sendfile; whatever may block runs on threads of its own, so that one slow
registry stops nobody.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Final, TypeVar
from urllib.parse import parse_qs, unquote

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from cache_daemon.mirror.asked import Asked, parse
from cache_daemon.mirror.body import SpanSender, arriving, from_disk, send_layer
from cache_daemon.mirror.desk import NOT_HERE, Desk, Relayed
from cache_daemon.mirror.sending import abort, answer_with, hung_up, start
from cache_daemon.mirror.shelf import Found
from cache_daemon.mirror.upstream import Answer
from cache_daemon.observe.counts import Counts
from cache_daemon.store.layers import Span

Result = TypeVar("Result")
_HERE: Final = Answer(200, {"Content-Type": "application/json"}, b"{}")
_RELAY_SLICE: Final = 256 << 10
_log = logging.getLogger("cache_daemon.mirror")


class Mirror:
    """The application. `counts` has the answers to GET of blobs by where the bytes came from."""

    def __init__(
        self, desk: Desk, mirrored: Sequence[str], counts: Counts, *, threads: int = 64
    ) -> None:
        self._desk = desk
        self._counts = counts
        self._mirrored = mirrored
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="mirror")

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        del receive  # nothing that we answer has a body
        method, path = scope["method"], unquote(scope["path"])
        if method not in ("GET", "HEAD"):
            await answer_with(send, method, Answer(405, {"Allow": "GET, HEAD"}))
        elif path in ("/v2", "/v2/"):
            await answer_with(send, method, _HERE)
        else:
            namespace = parse_qs(scope["query_string"].decode("latin-1")).get("ns", [""])[0]
            asked = parse(path, namespace, self._mirrored)
            authorization = Headers(scope=scope).get("authorization", "")
            if asked is None or (authorization and not authorization.startswith("Bearer ")):
                await answer_with(send, method, NOT_HERE)
            elif asked.kind == "manifests":
                answer = await self._blocking(self._desk.manifest, asked, method, authorization)
                await answer_with(send, method, answer)
            else:
                range_ = Headers(scope=scope).get("range", "")
                await self._blob(send, asked, method, authorization, range_)

    async def _blob(
        self, send: Send, asked: Asked, method: str, authorization: str, range_: str
    ) -> None:
        reply = await self._blocking(self._desk.blob, asked, method, authorization, range_)
        if isinstance(reply, Answer):
            await answer_with(send, method, reply)
        elif isinstance(reply, Relayed):
            self._counts.mirror_answers.add("registry")
            await self._relay(send, reply)
        elif isinstance(reply, Found):
            self._counts.mirror_answers.add("disk", int(method == "GET"))
            spans = self._counted("disk", from_disk(send, reply.paths))
            await send_layer(send, reply.layer, method, range_, spans)
        else:
            self._counts.mirror_answers.add("arriving")
            spans = self._counted("arriving", arriving(send, reply.job))
            try:
                await send_layer(send, reply.layer, method, range_, spans)
            finally:
                await self._blocking(self._desk.leave, reply)

    def _counted(self, source: str, spans: SpanSender) -> SpanSender:
        """Count the bytes of files that were sent."""

        async def span(one: Span) -> None:
            await spans(one)
            self._counts.mirror_bytes.add(source, one.length)

        return span

    async def _relay(self, send: Send, relayed: Relayed) -> None:
        response = relayed.response
        try:
            await start(send, relayed.answer.status, relayed.answer.headers)
            while data := await self._blocking(response.read, _RELAY_SLICE):
                if hung_up(send):
                    return
                await send({"type": "http.response.body", "body": data, "more_body": True})
                self._counts.mirror_bytes.add("registry", len(data))
            await send({"type": "http.response.body"})
        except Exception as error:  # noqa: BLE001  # whatever stopped it, the runtime must see a cut
            _log.info("relay cut off", extra={"error": str(error)})
            await abort(send)
        finally:
            await self._blocking(response.close)

    async def _blocking(self, do: Callable[..., Result], *arguments: object) -> Result:
        mine = copy_context()
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, mine.run, do, *arguments
        )
