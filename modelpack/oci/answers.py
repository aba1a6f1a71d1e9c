"""What registries answer: statuses become errors, bodies are read with a bound."""

import email.utils
import re
import time
from typing import Final, TypeVar
from urllib.parse import urlsplit

import msgspec
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from modelpack.oci.transport import unavailable
from modelpack.spec import limits
from modelpack.spec.errors import (
    Denied,
    LimitExceeded,
    NotFound,
    ProtocolViolation,
    RegistryError,
    Rejected,
    Unauthorized,
    Unavailable,
)

Value = TypeVar("Value")
_ERROR_BYTES: Final = 64 * limits.KIB
_MEANINGS: Final[dict[int, tuple[type[RegistryError], str]]] = {
    401: (Unauthorized, "modelpack login {host}"),
    403: (Denied, "ask for the permission, or log in as somebody else"),
    404: (NotFound, "check the name and the tag"),
    413: (
        Rejected,
        (
            "the registry, or a proxy before it, limits the size of a layer: use smaller shards or "
            "raise its limit"
        ),
    ),
}
_TRANSIENT: Final = (408, 425, 429, 500, 502, 503, 504)


class _Problem(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Problems(msgspec.Struct):
    errors: list[_Problem]


def check(response: BaseHTTPResponse, accepted: tuple[int, ...], what: str) -> None:
    """Raise the error that a status means, unless it is accepted; `what` names the request."""
    if response.status in accepted:
        return
    raise failure(response, what)


def failure(response: BaseHTTPResponse, what: str) -> RegistryError:
    """Return the error that an answer means; the connection is given up."""
    status = response.status
    said = _said(response)
    response.close()
    message = f"{what}: {said or 'the registry answers'} ({status})"
    if status in _TRANSIENT:
        return Unavailable(message, hint="try later", retry_after=_retry_after(response))
    if status in _MEANINGS:
        kind, hint = _MEANINGS[status]
        return kind(message, hint=hint.format(host=what.partition("/")[0]))
    return Rejected(message) if 400 <= status < 500 else ProtocolViolation(message)


def json_body(response: BaseHTTPResponse, kind: type[Value], most: int, what: str) -> Value:
    """Decode a JSON body of at most `most` bytes; raises LimitExceeded, ProtocolViolation."""
    try:
        return msgspec.json.decode(body(response, most, what), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolViolation(f"{what}: not the JSON it should be: {error}") from None


def body(response: BaseHTTPResponse, most: int, what: str) -> bytes:
    """Read a body of at most `most` bytes; raises LimitExceeded, Unavailable."""
    declared = response.headers.get("Content-Length", "")
    data = bytearray()
    try:
        if not declared.isdigit() or int(declared) <= most:
            while part := response.read(limits.MIB, decode_content=True):
                data += part
                if len(data) > most:
                    break
    except (HTTPError, OSError) as error:
        raise unavailable(what, error) from error
    finally:
        finish(response, whole=declared.isdigit() and len(data) == int(declared))
    if len(data) > most or (declared.isdigit() and int(declared) > most):
        raise LimitExceeded(f"{what}: an answer of more than {most} bytes")
    return bytes(data)


def finish(response: BaseHTTPResponse, *, whole: bool) -> None:
    """Give the connection back if the body was read to its end, else drop it."""
    if whole:
        response.release_conn()
    else:
        response.close()


def redacted(url: str) -> str:
    """Return a URL without its query: signatures of object stores are secrets."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _said(response: BaseHTTPResponse) -> str:
    """Return the registry's own words, if they are few and in the form of the specification."""
    declared = response.headers.get("Content-Length", "")
    # docker-registry 2.8.2 announces the whole blob with a 416 and sends nothing.
    if response.status == 416 or (declared.isdigit() and int(declared) > _ERROR_BYTES):
        return ""
    try:
        data = response.read(_ERROR_BYTES, decode_content=True)
        problems = msgspec.json.decode(data, type=_Problems).errors
    except (HTTPError, OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    if not problems:
        return ""
    text = ": ".join(filter(None, (problems[0].code, problems[0].message)))
    return re.sub(r"[^\x20-\x7e]", "?", text)[:200]


def _retry_after(response: BaseHTTPResponse) -> float | None:
    """Seconds to wait, from either form of Retry-After (RFC 9110, section 10.2.3)."""
    text = response.headers.get("Retry-After", "")
    if text.isdigit():
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return max(0.0, when.timestamp() - time.time())
