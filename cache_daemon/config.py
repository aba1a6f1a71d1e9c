"""Settings: flags > environment > file > defaults; frozen after start."""

import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from modelpack.oci.guard import literal_address


class Settings(BaseSettings):
    """What an operator decides. Environment variables are MODELPACK_CACHE_<NAME>."""

    model_config = SettingsConfigDict(
        env_prefix="MODELPACK_CACHE_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="modelpack-cache-daemon",
        cli_hide_none_type=True,
    )

    root: Path = Field(Path("/var/lib/modelpack"), description="where models are kept")
    socket: Path = Field(Path("/run/modelpack/cache.sock"), description="control API for this node")
    listen: str = Field(
        "", description="HOST:PORT of the control API for the cluster; off if empty"
    )
    token_file: Path | None = Field(
        None, description="file with the token that --listen demands as Authorization: Bearer"
    )
    tls_cert: Path | None = Field(None, description="certificate of --listen, PEM with its chain")
    tls_key: Path | None = Field(None, description="its key, PEM")
    client_ca: Path | None = Field(
        None, description="authority whose certificates clients of --listen must have"
    )
    insecure_listen: bool = Field(
        False, description="send the token over the network without TLS: anybody there can read it"
    )
    registries: list[str] = Field(
        [], description="allowed registries, HOST[:PORT][/PREFIX]; empty allows all public ones"
    )
    trusted_hosts: list[str] = Field(
        [],
        description="HOST[:PORT] that may be on this machine: token servers, object storage;"
        " registries named above are",
    )
    layouts: list[Path] = Field([], description="directories below which oci:DIR is allowed")
    plain_http: bool = Field(False, description="speak HTTP to registries that are not loopback")
    ca_file: Path | None = Field(None, description="additional certificate authority")
    site_stores: list[str] = Field(
        [],
        description="OCI layouts that are asked for blobs before the registry: s3://BUCKET/PREFIX "
        "or oci:DIR",
    )
    slots: int = Field(
        2, ge=1, le=64, description="fetches at a time, besides one for waiting pods"
    )
    jobs: int = Field(4, ge=1, le=64, description="connections per fetch")
    connections_per_source: int = Field(
        8, ge=1, le=256, description="streams at once from one registry; half are kept for pods"
    )
    bytes_per_second: int = Field(
        0, ge=0, description="bytes that may come from one registry; 0 for no bound"
    )
    prefetch_rate_share: float = Field(
        0.25, ge=0, le=1, description="share of the bytes that prefetches get beside a pod's fetch"
    )
    keep_free: float = Field(
        0.18,
        ge=0,
        lt=1,
        description="share of the disk that stays free, above kubelet's thresholds",
    )
    most: int = Field(0, ge=0, description="bytes that the cache may take at most; 0 for no bound")
    namespace_bytes: dict[str, int] = Field(
        {}, description='quotas by namespace, as JSON: {"team-a": 500000000000, "*": 100000000000}'
    )
    prefetch_share: float = Field(
        0.5, gt=0, le=1, description="share of the room for prefetches that nobody has used"
    )
    grace_seconds: float = Field(
        60.0, ge=0, description="how long a fetch goes on after the last waiter left"
    )

    grant_seconds: float = Field(
        600.0, ge=0, description="how long a caller's right to a digest is remembered"
    )
    max_stale: float = Field(
        3600.0, ge=0, description="how long it counts while the registry cannot be reached"
    )
    scrub_bytes_per_second: int = Field(
        50_000_000, ge=0, description="how fast everything is read again; 0 for never"
    )
    scrub_hours: float = Field(24.0, gt=0, description="how often a round of that begins at most")
    chunk_digests: list[Literal["blake3", "sha256"]] = Field(
        ["blake3", "sha256"], min_length=1, description="accepted digests of chunks"
    )
    layer_check: Literal["later", "before"] = Field(
        "later",
        description="when the SHA-256 of whole layers is computed: before a model is shown, or "
        "later, and before the mirror offers them",
    )
    mirror: str = Field("", description="HOST:PORT of the registry mirror; off if empty")
    mirror_for: list[str] = Field(
        [], description="repositories that it mirrors, HOST[:PORT][/PREFIX]; all others are 404"
    )
    warm_keep_free: float = Field(
        0.1, ge=0, lt=1, description="share of the memory that warm-up leaves available"
    )
    log_format: Literal["", "text", "json"] = Field(
        "", description="how log lines look; if empty, text on a terminal and json elsewhere"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="what is logged; requests that change nothing are debug"
    )
    otlp_endpoint: str = Field(
        "", description="OpenTelemetry collector, http://HOST:4318; no traces if empty"
    )
    print_config: bool = Field(False, description="print the settings and exit")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        wrong = next(self._contradictions(), "")
        if wrong:
            raise ValueError(wrong)
        return self

    def _contradictions(self) -> Iterator[str]:
        """Yield what is wrong with the settings."""
        if self.mirror and not _is_address(self.mirror):
            yield f"mirror is {self.mirror!r}; expected HOST:PORT"
        if self.mirror and not self.mirror_for:
            yield "mirror needs mirror_for: the repositories that it mirrors"
        collector = urlsplit(self.otlp_endpoint)
        if self.otlp_endpoint and not (
            collector.scheme in ("http", "https") and collector.hostname
        ):
            yield "otlp_endpoint: expected http://HOST:PORT or https://HOST:PORT"
        if collector.username:
            yield "otlp_endpoint: no credentials here; see OTEL_EXPORTER_OTLP_HEADERS"
        yield from self._listening()

    def _listening(self) -> Iterator[str]:
        tls = self.tls_cert is not None
        if tls != (self.tls_key is not None):
            yield "tls_cert and tls_key need each other"
        if self.client_ca and not tls:
            yield "client_ca needs tls_cert and tls_key"
        if tls and self.insecure_listen:
            yield "tls_cert and insecure_listen contradict each other"
        if not self.listen:
            if tls or self.insecure_listen:
                yield "tls_cert and insecure_listen are about listen, which is off"
            return
        if not _is_address(self.listen):
            yield f"listen is {self.listen!r}; expected HOST:PORT"
        if not (self.token_file or self.client_ca):
            yield "listen needs token_file or client_ca: the cluster is not trusted without it"
        if not (tls or self.insecure_listen or _is_loopback(self.listen.rpartition(":")[0])):
            yield (
                "listen on other addresses than loopback needs tls_cert and tls_key: the token "
                "could be read on its way; insecure_listen allows it"
            )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags and arguments first, then the environment, then the file."""
        path = os.environ.get("MODELPACK_CACHE_CONFIG", "/etc/modelpack/cache.toml")
        file = TomlConfigSettingsSource(settings_cls, Path(path))
        return init_settings, env_settings, file


def _is_loopback(host: str) -> bool:
    address = literal_address(host)
    return bool(address) and ipaddress.ip_address(address).is_loopback


def read_token(path: Path) -> SecretStr:
    """Read the token of the cluster; one line, at least 16 characters."""
    token = path.read_text().strip()
    if len(token) < 16 or not token.isascii() or not token.isprintable():
        raise ValueError(f"{path}: expected one line of at least 16 printable characters")
    return SecretStr(token)


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit() and int(port) < 1 << 16
