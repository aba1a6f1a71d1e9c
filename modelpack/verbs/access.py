"""`modelpack login` and `modelpack logout`."""

import dataclasses

import msgspec

from modelpack.oci.credentials import Credential, DockerCredentials
from modelpack.oci.remote import RemoteRepository
from modelpack.spec.errors import InputError
from modelpack.spec.reference import Reference
from modelpack.verbs.session import Session


class Login(msgspec.Struct, frozen=True):
    """Where the credentials were put."""

    registry: str
    username: str
    kept_in: str


def log_in(registry: str, username: str, password: str, session: Session) -> Login:
    """Try the credentials, then keep them; raises Unauthorized if the registry refuses them."""
    host = _host(registry)
    if not username or not password:
        raise InputError(f"{registry}: a user name and a password are needed")
    credential = Credential(username, password)
    settings = dataclasses.replace(session.connect, credentials=_Given(credential))
    repository = RemoteRepository(host, "", settings)
    try:
        repository.ping()
    finally:
        repository.close()
    return Login(host, username, DockerCredentials().store(host, credential))


def log_out(registry: str, session: Session) -> bool:  # noqa: ARG001  # all verbs take one
    """Forget the credentials; returns whether there were any."""
    return DockerCredentials().erase(_host(registry))


class _Given:
    """Credentials that were just typed."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    def get(self, registry: str, repository: str) -> Credential:  # noqa: ARG002
        return self._credential


def _host(registry: str) -> str:
    host = registry.removeprefix("https://").removeprefix("http://").rstrip("/")
    return Reference.parse(f"{host}/x").registry
