"""What the fault proxy is told, and what it tells."""

import threading
from dataclasses import dataclass, field
from email.message import Message

_ALWAYS = 1_000_000


@dataclass
class Rule:
    """What to do with requests whose "METHOD path" matches, `times` times, after `skip` of them.

    Numbers of bytes count the body; -1 is never.
    """

    pattern: str
    times: int = _ALWAYS
    skip: int = 0
    gate: threading.Event | None = None  # nothing happens before it is set
    delay: float = 0.0  # seconds before the request goes on

    # Answered here; the registry is not asked.
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    early: bool = False  # answer before the request's body is read
    redirect_to: str = ""  # "host:port" that serves the same

    # On the way to the registry.
    ignore_range: bool = False
    drop_upload_after: int = -1  # then a reset on both sides
    stall_upload_after: int = -1  # then nothing more is read until the proxy ends
    lose_answer: bool = False  # the registry did it, but the client hears a reset

    # On the way back. A header replaced by None is left out.
    replace_headers: dict[str, str | None] = field(default_factory=dict)
    flip: int = -1  # damages one bit of this byte
    cut: int = -1  # an orderly end of the connection
    reset_after: int = -1
    stall_after: int = -1  # then nothing more comes until the proxy ends
    slice_pause: tuple[int, float] = (0, 0.0)  # a trickle: so many bytes, then so many seconds

    @property
    def stop(self) -> int:
        """After how many bytes of the answer something happens."""
        return min(
            (n for n in (self.cut, self.reset_after, self.stall_after) if n >= 0), default=-1
        )


@dataclass
class Seen:
    """One request as it came in; `headers` are found whatever their case.

    `received` and `sent` are bytes of the bodies so far; `status` is 0 until there is an answer.
    """

    method: str
    path: str
    headers: Message
    received: int = 0
    sent: int = 0
    status: int = 0
