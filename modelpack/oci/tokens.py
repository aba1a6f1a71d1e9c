"""Bearer tokens from a registry's token server (distribution, docs/content/spec/auth)."""

import base64
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode, urlsplit

import msgspec
from urllib3.response import BaseHTTPResponse

from modelpack.oci.answers import check, json_body
from modelpack.oci.challenge import Challenge
from modelpack.oci.credentials import Credential
from modelpack.oci.headers import redacted
from modelpack.oci.transport import Transport
from modelpack.spec.errors import ProtocolViolation, RegistryError, Unauthorized

_DEFAULT_SECONDS: Final = 60.0  # what the specification says of a token without expires_in
_TOKEN_BYTES: Final = 1 << 20
_SENDABLE: Final = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """What a token server gave: good for so many seconds. Never printed."""

    value: str
    seconds: float


class _Answer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None


class TokenServer:
    """The server that a challenge names."""

    def __init__(self, challenge: Challenge, registry: str, *, secure: bool) -> None:
        """`secure`: the registry speaks TLS, so its token server must too.

        Raises ProtocolViolation, RegistryError if it does not.
        """
        self._realm = challenge.parameters.get("realm", "")
        self._service = challenge.parameters.get("service", "")
        shown = redacted(self._realm)
        try:
            parts = urlsplit(self._realm)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            usable = False
        if not usable or not _SENDABLE.fullmatch(self._realm):
            raise ProtocolViolation(f"{registry}: names {shown!r} as its token server")
        if secure and parts.scheme != "https":
            raise RegistryError(
                f"{registry}: wants the credentials sent to {shown} without TLS",
                hint="its token server must be configured with https",
            )

    def ask(
        self, transport: Transport, scopes: tuple[str, ...], credential: Credential | None
    ) -> Token:
        """Fetch a token for these scopes; raises Unauthorized without hint if it is refused."""
        if credential is not None and credential.identity_token:
            response = self._exchange(transport, scopes, credential.identity_token)
        else:
            response = self._get(transport, scopes, credential)
        where = redacted(self._realm)
        if response.status in (400, 401, 403):
            response.close()
            words = "does not accept the credentials" if credential else "wants credentials"
            raise Unauthorized(f"{where}: {words} ({response.status})")
        check(response, (200,), where)
        answer = json_body(response, _Answer, _TOKEN_BYTES, where)
        value = answer.token or answer.access_token or ""
        if not _SENDABLE.fullmatch(value):
            raise ProtocolViolation(f"{where}: an answer without a token")
        return Token(value, answer.expires_in or _DEFAULT_SECONDS)

    def _get(
        self, transport: Transport, scopes: tuple[str, ...], credential: Credential | None
    ) -> BaseHTTPResponse:
        query = [("service", self._service)] if self._service else []
        query += [("scope", scope) for scope in scopes]
        headers = {}
        if credential is not None:
            query.append(("account", credential.username))
            headers["Authorization"] = basic(credential)
        joint = "&" if urlsplit(self._realm).query else "?"
        return transport.request("GET", f"{self._realm}{joint}{urlencode(query)}", headers)

    def _exchange(
        self, transport: Transport, scopes: tuple[str, ...], identity: str
    ) -> BaseHTTPResponse:
        """Exchange an identity token, as OAuth 2 calls it: a refresh token."""
        form = {
            "grant_type": "refresh_token",
            "refresh_token": identity,
            "client_id": "modelpack",
            "service": self._service,
            "scope": " ".join(scopes),
        }
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return transport.request("POST", self._realm, kind, urlencode(form).encode())


def basic(credential: Credential) -> str:
    """Return the header of RFC 7617."""
    pair = f"{credential.username}:{credential.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"
