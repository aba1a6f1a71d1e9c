"""Real registries on free ports: docker-registry in several configurations, and crane's."""

import contextlib
import json
import os
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.processes import answers, free_port, give_back, process

ROOT = Path(__file__).parents[2]
CRANE = ROOT / ".cache/bin/crane"


@dataclass
class Registry:
    """A running docker-registry: where it listens, and its storage to look into and to damage."""

    host: str
    storage: Path
    username: str = ""
    password: str = ""
    extra: dict = field(default_factory=dict)

    def blob_path(self, digest: str) -> Path:
        """Return the file that holds a blob or manifest; damage shows in the next answer."""
        algorithm, _, value = digest.partition(":")
        return self.storage / f"docker/registry/v2/blobs/{algorithm}/{value[:2]}/{value}/data"

    def flip_bit(self, digest: str, offset: int) -> None:
        """Damage one bit of a stored blob."""
        with self.blob_path(digest).open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))

    def truncate(self, digest: str, size: int) -> None:
        """Cut a stored blob off."""
        os.truncate(self.blob_path(digest), size)


@contextlib.contextmanager
def docker_registry(
    directory: Path,
    *,
    port: int = 0,
    auth: dict | None = None,
    tls: dict | None = None,
    probe: ssl.SSLContext | None = None,
    delete: bool = True,
    pull_through: str = "",
    **described: object,
) -> Iterator[Registry]:
    """Run docker-registry 2.8.2 with its storage and log in `directory`.

    `auth` and `tls` are those sections of its configuration; `probe` is the TLS context of a client
    that it would answer. With `pull_through`, the URL of another registry, it is a read-only mirror
    of that one. A given `port` stays reserved, so that the registry can be started there again.
    """
    chosen = port or free_port()
    host = f"127.0.0.1:{chosen}"
    directory.mkdir(parents=True, exist_ok=True)
    storage = directory / "storage"
    config = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "delete": {"enabled": delete},
        },
        "http": {"addr": host, "secret": "test", **({"tls": tls} if tls else {})},
        **({"auth": auth} if auth else {}),
        **({"proxy": {"remoteurl": pull_through}} if pull_through else {}),
    }
    path = directory / "registry.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
    try:
        with process(
            ["docker-registry", "serve", path],
            directory / "log",
            answers(host, tls=probe),
            env=environment,
        ):
            yield Registry(host, storage, **described)  # type: ignore[arg-type]
    finally:
        if not port:
            give_back(chosen)


@contextlib.contextmanager
def htpasswd_registry(directory: Path) -> Iterator[Registry]:
    """Run a registry that knows one user, by HTTP Basic authentication."""
    user, password = "ann", "s3cret:word"
    directory.mkdir(parents=True, exist_ok=True)
    users = directory / "htpasswd"
    users.write_bytes(
        subprocess.run(["htpasswd", "-Bbn", user, password], check=True, capture_output=True).stdout
    )
    auth = {"htpasswd": {"realm": "test", "path": str(users)}}
    with docker_registry(directory, auth=auth, username=user, password=password) as registry:
        yield registry


@contextlib.contextmanager
def tls_registry(directory: Path, *, client_certificates: bool = False) -> Iterator[Registry]:
    """Run a registry behind TLS, which may demand a certificate of its clients.

    `extra` has the PEM files `ca`, and `client` and `client_key` of a client it trusts.
    """
    import trustme

    directory.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1", "localhost")
    client = authority.issue_cert("client@example.com")
    files = {
        name: directory / f"{name}.pem" for name in ("ca", "cert", "key", "client", "client_key")
    }
    authority.cert_pem.write_to_path(files["ca"])
    server.private_key_pem.write_to_path(files["key"])
    files["cert"].write_bytes(b"".join(part.bytes() for part in server.cert_chain_pems))
    files["client"].write_bytes(b"".join(part.bytes() for part in client.cert_chain_pems))
    client.private_key_pem.write_to_path(files["client_key"])
    tls: dict = {"certificate": str(files["cert"]), "key": str(files["key"])}
    if client_certificates:
        tls["clientcas"] = [str(files["ca"])]
    probe = ssl.create_default_context(cafile=files["ca"])
    probe.load_cert_chain(files["client"], files["client_key"])
    with docker_registry(directory, tls=tls, probe=probe, extra=files) as registry:
        yield registry


@contextlib.contextmanager
def crane_registry(directory: Path) -> Iterator[Registry]:
    """Run the registry of go-containerregistry, without the referrers API and with few checks."""
    if not CRANE.exists():
        raise RuntimeError(f"{CRANE} is missing: run `make system`")
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    host = f"127.0.0.1:{port}"
    command = [CRANE, "registry", "serve", "--address", host]
    try:
        with process(command, directory / "log", answers(host)):
            yield Registry(host, directory)
    finally:
        give_back(port)
