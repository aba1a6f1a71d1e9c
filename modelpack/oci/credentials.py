"""Credentials: Docker's config.json, containers' auth.json, and credential helpers.

https://docs.docker.com/reference/cli/docker/login/ and containers-auth.json(5). Read from the first
place that knows the registry; written where `docker login` would write.
"""

import base64
import binascii
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from modelpack.spec.errors import InputError
from modelpack.spec.reference import DEFAULT_REGISTRY

_HUB_KEY: Final = "https://index.docker.io/v1/"
_TOKEN_USER: Final = "<token>"  # noqa: S105  # the helper protocol's name for "no user, a token"
_HELPER_SECONDS: Final = 30
_CONFIG_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """A user and a password, or an identity token. Never printed."""

    username: str = ""
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        return "Credential(...)"


class Credentials(Protocol):
    """Who we are, per registry and repository."""

    def get(self, registry: str, repository: str) -> Credential | None:
        """Return what to identify with, or None for anonymous access."""


class NoCredentials:
    """Always anonymous."""

    def get(self, registry: str, repository: str) -> Credential | None:  # noqa: ARG002
        """Return None."""
        return None


class DockerCredentials:
    """The files that docker, podman, skopeo and oras share."""

    def get(self, registry: str, repository: str) -> Credential | None:
        """Return the credential of the first file that has one (see Credentials).

        Raises InputError for a file that is not JSON or a helper that fails.
        """
        for path in _files():
            found = _from_config(_read(path), path, registry, repository)
            if found is not None:
                return found
        return None

    def store(self, registry: str, credential: Credential) -> str:
        """Keep a credential, with the helper that the config names or in the file.

        Returns where, for people. The file keeps everything else it holds, and is 0600.
        """
        path = docker_config()
        config = _read(path)
        helper = _helper(config, registry)
        if helper:
            entry = {
                "ServerURL": _server(registry),
                "Username": credential.username or _TOKEN_USER,
                "Secret": credential.password or credential.identity_token,
            }
            _run_helper(helper, "store", json.dumps(entry))
            return f"docker-credential-{helper}"
        pair = f"{credential.username}:{credential.password}".encode()
        config.setdefault("auths", {})[_server(registry)] = {
            "auth": base64.b64encode(pair).decode()
        }
        _write(path, config)
        return str(path)

    def erase(self, registry: str) -> bool:
        """Forget a registry; returns whether anything was known."""
        path = docker_config()
        config = _read(path)
        helper = _helper(config, registry)
        known = self.get(registry, "") is not None
        if helper and known:
            _run_helper(helper, "erase", _server(registry))
        auths = config.get("auths", {})
        mine = [key for key in auths if _host(key) == registry]
        for key in mine:
            del auths[key]
        if mine:
            _write(path, config)
        return known


def docker_config() -> Path:
    """Return where Docker's configuration is: $DOCKER_CONFIG or ~/.docker."""
    directory = os.environ.get("DOCKER_CONFIG")
    return (Path(directory) if directory else Path.home() / ".docker") / "config.json"


def _files() -> Iterator[Path]:
    explicit = os.environ.get("REGISTRY_AUTH_FILE")
    if explicit:
        yield Path(explicit)
    yield docker_config()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        yield Path(runtime) / "containers" / "auth.json"
    yield Path.home() / ".config" / "containers" / "auth.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _CONFIG_BYTES:
            raise InputError(f"{path}: larger than any credentials file")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}", hint="mend or remove it") from None
    if not isinstance(found, dict) or not isinstance(found.get("auths", {}), dict):
        raise InputError(f"{path}: expected an object with 'auths'", hint="mend or remove it")
    return found


def _write(path: Path, config: dict[str, Any]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".config.json.")
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(config, file, indent="\t")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path.resolve())
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _from_config(
    config: dict[str, Any], path: Path, registry: str, repository: str
) -> Credential | None:
    entry = _entry(config.get("auths", {}), registry, repository)
    # An empty entry is what Docker writes when a helper keeps the secret.
    found = _decode(entry, path, registry) if entry else None
    if found is not None:
        return found
    helper = _helper(config, registry)
    return _from_helper(helper, registry) if helper else None


def _entry(auths: dict[str, Any], registry: str, repository: str) -> dict[str, Any]:
    """Return the entry of the longest prefix: registry/org/repo, registry/org, registry."""
    parts = [registry, *repository.split("/")] if repository else [registry]
    for length in range(len(parts), 0, -1):
        entry = auths.get("/".join(parts[:length]))
        if isinstance(entry, dict):
            return entry
    return next(
        (e for key, e in auths.items() if _host(key) == registry and isinstance(e, dict)), {}
    )


def _decode(entry: dict[str, Any], path: Path, registry: str) -> Credential | None:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credential(identity_token=token)
    text = entry.get("auth")
    if isinstance(text, str) and text:
        try:
            username, colon, password = (
                base64.b64decode(text, validate=True).decode().partition(":")
            )
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise InputError(
                f"{path}: the entry of {registry} cannot be decoded",
                hint=f"modelpack login {registry}",
            )
        return Credential(username, password.rstrip("\0"))
    if isinstance(entry.get("username"), str) and isinstance(entry.get("password"), str):
        return Credential(entry["username"], entry["password"])
    return None


def _helper(config: dict[str, Any], registry: str) -> str:
    helpers = config.get("credHelpers")
    if isinstance(helpers, dict):
        for key, helper in helpers.items():
            if _host(key) == registry and isinstance(helper, str):
                return helper
    store = config.get("credsStore")
    return store if isinstance(store, str) else ""


def _from_helper(helper: str, registry: str) -> Credential | None:
    text = _run_helper(helper, "get", _server(registry))
    if text is None:
        return None
    try:
        answer = json.loads(text)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"docker-credential-{helper}: its answer is not what it should be"
        ) from None
    if username == _TOKEN_USER:
        return Credential(identity_token=secret)
    return Credential(username, secret) if secret else None


def _run_helper(helper: str, verb: str, text: str) -> str | None:
    """Run a credential helper; None if it says that it does not know the registry."""
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, verb], input=text, capture_output=True, text=True, check=False,
            timeout=_HELPER_SECONDS,
        )  # fmt: skip
    except FileNotFoundError:
        raise InputError(
            f"{program}: not found in PATH, but {docker_config()} names it",
            hint="install it, or remove it from the file",
        ) from None
    except subprocess.TimeoutExpired:
        raise InputError(f"{program}: no answer within {_HELPER_SECONDS} s") from None
    if done.returncode:
        message = (done.stdout or done.stderr).strip()
        if "not found" in message.lower():
            return None
        raise InputError(f"{program} {verb}: {message[:200] or f'exit code {done.returncode}'}")
    return done.stdout


def _server(registry: str) -> str:
    return _HUB_KEY if registry == DEFAULT_REGISTRY else registry


def _host(key: str) -> str:
    """Reduce a key of `auths` to a host, as Docker does: https://host/v1/ means host."""
    host = key.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return DEFAULT_REGISTRY if host in ("index.docker.io", "registry-1.docker.io") else host
