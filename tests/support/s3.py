"""A real S3 server: SeaweedFS, all of whose services listen on ports of their own."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.processes import free_port, give_back, process

_SERVICES = ("master", "volume", "filer", "s3", "admin")
_KEYS = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret"}


@dataclass(frozen=True)
class S3:
    """A running S3 server; `environment` is what a client of it has to be told."""

    endpoint: str
    environment: dict[str, str] = field(repr=False)

    def client(self, **options: object):
        """Return a boto3 client that knows nothing but this server; it is the caller's to close."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.environment["AWS_DEFAULT_REGION"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            config=Config(**options),
        )


def _takes_objects(server: S3) -> bool:
    """Whether an object can be stored; the S3 service listens long before its volumes do."""
    from botocore.exceptions import BotoCoreError, ClientError

    with contextlib.closing(
        server.client(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1})
    ) as client:
        bucket = f"ready-{os.urandom(4).hex()}"
        try:
            client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key="x", Body=b"x")
            client.delete_object(Bucket=bucket, Key="x")
            client.delete_bucket(Bucket=bucket)
        except (BotoCoreError, ClientError):
            return False
    return True


@contextlib.contextmanager
def s3_server(directory: Path) -> Iterator[S3]:
    """Run SeaweedFS with its data and log in `directory`, until the block ends."""
    directory.mkdir(parents=True, exist_ok=True)
    weed = Path(sys.executable).with_name("weed")
    ports = {name: free_port() for name in _SERVICES}
    # gRPC ports default to ten thousand above; name them, or two servers collide.
    grpc = {name: free_port() for name in _SERVICES}
    # All of these are on by default: on fixed ports, or telling the network about us.
    silent = ["-master.telemetry=false", "-webdav=false", "-admin.ui=false",
              "-s3.port.iceberg=0", "-s3.port.lance=0"]  # fmt: skip
    command = [
        weed, "mini", f"-dir={directory / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *silent,
        *(f"-{name}.port={port}" for name, port in ports.items()),
        *(f"-{name}.port.grpc={port}" for name, port in grpc.items()),
    ]  # fmt: skip
    (directory / "data").mkdir(exist_ok=True)
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    server = S3(endpoint, {
        **_KEYS, "AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    })  # fmt: skip
    try:
        with process(
            command, directory / "log", lambda: _takes_objects(server), env={**os.environ, **_KEYS}
        ):
            yield server
    finally:
        give_back(*ports.values(), *grpc.values())
