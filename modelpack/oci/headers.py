"""What response headers say. They come from outside: what cannot be read says nothing."""

import email.utils
import re
from typing import Final
from urllib.parse import urlsplit

LONGEST_WAIT_SECONDS: Final = 120.0
_LONGEST: Final = 8192
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(?:[0-9]{1,18}|\*)")
_UPLOADED: Final = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_LINK: Final = re.compile(
    r'<([^<>]*)>((?:\s*;\s*[A-Za-z0-9*_-]+(?:\s*=\s*(?:"[^"]*"|[^",;\s]*))?)*)'
)
_PARAMETER: Final = re.compile(r';\s*([A-Za-z0-9*_-]+)(?:\s*=\s*(?:"([^"]*)"|([^",;\s]*)))?')


def number(text: str | None) -> int | None:
    """Read a count, such as Content-Length; None for everything that is no plain number."""
    found = _NUMBER.fullmatch(text or "")
    return int(found[0]) if found else None


def content_range(text: str | None) -> tuple[int, int] | None:
    """Read first and last byte of a Content-Range (RFC 9110, section 14.4)."""
    found = _CONTENT_RANGE.fullmatch(text or "")
    return (int(found[1]), int(found[2])) if found else None


def uploaded(text: str | None) -> int | None:
    """Read how many bytes an upload session has, from its Range (distribution-spec, "Push").

    `0-0` is one byte by the specification, and what docker-registry says of an empty session. It is
    read as nothing: one byte too many is sent again, but never one too few.
    """
    found = _UPLOADED.fullmatch(text or "")
    last = int(found[1]) if found else None
    return None if last is None else last + 1 if last else 0


def retry_after(text: str | None, now: float) -> float | None:
    """Read seconds to wait, from either form of Retry-After (RFC 9110, section 10.2.3).

    `now` is a Unix time. At most LONGEST_WAIT_SECONDS: nobody may put us to sleep for a day.
    """
    seconds: float | None = number(text)
    if seconds is None:
        try:
            seconds = email.utils.parsedate_to_datetime(text or "").timestamp() - now
        except (TypeError, ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT_SECONDS)


def next_link(text: str | None) -> str:
    """Read the address with the relation "next" of a Link (RFC 8288); empty if there is none."""
    for address, parameters in _LINK.findall((text or "")[:_LONGEST]):
        for name, quoted, plain in _PARAMETER.findall(parameters):
            if name.lower() == "rel" and "next" in (quoted or plain).lower().split():
                return str(address)
    return ""


def printable(text: str, most: int = 200) -> str:
    """Return text that a terminal shows and does not obey, shortened."""
    return re.sub(r"[^\x20-\x7e]", "?", text[:most])


def redacted(url: str) -> str:
    """Return a URL without user, query and fragment: signatures of object stores are secrets."""
    try:
        parts = urlsplit(url)
        where = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an address that cannot be read"
    return printable(f"{parts.scheme}://{where}{parts.path}")
