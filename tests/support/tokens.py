"""A token server as docs/content/spec/auth of distribution describes, and a registry that trusts it."""

import base64
import contextlib
import json
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.support.servers import docker_registry


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenServer:
    """Issues JWTs; keeps what it was asked. `public/` repositories may be pulled by anybody."""

    def __init__(self, directory: Path, *, seconds: int) -> None:
        self.seconds = seconds
        self.requests: list[dict] = []
        self.key, self.certificate = directory / "token.key", directory / "token.crt"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
             "/CN=tokens", "-keyout", self.key, "-out", self.certificate],
            check=True, capture_output=True,
        )  # fmt: skip
        der = subprocess.run(
            ["openssl", "x509", "-in", self.certificate, "-outform", "der"],
            check=True, capture_output=True,
        ).stdout  # fmt: skip
        self.chain = [base64.b64encode(der).decode()]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                self._answer(query, self.headers.get("Authorization", ""))

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                form = parse_qs(self.rfile.read(length).decode())
                form["scope"] = form.get("scope", [""])[0].split(" ")
                self._answer(form, "refresh " + form.get("refresh_token", [""])[0])

            def _answer(self, query: dict, authorization: str) -> None:
                outer.requests.append({"query": query, "authorization": authorization})
                status, answer = outer.issue(query, authorization)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/token"

    def issue(self, query: dict, authorization: str) -> tuple[int, dict]:
        user = base64.b64encode(b"ann:s3cret").decode()
        known = authorization in (f"Basic {user}", "refresh identity-of-ann")
        if authorization and not known:
            return 401, {"errors": [{"code": "UNAUTHORIZED"}]}
        access = []
        for scope in query.get("scope", []):
            kind, name, actions = scope.split(":", 2)
            allowed = actions.split(",") if known else []
            if not known and name.startswith("public/"):
                allowed = [action for action in actions.split(",") if action == "pull"]
            access.append({"type": kind, "name": name, "actions": allowed})
        now = int(time.time())
        payload = {"iss": "test", "sub": "ann", "aud": query.get("service", [""])[0], "jti": str(now),
                   "exp": now + self.seconds, "nbf": now - 10, "iat": now, "access": access}  # fmt: skip
        header = {"typ": "JWT", "alg": "RS256", "x5c": self.chain}
        signed = f"{_b64(json.dumps(header).encode())}.{_b64(json.dumps(payload).encode())}"
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", self.key], input=signed.encode(),
            check=True, capture_output=True,
        ).stdout  # fmt: skip
        return 200, {"token": f"{signed}.{_b64(signature)}", "expires_in": self.seconds}


@contextlib.contextmanager
def token_registry(directory: Path, *, seconds: int = 300):
    """A registry that wants tokens; `extra["tokens"]` is the server that issues them."""
    directory.mkdir(parents=True, exist_ok=True)
    tokens = TokenServer(directory, seconds=seconds)
    thread = threading.Thread(target=tokens.server.serve_forever, daemon=True)
    thread.start()
    auth = (
        f"auth: {{token: {{realm: '{tokens.url}', service: test, issuer: test, "
        f"rootcertbundle: '{tokens.certificate}'}}}}\n"
    )
    try:
        with docker_registry(
            directory, auth=auth, username="ann", password="s3cret", extra={"tokens": tokens}
        ) as registry:
            yield registry
    finally:
        tokens.server.shutdown()
        tokens.server.server_close()
        thread.join()
