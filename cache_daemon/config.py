"""Settings: flags > environment > file > defaults; frozen after start."""

import os
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.listen and self.token_file is None:
            raise ValueError("listen needs token_file: the cluster is not trusted without it")
        for name, value in (("listen", self.listen), ("mirror", self.mirror)):
            host, _, port = value.rpartition(":")
            if value and not (host and port.isdigit() and int(port) < 1 << 16):
                raise ValueError(f"{name} is {value!r}; expected HOST:PORT")
        collector = urlsplit(self.otlp_endpoint)
        if self.otlp_endpoint and not (
            collector.scheme in ("http", "https") and collector.hostname
        ):
            raise ValueError("otlp_endpoint: expected http://HOST:PORT or https://HOST:PORT")
        if collector.username:
            raise ValueError("otlp_endpoint: no credentials here; see OTEL_EXPORTER_OTLP_HEADERS")
        if self.mirror and not self.mirror_for:
            raise ValueError("mirror needs mirror_for: the repositories that it mirrors")
        return self

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


def read_token(path: Path) -> SecretStr:
    """Read the token of the cluster; one line, at least 16 characters."""
    token = path.read_text().strip()
    if len(token) < 16 or not token.isascii() or not token.isprintable():
        raise ValueError(f"{path}: expected one line of at least 16 printable characters")
    return SecretStr(token)
