"""HTTP answers under uvicorn; bytes of files go out by sendfile(2), not through Python.

ASGI's zero-copy extension is not there in uvicorn. But `send` is a method of the object that
writes to the connection, and that knows the transport.
"""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from starlette.types import Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from cache_daemon.mirror.upstream import Answer

_SLICE: Final = 1 << 20
_AT_ONCE: Final = 64 << 20
_VERSION: Final = (b"docker-distribution-api-version", b"registry/2.0")


async def start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    """Send status and headers."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": [_VERSION, *raw]})


async def answer_with(send: Send, method: str, answer: Answer) -> None:
    """Send a whole answer; that to HEAD without its body."""
    length = {} if method == "HEAD" else {"Content-Length": str(len(answer.body))}
    await start(send, answer.status, {**answer.headers, **length})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else answer.body})


async def send_file(send: Send, path: Path, offset: int, length: int) -> None:
    """Send a range of a file as the next part of the body.

    Raises ConnectionError when the client has hung up, OSError for a file that cannot be read or
    is too short.
    """
    loop = asyncio.get_running_loop()
    cycle = _cycle(send)
    with path.open("rb", buffering=0) as file:
        while length:
            if hung_up(send):
                raise ConnectionResetError("the client has hung up")
            if cycle is None:
                data = os.pread(file.fileno(), min(_SLICE, length), offset)
                await send({"type": "http.response.body", "body": data, "more_body": True})
                sent = len(data)
            else:
                if cycle.flow.write_paused:
                    await cycle.flow.drain()
                count = min(_AT_ONCE, length)
                sent = await loop.sendfile(cycle.transport, file, offset, count)
                cycle.expected_content_length -= sent
            if not sent:
                raise OSError(f"{path}: ends {length} bytes early")
            offset, length = offset + sent, length - sent


def hung_up(send: Send) -> bool:
    """Whether nobody listens any more."""
    cycle = _cycle(send)
    return cycle is not None and (cycle.disconnected or cycle.transport.is_closing())


async def abort(send: Send) -> None:
    """End the connection: the other side must not take what it has for everything.

    In an orderly way: containerd continues after an early end, but gives up after a reset.
    """
    cycle = _cycle(send)
    if cycle is None:
        raise ConnectionResetError("cut off")
    cycle.transport.close()
    while not cycle.disconnected:  # noqa: ASYNC110  # uvicorn has no event for it; one turn
        await asyncio.sleep(0)


def _cycle(send: Send) -> RequestResponseCycle | None:
    cycle = getattr(send, "__self__", None)
    return cycle if isinstance(cycle, RequestResponseCycle) else None
