"""The control API over TCP: who may connect (TLS) and who may ask (the token)."""

import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import SecretStr

from modelpack.spec.errors import InputError

_FREE = "/v1/live"  # whoever may connect may know that we live


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM: our certificate with its chain, its key, the authority of our clients."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return TLS 1.2 or later; with `client_ca` no client connects without a certificate of it.

        Raises InputError for files that cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        file = self.cert
        try:
            # Without a password callback OpenSSL would ask the terminal for that of the key.
            context.load_cert_chain(file, self.key, password=lambda: b"")
            if self.client_ca is not None:
                file = self.client_ca
                context.load_verify_locations(file)
                context.verify_mode = ssl.CERT_REQUIRED
        except (ssl.SSLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise InputError(
                f"{file}: cannot be used for TLS: {reason}",
                hint="expected PEM; see --tls-cert, --tls-key and --client-ca",
            ) from error
        return context


def bind(listen: str) -> socket.socket:
    """Listen on HOST:PORT; raises OSError."""
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host.strip("[]"), int(port)), family=family)


def guarded(app: FastAPI, token: SecretStr) -> FastAPI:
    """Wrap the application for TCP: everything but liveness needs the token."""
    outer = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    expected = f"Bearer {token.get_secret_value()}".encode()

    @outer.middleware("http")
    async def check(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        given = request.headers.get("Authorization", "").encode()
        if request.url.path != _FREE and not compare_digest(given, expected):
            return _refusal()
        return await call_next(request)

    outer.mount("", app)
    return outer


def _refusal() -> Response:
    said = {
        "type": "about:blank", "title": "Unauthorized", "status": 401,
        "detail": "the cache daemon wants the token of its cluster, or another one",
        "next": "send Authorization: Bearer; modelpack node does with --token-file",
        "retry": False,
    }  # fmt: skip
    return JSONResponse(
        said, 401, {"WWW-Authenticate": "Bearer"}, media_type="application/problem+json"
    )
