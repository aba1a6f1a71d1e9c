"""A token server as distribution's spec/auth describes, and a registry that trusts it."""

import base64
import contextlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import trustme
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

from tests.support.servers import Registry, docker_registry

USER, PASSWORD, IDENTITY = "ann", "s3cret", "identity-of-ann"
_SERVICE, _ISSUER = "test", "test"
# docker-registry takes a token for this long after it expired (registry/auth/token, Leeway).
_LEEWAY = 60


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenServer:
    """Issues RS256 tokens to one user; `public/` repositories may be pulled by anybody.

    Answers GET (token.md: Basic or anonymous) and POST (oauth.md: grant types refresh_token and
    password). The registry takes a token for `seconds` after it was issued; clients are told
    `announced` seconds, or nothing where that is 0. Both may be changed at any time. `requests`
    records what was asked: method, query (of a POST the form), authorization, status.
    """

    def __init__(self, directory: Path, *, seconds: int, announced: int | None = None) -> None:
        self.seconds = seconds
        self.announced = seconds if announced is None else announced
        self.requests: list[dict] = []
        authority = trustme.CA(key_type=trustme.KeyType.RSA)
        signer = authority.issue_cert("tokens.example", key_type=trustme.KeyType.RSA)
        self.certificate = directory / "tokens.pem"
        authority.cert_pem.write_to_path(self.certificate)
        self._key = serialization.load_pem_private_key(signer.private_key_pem.bytes(), None)
        pem = signer.cert_chain_pems[0].bytes().decode()
        self._chain = ["".join(line for line in pem.splitlines() if not line.startswith("-----"))]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self, parse_qs(urlsplit(self.path).query))

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                outer._answer(self, parse_qs(self.rfile.read(length).decode()))

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/token"

    def _answer(self, client: BaseHTTPRequestHandler, query: dict[str, list[str]]) -> None:
        authorization = client.headers.get("Authorization", "")
        # OAuth puts all scopes into one parameter, separated by spaces (RFC 6749, section 3.3).
        if "scope" in query:
            query["scope"] = [one for scope in query["scope"] for one in scope.split()]
        if client.command == "POST":
            status, answer = self._exchange(query)
        else:
            status, answer = self.issue(query, authorization)
        self.requests.append({
            "method": client.command, "query": query, "authorization": authorization,
            "status": status,
        })  # fmt: skip
        data = json.dumps(answer).encode()
        client.send_response(status)
        client.send_header("Content-Type", "application/json")
        client.send_header("Content-Length", str(len(data)))
        client.end_headers()
        client.wfile.write(data)

    def issue(self, query: dict, authorization: str) -> tuple[int, dict]:
        """Answer GET (token.md, "Requesting a Token"): status and body."""
        known = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
        if authorization not in ("", known):
            return 401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong password"}]}
        answer = {"token": self._token(query, known=bool(authorization)), **self._lifetime()}
        if authorization and query.get("offline_token") == ["true"]:
            answer["refresh_token"] = IDENTITY
        return 200, answer

    def _exchange(self, form: dict) -> tuple[int, dict]:
        """Answer POST (oauth.md, "Getting a token"): status and body."""
        grants = {
            "refresh_token": form.get("refresh_token") == [IDENTITY],
            "password": (form.get("username"), form.get("password")) == ([USER], [PASSWORD]),
        }
        kind = form.get("grant_type", [""])[0]
        if kind not in grants or not form.get("client_id") or not form.get("service"):
            return 400, {"error": "invalid_request"}
        if not grants[kind]:
            return 401, {"error": "invalid_grant"}
        answer = {"access_token": self._token(form, known=True), **self._lifetime()}
        if kind == "refresh_token" or form.get("access_type") == ["offline"]:
            answer["refresh_token"] = IDENTITY
        return 200, answer | {"scope": " ".join(form.get("scope", []))}

    def _lifetime(self) -> dict:
        return {"expires_in": self.announced} if self.announced else {}

    def _token(self, query: dict, *, known: bool) -> str:
        """Sign a JWT (jwt.md) for the part of the scopes that this caller may have."""
        access = []
        for scope in query.get("scope", []):
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            public = name.startswith("public/")
            granted = [one for one in actions.split(",") if known or (public and one == "pull")]
            access.append({"type": kind, "name": name, "actions": granted})
        now = int(time.time())
        payload = {
            "iss": _ISSUER, "sub": USER if known else "", "aud": _SERVICE,
            "jti": secrets.token_hex(8), "exp": now + self.seconds - _LEEWAY,
            "nbf": now - 2 * _LEEWAY, "iat": now, "access": access,
        }  # fmt: skip
        header = {"typ": "JWT", "alg": "RS256", "x5c": self._chain}
        signed = f"{_b64(json.dumps(header).encode())}.{_b64(json.dumps(payload).encode())}"
        return f"{signed}.{_b64(self._key.sign(signed.encode(), PKCS1v15(), hashes.SHA256()))}"


@contextlib.contextmanager
def token_server(
    directory: Path, *, seconds: int = 300, announced: int | None = None
) -> Iterator[TokenServer]:
    """Run a token server until the block ends."""
    directory.mkdir(parents=True, exist_ok=True)
    tokens = TokenServer(directory, seconds=seconds, announced=announced)
    # A short interval: shutdown() waits for it.
    thread = threading.Thread(target=tokens.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield tokens
    finally:
        tokens.server.shutdown()
        tokens.server.server_close()
        thread.join()


@contextlib.contextmanager
def token_registry(
    directory: Path, *, seconds: int = 300, announced: int | None = None
) -> Iterator[Registry]:
    """Run a registry that wants tokens; `extra["tokens"]` is the TokenServer that issues them."""
    with token_server(directory, seconds=seconds, announced=announced) as tokens:
        auth = {"token": {
            "realm": tokens.url, "service": _SERVICE, "issuer": _ISSUER,
            "rootcertbundle": str(tokens.certificate),
        }}  # fmt: skip
        with docker_registry(
            directory, auth=auth, username=USER, password=PASSWORD, extra={"tokens": tokens}
        ) as registry:
            yield registry
