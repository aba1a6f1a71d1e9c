"""The bytes of a layer, put together from files that are here or that are arriving."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from starlette.types import Send

from cache_daemon.api.values import State
from cache_daemon.fetch.job import Job
from cache_daemon.mirror.asked import byte_range
from cache_daemon.mirror.sending import abort, answer_with, hung_up, send_file, start
from cache_daemon.mirror.upstream import Answer
from cache_daemon.store.layers import Layer, Literal, Span

_POLL_SECONDS: Final = 0.02  # how often it is looked whether more bytes have arrived
_PATIENCE_SECONDS: Final = 20.0  # then the runtime shall go on at the registry itself
_log = logging.getLogger("cache_daemon.mirror")
SpanSender = Callable[[Span], Awaitable[None]]


async def send_layer(send: Send, layer: Layer, method: str, range_: str, spans: SpanSender) -> None:
    """Answer with a layer or a range of it; cuts the connection where the bytes do not come."""
    headers = {
        "Content-Type": "application/octet-stream",
        "Docker-Content-Digest": layer.digest,
        "Accept-Ranges": "bytes",
    }
    try:
        chosen = byte_range(range_, layer.size)
    except ValueError:
        headers["Content-Range"] = f"bytes */{layer.size}"
        await answer_with(send, method, Answer(416, headers))
        return
    offset, length = chosen or (0, layer.size)
    headers["Content-Length"] = str(length)
    if chosen:
        headers["Content-Range"] = f"bytes {offset}-{offset + length - 1}/{layer.size}"
    await start(send, 206 if chosen else 200, headers)
    if method == "HEAD":
        await send({"type": "http.response.body"})
        return
    try:
        for segment in layer.cut(offset, length):
            if isinstance(segment, Literal):
                await send({"type": "http.response.body", "body": segment.data, "more_body": True})
            else:
                await spans(segment)
        await send({"type": "http.response.body"})
    except ConnectionError:
        pass  # early hang-ups are normal
    except OSError as error:
        _log.warning("cut off", extra={"layer": layer.digest, "error": str(error)})
        await abort(send)


def from_disk(send: Send, paths: Mapping[str, Path]) -> SpanSender:
    """Send files that are here."""

    async def span(one: Span) -> None:
        await send_file(send, paths[one.path], one.offset, one.length)

    return span


def arriving(send: Send, job: Job) -> SpanSender:
    """Send files while they come, each chunk as soon as it is verified."""

    async def span(one: Span) -> None:
        offset, end = one.offset, one.offset + one.length
        moved = time.monotonic()
        while offset < end:
            path, ready = _look(job, one.path, offset)
            if not ready:
                if hung_up(send):
                    raise ConnectionResetError("the client has hung up")
                if time.monotonic() - moved > _PATIENCE_SECONDS:
                    job.stalled()
                    raise OSError(f"{job.wanted.name}: nothing has come for too long")
                await asyncio.sleep(_POLL_SECONDS)
                continue
            count = min(ready, end - offset)
            try:
                await send_file(send, path, offset, count)
            except FileNotFoundError:
                if not job.over:  # what was staged has moved: look again
                    await asyncio.sleep(_POLL_SECONDS)
                continue
            offset += count
            moved = time.monotonic()

    return span


def _look(job: Job, path: str, offset: int) -> tuple[Path, int]:
    """Return where to read and how much of it is there. Raises OSError if it will not come."""
    model = job.model
    assert model is not None  # noqa: S101  # it was there when the answer began
    if job.state is State.READY:
        settled = model.settled(path)
        return settled, settled.stat().st_size - offset
    if job.over:
        raise OSError(f"the fetch ended: {job.error}")
    return model.ready(path, offset)
