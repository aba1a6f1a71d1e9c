"""Credentials: Docker's config.json, containers' auth.json, and credential helpers.

https://docs.docker.com/reference/cli/docker/login/ and containers-auth.json(5). Read from the first
place that knows the registry; written where `docker login` would write.
"""

import base64
import binascii
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from modelpack.oci.credential_helper import CredentialHelper, Kept
from modelpack.spec.errors import DiskError, InputError
from modelpack.spec.reference import DEFAULT_REGISTRY

_HUB_KEY: Final = "https://index.docker.io/v1/"
_CONFIG_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """A user and a password, an identity token, or a token for the registry itself. Never printed.

    An identity token is shown to a token server, a registry token goes to the registry as it is.
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

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

        Returns where, for people. The file keeps everything else it holds, and is 0600. Raises
        InputError, DiskError.
        """
        path = docker_config()
        config = _read_own(path)
        helper = _helper(config, registry)
        if helper:
            secret = credential.identity_token or credential.password
            helper.store(_server(registry), Kept(credential.username, secret))
            return helper.program
        pair = f"{credential.username}:{credential.password}".encode()
        entry = {"auth": base64.b64encode(pair).decode()}
        if credential.identity_token:
            entry["identitytoken"] = credential.identity_token
        config["auths"] = {**(config.get("auths") or {}), _server(registry): entry}
        _write(path, config)
        return str(path)

    def erase(self, registry: str) -> bool:
        """Forget what `store` keeps; returns whether anything was known.

        What another program keeps elsewhere, podman in its auth.json, is left to it.
        """
        path = docker_config()
        config = _read_own(path)
        helper = _helper(config, registry)
        known = helper is not None and helper.get(_server(registry)) is not None
        if helper and known:
            helper.erase(_server(registry))
        auths = config.get("auths") or {}
        kept = {k: v for k, v in auths.items() if not (_is_host(k) and _host(k) == registry)}
        if len(kept) == len(auths):
            return known
        _write(path, {**config, "auths": kept})
        return True


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


def _read_own(path: Path) -> dict[str, Any]:
    """Read the file that is about to be replaced: what cannot be read must not be lost."""
    try:
        path.stat()
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}",
            hint="make it yours, or set DOCKER_CONFIG to another directory",
        ) from error
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _CONFIG_BYTES:
            raise InputError(f"{path}: larger than any credentials file")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:  # not there, or not ours to read
        return {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}", hint="mend or remove it") from None
    if not isinstance(found, dict) or not isinstance(found.get("auths") or {}, dict):
        raise InputError(f"{path}: expected an object with 'auths'", hint="mend or remove it")
    return found


def _write(path: Path, config: dict[str, Any]) -> None:
    """Replace the file at once, never half-written; a link to it stays one."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = path.resolve()
        fd, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(config, file, indent="\t")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DiskError(
            f"{path}: credentials cannot be written: {error.strerror}",
            hint="set DOCKER_CONFIG to a directory that you may write to",
        ) from error


def _from_config(
    config: dict[str, Any], path: Path, registry: str, repository: str
) -> Credential | None:
    """Look up the nearest: an entry for this repository or its parents, a helper, the registry's.

    A helper comes before the registry's entry, as in Docker: where both are, the entry is stale.
    """
    auths = config.get("auths") or {}
    entry = _namespaced(auths, registry, repository)
    found = _decode(entry, path, registry) if entry else None
    helper = None if found else _helper(config, registry)
    kept = helper.get(_server(registry)) if helper else None
    if kept is not None:
        if not kept.username:
            return Credential(identity_token=kept.secret)
        return Credential(kept.username, kept.secret)
    return found or _decode(_registry_entry(auths, registry), path, registry)


def _namespaced(auths: dict[str, Any], registry: str, repository: str) -> dict[str, Any]:
    """Return the entry of the longest prefix: registry/org/repo, then registry/org."""
    parts = [registry, *repository.split("/")]
    for length in range(len(parts), 1, -1):
        entry = auths.get("/".join(parts[:length]))
        if isinstance(entry, dict):
            return entry
    return {}


def _registry_entry(auths: dict[str, Any], registry: str) -> dict[str, Any]:
    exact = auths.get(_server(registry))
    if isinstance(exact, dict):
        return exact
    keys = (key for key in auths if _is_host(key) and _host(key) == registry)
    return next((auths[key] for key in keys if isinstance(auths[key], dict)), {})


def _decode(entry: dict[str, Any], path: Path, registry: str) -> Credential | None:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credential(identity_token=token)
    token = entry.get("registrytoken")
    if isinstance(token, str) and token:
        return Credential(registry_token=token)
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


def _helper(config: dict[str, Any], registry: str) -> CredentialHelper | None:
    helpers = config.get("credHelpers")
    for key, name in helpers.items() if isinstance(helpers, dict) else ():
        if _host(key) == registry and isinstance(name, str):
            return CredentialHelper(name) if name else None
    store = config.get("credsStore")
    return CredentialHelper(store) if isinstance(store, str) and store else None


def _server(registry: str) -> str:
    return _HUB_KEY if registry == DEFAULT_REGISTRY else registry


def _is_host(key: str) -> bool:
    """Whether a key is for a whole registry, and not for a namespace of it."""
    path = key.removeprefix("https://").removeprefix("http://").partition("/")[2]
    return path.strip("/") in ("", "v1", "v2")


def _host(key: str) -> str:
    """Reduce a key to a host, as Docker does: https://host/v1/ means host."""
    host = key.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return DEFAULT_REGISTRY if host in ("index.docker.io", "registry-1.docker.io") else host
