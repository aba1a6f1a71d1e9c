"""Logs: one line per event, as text for people or as JSON for machines, and never a secret.

Everything goes through the standard library's `logging`, also what uvicorn and urllib3 say; fields
are its `extra`.
"""

import json
import logging
import re
import sys
import time
from typing import Final, Literal

from pythonjsonlogger.msgspec import MsgspecFormatter

from cache_daemon.observe.context import REQUEST

Format = Literal["", "text", "json"]
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SECRETS: Final = (
    # Authorization headers, wherever they are quoted.
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/-]{6,}=*"), r"\1 ***"),
    # user:password@ of a URL.
    (re.compile(r"://[^/\s\"'@]+@"), "://***@"),
    # The same without a scheme, in what somebody took for a reference; not repository:tag@digest.
    # Bounded, and only from the begin of a word: what is logged may be long, and chosen by others.
    (
        re.compile(
            r"(?<![^\s/:@\"'=\\])[^\s/:@\"'=\\]{1,100}:[^\s/@\"'\\]{1,400}@"
            r"(?!(?:sha256|sha512|blake3):)"
        ),
        "***@",
    ),
    # Signed URLs of object stores, tokens in queries.
    (
        re.compile(
            r"(?i)([?&](?:[a-z0-9_.-]*(?:sig|signature|token|credential|password|secret|key))=)"
            r"[^&\s\"'\\]+"
        ),
        r"\1***",
    ),
)


def redacted(text: str) -> str:
    """Return a text without what looks like a secret: the last net, below all others."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def set_up(format_: Format, level: str) -> None:
    """Log to standard error; `format_` is empty for text on a terminal and JSON elsewhere."""
    chosen = format_ or ("text" if sys.stderr.isatty() else "json")
    handler = logging.StreamHandler()
    handler.setFormatter(_Text() if chosen == "text" else _Json())
    handler.addFilter(_with_request)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    set_level(level)


def set_level(level: str) -> None:
    """Say how much is logged. Libraries below us say at most what is worth a warning."""
    logging.getLogger().setLevel(max(logging.WARNING, _number(level)))
    logging.getLogger("cache_daemon").setLevel(_number(level))


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _with_request(record: logging.LogRecord) -> bool:
    request = REQUEST.get()
    if request and not hasattr(record, "request"):
        record.request = request
    return True


def _time(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"


class _Text(logging.Formatter):
    """`time LEVEL logger: words name=value …`; what is not printable is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {k: v for k, v in vars(record).items() if k not in _OWN}
        words = "".join(f" {name}={_value(value)}" for name, value in fields.items() if value != "")
        line = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}{words}"
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redacted(line)


def _value(value: object) -> str:
    text = str(value)
    return json.dumps(text) if re.search(r'[\s"=]', text) else text


class _Json(MsgspecFormatter):
    """One object per line: time, level, logger, message, and the fields."""

    def __init__(self) -> None:
        super().__init__(
            ["time", "levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            reserved_attrs=[*_OWN],
        )

    def format(self, record: logging.LogRecord) -> str:
        record.time = _time(record)
        return redacted(super().format(record))
