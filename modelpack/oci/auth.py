"""Who we are, told in the way each registry asks for it: Basic (RFC 7617) or Bearer tokens."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from modelpack.oci.challenge import Challenge, parse
from modelpack.oci.credentials import Credential, Credentials
from modelpack.oci.headers import printable
from modelpack.oci.tokens import TokenServer, basic
from modelpack.oci.transport import Transport
from modelpack.spec.errors import Denied, RegistryError, Unauthorized

_MARGIN: Final = 0.8  # of a token's life is used
_FOREVER: Final = float("inf")


@dataclass(frozen=True, slots=True, repr=False)
class _Grant:
    header: str
    expires: float


class Authenticator:
    """Knows the Authorization header for each scope of one repository. Thread-safe.

    After the first challenge no request goes out without credentials: a token is fetched before it
    is needed and renewed before it expires, so that no body is sent only to be refused.
    """

    def __init__(  # noqa: PLR0913  # all of it is needed to answer a challenge
        self,
        registry: str,
        repository: str,
        credentials: Credentials,
        transport: Transport,
        *,
        secure: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`secure`: the registry speaks TLS; credentials then go nowhere without it."""
        self._registry = registry
        self._name = f"{registry}/{repository}".rstrip("/")
        self._repository = repository
        self._credentials = credentials
        self._transport = transport
        self._secure = secure
        self._clock = clock
        self._lock = threading.Lock()
        self._grants: dict[tuple[str, ...], _Grant] = {}
        self._challenge: Challenge | None = None
        self._identified = False

    def header(self, scopes: tuple[str, ...]) -> str:
        """Return what to send for these scopes; empty before the first challenge.

        Raises Unauthorized, and what a token server does.
        """
        present = self._present(scopes)
        if present or self._challenge is None:
            return present
        with self._lock:
            return self._present(scopes) or self._renew(self._challenge, scopes, scopes, "")

    def answer(self, challenge: str, scopes: tuple[str, ...], refused: str) -> str:
        """Return a new header for a challenge after `refused` was not accepted.

        One thread renews, the others wait and take its result. Raises Unauthorized.
        """
        with self._lock:
            present = self._present(scopes)
            if present and present != refused:
                return present
            found = parse(challenge)
            known = [c for scheme in ("bearer", "basic") for c in found if c.scheme == scheme]
            if not known:
                shown = printable(challenge, 100)
                raise Unauthorized(f"{self._name}: wants unknown authentication: {shown!r}")
            asked = known[0].parameters.get("scope", "")
            wanted = tuple(dict.fromkeys((*scopes, *((asked,) if asked else ()))))
            return self._renew(known[0], scopes, wanted, refused)

    def refusal(self, challenge: str) -> RegistryError:
        """Return the error for fresh credentials that are not accepted either.

        `insufficient_scope` (RFC 6750, section 3.1) says that they are good, but not for this.
        """
        errors = {c.parameters.get("error") for c in parse(challenge)}
        if "insufficient_scope" in errors and self._identified:
            return Denied(
                f"{self._name}: the credentials are not allowed to do this",
                hint="ask for the permission, or log in as somebody else",
            )
        return self._unauthorized("the registry does not accept the credentials")

    def _present(self, scopes: tuple[str, ...]) -> str:
        grant = self._grants.get(scopes)
        return grant.header if grant and self._clock() < grant.expires else ""

    def _renew(
        self, challenge: Challenge, scopes: tuple[str, ...], wanted: tuple[str, ...], refused: str
    ) -> str:
        credential = self._known()
        if credential and credential.registry_token:
            grant = _Grant(self._given(credential, refused), _FOREVER)
        elif challenge.scheme == "basic":
            grant = _Grant(self._basic(refused), _FOREVER)
        else:
            grant = self._bearer(challenge, wanted)
        self._grants[scopes] = grant
        self._challenge = challenge
        return grant.header

    def _basic(self, refused: str) -> str:
        credential = self._known()
        if credential is None or not credential.username:
            raise self._unauthorized("the registry wants a user and a password")
        header = basic(credential)
        if header == refused:
            raise self._unauthorized("the registry does not accept the user and password")
        return header

    def _given(self, credential: Credential, refused: str) -> str:
        header = f"Bearer {credential.registry_token}"
        if header == refused:
            raise self._unauthorized("the registry does not accept the token, or no longer")
        return header

    def _bearer(self, challenge: Challenge, wanted: tuple[str, ...]) -> _Grant:
        server = TokenServer(challenge, self._registry, secure=self._secure)
        credential = self._known()
        try:
            token = server.ask(self._transport, wanted, credential)
        except Unauthorized as error:
            raise self._unauthorized(str(error)) from error
        # A token that would expire at once is still good for the request at hand.
        life = max(token.seconds * _MARGIN, 1.0)
        return _Grant(f"Bearer {token.value}", self._clock() + life)

    def _known(self) -> Credential | None:
        credential = self._credentials.get(self._registry, self._repository)
        self._identified = credential is not None
        return credential

    def _unauthorized(self, what: str) -> Unauthorized:
        return Unauthorized(f"{self._name}: {what}", hint=f"modelpack login {self._registry}")
