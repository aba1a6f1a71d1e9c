"""Talking to a cache daemon: that of this node, or of another."""

import http.client
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import msgspec

from modelpack.oci.credentials import DockerCredentials
from modelpack.spec.errors import (
    ArtifactError,
    Denied,
    DiskError,
    InputError,
    ModelpackError,
    NotFound,
    RegistryError,
    TargetConflict,
    Unauthorized,
    Unavailable,
)
from modelpack.spec.limits import JSON_BODY_BYTES
from modelpack.spec.reference import Reference
from modelpack.verbs.node_address import Address, SocketAddress

SOCKET: Final = "MODELPACK_CACHE_SOCKET"
_DEFAULT: Final = Path("/run/modelpack/cache.sock")
_ERRORS: Final[dict[int, type[ModelpackError]]] = {
    400: InputError, 401: Unauthorized, 403: Denied, 404: NotFound, 409: TargetConflict,
    422: ArtifactError, 502: RegistryError, 503: Unavailable, 507: DiskError,
}  # fmt: skip


def credential_for(reference: str) -> dict[str, str] | None:
    """Return the user's own credential for a reference, as the API takes it; None if there is none.

    From where `modelpack pull` has it (see DockerCredentials). The daemon keeps it in memory, for
    the fetch that it is sent with. Raises BadReference, InputError.
    """
    parsed = Reference.parse(reference)
    if parsed.layout:
        return None
    found = DockerCredentials().get(parsed.registry, parsed.repository)
    return {key: value for key, value in asdict(found).items() if value} if found else None


class Node:
    """The control API, version 1 (docs/operations/node.md). One request at a time."""

    def __init__(self, path: Path | None = None, address: Address | None = None) -> None:
        """`path` is the socket; else $MODELPACK_CACHE_SOCKET, else where the daemon puts it.

        With `address` it is that of another node.
        """
        given = os.environ.get(SOCKET)
        own = path or (Path(given) if given else _DEFAULT)
        self._address = address or SocketAddress(own)

    def get(self, path: str) -> Any:
        """Return what is at a path of the API."""
        return self._call("GET", path)

    def send(self, method: str, path: str, body: object = None) -> Any:
        """Ask for a change; returns the answer, None if there is none to give."""
        return self._call(method, path, body)

    def watch(self, key: str) -> Iterator[Any]:
        """Yield the state of a model whenever it changes, until it is here or will not come."""
        connection, response = self._open("GET", f"/v1/models/{key}/events", None)
        try:
            while line := response.readline(JSON_BODY_BYTES):
                if line.startswith(b"data: "):
                    yield msgspec.json.decode(line[6:])
        except OSError as error:
            raise self._address.away(error) from error
        finally:
            connection.close()

    def _call(self, method: str, path: str, body: object = None) -> Any:
        connection, response = self._open(method, path, body)
        try:
            data = response.read(JSON_BODY_BYTES)
            if response.length:  # http.client says nothing of an answer that was cut off
                raise http.client.IncompleteRead(data, response.length)
        except (OSError, http.client.HTTPException) as error:
            raise self._address.away(error) from error
        finally:
            connection.close()
        return msgspec.json.decode(data) if data else None

    def _open(
        self, method: str, path: str, body: object
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = self._address.connection()
        data = None if body is None else msgspec.json.encode(body)
        headers = {
            **self._address.headers,
            **({"Content-Type": "application/json"} if data else {}),
        }
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            refused = response.read(JSON_BODY_BYTES) if response.status >= 300 else None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._address.away(error) from error
        if refused is not None:
            connection.close()
            raise _refusal(response.status, refused)
        return connection, response


def _refusal(status: int, data: bytes) -> ModelpackError:
    kind = _ERRORS.get(status, RegistryError)
    try:
        said = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return kind(f"the cache daemon answers {status}")
    detail = said.get("detail")
    if isinstance(detail, list):  # FastAPI's list of what is wrong with a request
        detail = "; ".join(str(one.get("msg")) for one in detail if isinstance(one, dict))
    return kind(str(detail or f"the cache daemon answers {status}"), hint=str(said.get("next", "")))
