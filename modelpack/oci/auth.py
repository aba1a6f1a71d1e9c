"""Who we are, told in the way each registry asks for it.

Basic (RFC 7617), and Bearer tokens as in distribution's docs/content/spec/auth (token and oauth).
"""

import base64
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode, urlsplit

import msgspec

from modelpack.oci.answers import check, json_body, redacted
from modelpack.oci.challenge import Challenge, parse
from modelpack.oci.credentials import Credential, Credentials
from modelpack.oci.transport import Transport
from modelpack.spec.errors import ProtocolViolation, RegistryError, Unauthorized

_DEFAULT_SECONDS: Final = 60  # what the specification says of a token without expires_in
_MARGIN: Final = 0.8  # of a token's life is used
_TOKEN_BYTES: Final = 1 << 20


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float = _DEFAULT_SECONDS


@dataclass(frozen=True, slots=True)
class _Grant:
    header: str
    expires: float


class Authenticator:
    """Knows the Authorization header for each scope of one repository. Thread-safe."""

    def __init__(
        self,
        registry: str,
        repository: str,
        credentials: Credentials,
        transport: Transport,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._repository = repository
        self._credentials = credentials
        self._transport = transport
        self._clock = clock
        self._lock = threading.Lock()
        self._grants: dict[tuple[str, ...], _Grant] = {}

    def header(self, scopes: tuple[str, ...]) -> str:
        """Return what to send for these scopes; empty before the first challenge."""
        grant = self._grants.get(scopes)
        return grant.header if grant and self._clock() < grant.expires else ""

    def answer(self, challenge: str, scopes: tuple[str, ...], refused: str, *, secure: bool) -> str:
        """Return a new header for a challenge after `refused` was not accepted.

        One thread renews, the others wait and take its result. `secure` says whether the registry
        itself speaks TLS, so that tokens are not sent in the clear otherwise. Raises Unauthorized.
        """
        with self._lock:
            present = self.header(scopes)
            if present and present != refused:
                return present
            challenges = parse(challenge)
            bearer = next((c for c in challenges if c.scheme == "bearer"), None)
            if bearer is not None:
                grant = self._bearer(bearer, scopes, secure=secure)
            elif any(c.scheme == "basic" for c in challenges):
                grant = self._basic(refused)
            else:
                raise Unauthorized(
                    f"{self._registry}: wants an authentication that is unknown here: "
                    f"{challenge[:100]!r}"
                )
            self._grants[scopes] = grant
            return grant.header

    def _basic(self, refused: str) -> _Grant:
        credential = self._credential()
        if credential is None or not credential.username:
            raise self._unauthorized("wants a user and a password")
        header = _basic_header(credential)
        if header == refused:
            raise self._unauthorized("does not accept the user and password")
        return _Grant(header, float("inf"))

    def _bearer(self, challenge: Challenge, scopes: tuple[str, ...], *, secure: bool) -> _Grant:
        realm = challenge.parameters.get("realm", "")
        parts = urlsplit(realm)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ProtocolViolation(f"{self._registry}: a token realm that is no address")
        if secure and parts.scheme != "https":
            raise RegistryError(f"{self._registry}: wants tokens from {parts.netloc} without TLS")
        service = challenge.parameters.get("service", "")
        asked = challenge.parameters.get("scope", "")
        wanted = list(dict.fromkeys((*scopes, *((asked,) if asked else ()))))
        token = self._fetch(realm, service, wanted)
        value = token.token or token.access_token
        if not value:
            raise ProtocolViolation(f"{parts.netloc}: an answer without a token")
        # A token that would expire at once is still good for the request at hand.
        life = max(token.expires_in * _MARGIN, 1.0)
        return _Grant(f"Bearer {value}", self._clock() + life)

    def _fetch(self, realm: str, service: str, scopes: list[str]) -> _Token:
        credential = self._credential()
        if credential is not None and credential.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": credential.identity_token,
                "client_id": "modelpack",
                "service": service,
                "scope": " ".join(scopes),
            }
            response = self._transport.request(
                "POST", realm, {"Content-Type": "application/x-www-form-urlencoded"},
                urlencode(form).encode(),
            )  # fmt: skip
        else:
            query = [("service", service)] if service else []
            query += [("scope", scope) for scope in scopes]
            if credential is not None:
                query.append(("account", credential.username))
            joint = "&" if urlsplit(realm).query else "?"
            headers = {"Authorization": _basic_header(credential)} if credential else {}
            response = self._transport.request("GET", f"{realm}{joint}{urlencode(query)}", headers)
        where = redacted(realm)
        if response.status in (400, 401, 403):
            response.close()
            raise self._unauthorized(
                "does not accept the credentials" if credential else "wants credentials"
            )
        check(response, (200,), where)
        return json_body(response, _Token, _TOKEN_BYTES, where)

    def _credential(self) -> Credential | None:
        return self._credentials.get(self._registry, self._repository)

    def _unauthorized(self, what: str) -> Unauthorized:
        return Unauthorized(
            f"{self._registry}/{self._repository}: the registry {what}".replace("/:", ":"),
            hint=f"modelpack login {self._registry}",
        )


def _basic_header(credential: Credential) -> str:
    pair = f"{credential.username}:{credential.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"
