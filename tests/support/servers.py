"""Real servers on free ports: docker-registry in several configurations, crane's registry, S3."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
CRANE = ROOT / ".cache/bin/crane"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _die_with_parent() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextlib.contextmanager
def process(command, log: Path, ready, **options):
    """Run a server until the block ends; its log is shown if it does not come up."""
    with log.open("wb") as output:
        running = subprocess.Popen(
            [str(part) for part in command], stdout=output, stderr=output,
            preexec_fn=_die_with_parent, **options,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not ready():
            if running.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.02)
        yield running
    finally:
        running.terminate()
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def listening(port: int):
    def ready() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    return ready


@dataclass
class Registry:
    """A running registry, and its storage to damage."""

    host: str
    storage: Path
    username: str = ""
    password: str = ""
    extra: dict = field(default_factory=dict)

    def blob_path(self, digest: str) -> Path:
        hexdigest = digest.partition(":")[2]
        return self.storage / f"docker/registry/v2/blobs/sha256/{hexdigest[:2]}/{hexdigest}/data"

    def flip_bit(self, digest: str, offset: int) -> None:
        with self.blob_path(digest).open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))

    def truncate(self, digest: str, size: int) -> None:
        os.truncate(self.blob_path(digest), size)


@contextlib.contextmanager
def docker_registry(directory: Path, *, port: int = 0, auth: str = "", tls: str = "", **extra):
    """docker-registry 2.8.2; `auth` and `tls` are YAML for those sections."""
    port = port or free_port()
    storage = directory / "storage"
    config = directory / "registry.yml"
    directory.mkdir(parents=True, exist_ok=True)
    config.write_text(
        "version: 0.1\nlog: {level: warn, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {storage}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}', secret: test{tls}}}\n{auth}"
    )
    with process(
        ["docker-registry", "serve", config], directory / "log", listening(port),
        env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
    ):  # fmt: skip
        yield Registry(f"127.0.0.1:{port}", storage, **extra)


@contextlib.contextmanager
def htpasswd_registry(directory: Path):
    directory.mkdir(parents=True, exist_ok=True)
    line = subprocess.run(
        ["htpasswd", "-Bbn", "ann", "s3cret:word"], check=True, capture_output=True, text=True
    ).stdout
    (directory / "htpasswd").write_text(line)
    auth = f"auth: {{htpasswd: {{realm: test, path: {directory / 'htpasswd'}}}}}\n"
    with docker_registry(directory, auth=auth, username="ann", password="s3cret:word") as registry:
        yield registry


@contextlib.contextmanager
def tls_registry(directory: Path, *, client_certificates: bool = False):
    """A registry behind TLS; `extra` has ca, cert and key files of a client."""
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
    clients = f", clientcas: ['{files['ca']}']" if client_certificates else ""
    tls = f", tls: {{certificate: '{files['cert']}', key: '{files['key']}'{clients}}}"
    with docker_registry(directory, tls=tls, extra=files) as registry:
        yield registry


@contextlib.contextmanager
def crane_registry(directory: Path):
    """The registry of go-containerregistry, which has the referrers API."""
    if not CRANE.exists():
        raise RuntimeError(f"{CRANE} is missing: run `make system`")
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    with process(
        [CRANE, "registry", "serve", "--address", f"127.0.0.1:{port}"],
        directory / "log", listening(port),
    ):  # fmt: skip
        yield Registry(f"127.0.0.1:{port}", directory)


@dataclass
class S3:
    """A running S3 server."""

    endpoint: str
    environment: dict


@contextlib.contextmanager
def s3_server(directory: Path):
    """SeaweedFS with all its services on free ports."""
    directory.mkdir(parents=True, exist_ok=True)
    weed = Path(sys.executable).with_name("weed")
    services = ("master", "volume", "filer", "s3", "admin")
    ports = {name: free_port() for name in services}
    # gRPC ports default to ten thousand above; name them, or two servers collide.
    grpc = {name: free_port() for name in services}
    keys = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret"}
    command = [
        weed, "mini", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.telemetry=false", "-webdav=false", "-admin.ui=false",
        *(f"-{name}.port={port}" for name, port in ports.items()),
        *(f"-{name}.port.grpc={port}" for name, port in grpc.items()),
    ]  # fmt: skip
    environment = {
        **keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip

    def ready() -> bool:
        """The S3 service listens long before its volumes take the first object."""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        client = boto3.client(
            "s3", endpoint_url=environment["AWS_ENDPOINT_URL"], region_name="us-east-1",
            aws_access_key_id="testkey", aws_secret_access_key="testsecret",
            config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}),
        )  # fmt: skip
        try:
            bucket = f"ready-{os.urandom(4).hex()}"
            client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key="x", Body=b"x")
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()
        return True

    with process(command, directory / "log", ready, env={**os.environ, **keys}):
        yield S3(environment["AWS_ENDPOINT_URL"], environment)
