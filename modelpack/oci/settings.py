"""How to connect: what the command line, or a daemon's configuration, decides."""

from dataclasses import dataclass, field
from pathlib import Path

from modelpack.oci.credentials import Credentials, DockerCredentials
from modelpack.oci.guard import Guard
from modelpack.oci.retry import RetryPolicy
from modelpack.oci.upload_log import MemoryUploadLog, UploadLog


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectSettings:
    """Timeouts in seconds. `plain_http` is about registries that are not on loopback.

    `stall_seconds` is the longest wait for a byte, and the window in which fewer than
    `trickle_bytes` per second count as a stall too. `guard` is asked before every connection;
    through a proxy only about hosts that are addresses: names are the proxy's to resolve.
    """

    plain_http: bool = False
    insecure: bool = False
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    connect_seconds: float = 10
    stall_seconds: float = 60
    trickle_bytes: int = 4096
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    credentials: Credentials = field(default_factory=DockerCredentials)
    uploads: UploadLog = field(default_factory=MemoryUploadLog)
    guard: Guard | None = None
