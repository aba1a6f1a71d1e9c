"""Repositories that are closed, and credentials that a test names."""

import pytest

from modelpack.oci.credentials import Credential
from modelpack.oci.remote import RemoteRepository
from tests.conftest import fast


class Known:
    """The same credential for every registry."""

    def __init__(self, *arguments, **named) -> None:
        self.credential = Credential(*arguments, **named)

    def get(self, registry, repository):
        return self.credential


@pytest.fixture
def remote(name):
    """Open repositories by host; each is closed when the test ends."""
    opened = []

    def connect(host, repository=None, **changes):
        opened.append(
            RemoteRepository(host, name if repository is None else repository, fast(**changes))
        )
        return opened[-1]

    yield connect
    for repository in opened:
        repository.close()
