"""What registries answer: statuses become errors, bodies are read with a bound."""

import time
from typing import Final, TypeVar

import msgspec
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from modelpack.oci.headers import number, printable, retry_after
from modelpack.oci.transport import PROXY_HINT, unavailable
from modelpack.spec import limits
from modelpack.spec.errors import (
    Denied,
    LimitExceeded,
    ModelpackError,
    NotFound,
    ProtocolViolation,
    RegistryError,
    Rejected,
    Unauthorized,
    Unavailable,
)

Value = TypeVar("Value")
_ERROR_BYTES: Final = 64 * limits.KIB
BODY_SECONDS = 120.0  # for what is small: manifests, lists, tokens, errors
_MEANINGS: Final[dict[int, tuple[type[RegistryError], str]]] = {
    401: (Unauthorized, "modelpack login {host}"),
    403: (Denied, "ask for the permission, or log in as somebody else"),
    404: (NotFound, "check the name and the tag"),
    407: (RegistryError, PROXY_HINT),
    413: (
        Rejected,
        (
            "the registry, or a proxy before it, limits the size of a layer: use smaller shards or "
            "raise its limit"
        ),
    ),
}
_TRANSIENT: Final = (408, 425, 429, 500, 502, 503, 504)


class _Problem(msgspec.Struct, frozen=True):
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
    return failure_and_code(response, what)[0]


def failure_and_code(response: BaseHTTPResponse, what: str) -> tuple[RegistryError, str]:
    """Return the error, and the registry's code for it (distribution-spec, "Error Codes")."""
    status = response.status
    said = _said(response)
    response.close()
    words = printable(": ".join(filter(None, (said.code, said.message))))
    message = f"{what}: {words or 'the registry answers'} ({status})"
    return _error(status, message, response, what.partition("/")[0]), said.code


def _error(status: int, message: str, response: BaseHTTPResponse, host: str) -> RegistryError:
    if status in _TRANSIENT:
        wait = retry_after(response.headers.get("Retry-After"), time.time())
        return Unavailable(message, hint="try later", retry_after=wait)
    if status in _MEANINGS:
        kind, hint = _MEANINGS[status]
        return kind(message, hint=hint.format(host=host))
    refused = 400 <= status < 500 or status == 501
    return Rejected(message) if refused else ProtocolViolation(message)


def json_body(response: BaseHTTPResponse, kind: type[Value], most: int, what: str) -> Value:
    """Decode a JSON body of at most `most` bytes; raises LimitExceeded, ProtocolViolation."""
    data = body(response, most, what)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        shown = printable(str(error))
        raise ProtocolViolation(f"{what}: not the JSON it should be: {shown}") from None


def body(response: BaseHTTPResponse, most: int, what: str) -> bytes:
    """Read a body of at most `most` bytes in bounded time; raises LimitExceeded, Unavailable."""
    declared = number(response.headers.get("Content-Length"))
    data = bytearray()
    deadline = time.monotonic() + BODY_SECONDS
    try:
        if declared is None or declared <= most:
            # read1, because read would wait for all it is asked for, however slowly it comes.
            while part := response.read1(limits.MIB, decode_content=True):
                data += part
                if len(data) > most:
                    break
                if time.monotonic() > deadline:
                    raise Unavailable(f"{what}: an answer that takes too long", hint="try later")
    except (HTTPError, OSError) as error:
        raise unavailable(what, error) from error
    finally:
        finish(response, whole=len(data) == declared)
    if len(data) > most or (declared or 0) > most:
        raise LimitExceeded(f"{what}: an answer of more than {most} bytes")
    return bytes(data)


def head_only(response: BaseHTTPResponse) -> None:
    """Be done with an answer of which only the status and headers matter.

    An empty body must be read too: until then http.client takes the connection for busy, and the
    next request on it fails.
    """
    if response.length_remaining == 0:
        response.drain_conn()
        response.release_conn()
    else:
        response.close()


def finish(response: BaseHTTPResponse, *, whole: bool) -> None:
    """Give the connection back if the body was read to its end, else drop it."""
    if whole:
        response.release_conn()
    else:
        response.close()


def _said(response: BaseHTTPResponse) -> _Problem:
    """Return the registry's own words, if they are few and in the form of the specification."""
    # docker-registry 2.8.2 announces the whole blob with a 416 and sends nothing.
    if response.status == 416:
        return _Problem()
    try:
        data = body(response, _ERROR_BYTES, "")
        problems = msgspec.json.decode(data, type=_Problems).errors
    except (ModelpackError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Problem()
    return problems[0] if problems else _Problem()
