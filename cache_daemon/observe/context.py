"""On whose behalf something is done: the id of the request, from the socket to the last log line.

It goes with the thread of control, as all context variables do: whoever starts a thread for a
request, or queues work for it, hands over a copy of its context.
"""

import re
import secrets
from contextvars import ContextVar
from typing import Final, Protocol

REQUEST: Final[ContextVar[str]] = ContextVar("request", default="")
TRACEPARENT: Final[ContextVar[str]] = ContextVar("traceparent", default="")  # W3C; unchecked
_SANE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def request_id(given: str) -> str:
    """Return the id of a request: what its sender calls it, if that is sane, or a new one."""
    return given if _SANE.fullmatch(given) else secrets.token_hex(8)


class Named(Protocol):
    """A model, as far as a log line names it."""

    @property
    def key(self) -> str:
        """Of the snapshot."""

    @property
    def reference(self) -> str:
        """As people know it."""

    @property
    def digest(self) -> str:
        """Of the manifest."""


def about(model: Named) -> dict[str, str]:
    """Return the fields that every line about a model carries."""
    return {"reference": model.reference, "key": model.key, "digest": model.digest}
