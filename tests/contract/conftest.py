"""The backends: each must pass the same suite."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from cache_daemon.fetch.limit import Reader, SourceLimits, Sources
from modelpack.oci.layout import LayoutRepository
from modelpack.oci.memory import MemoryRegistry, MemoryRepository
from modelpack.oci.remote import RemoteRepository
from modelpack.spec.registry import Repository
from modelpack.transfer.stop import Stop
from tests.conftest import fast
from tests.contract.contents import MIB

KINDS = ("memory", "layout", "distribution", "crane", "limited")


class LimitedRepository(MemoryRepository):
    """One that is read as the daemon reads, within limits: few streams, small slices."""

    def __init__(self, registry, name, sources) -> None:
        super().__init__(registry, name)
        self._sources = sources

    def open(self, blob, offset, length):
        inner = MemoryRepository(self._registry, self.name)
        reader = Reader(Stop(), lambda: False)
        return self._sources.limited(inner, "memory", reader).open(blob, offset, length)


@dataclass(frozen=True)
class Backend:
    """One kind of registry. `connect` opens a repository by name; what it opens is closed."""

    kind: str
    name: str
    connect: Callable[[str], Repository]

    def again(self) -> Repository:
        """Open the repository as another client."""
        return self.connect(self.name)

    @property
    def ours(self) -> bool:
        """Whether the registry is our own code, and not only the client."""
        return self.kind in ("memory", "layout", "limited")


@pytest.fixture(params=KINDS)
def backend(request, tmp_path, name):
    opened = []
    kind = request.param
    if kind == "memory":
        registry = MemoryRegistry()

        def make(name: str) -> Repository:
            return MemoryRepository(registry, name)
    elif kind == "limited":
        registry = MemoryRegistry()
        sources = Sources(SourceLimits(connections=2, bytes_per_second=2_000 * MIB))

        def make(name: str) -> Repository:
            return LimitedRepository(registry, name, sources)
    elif kind == "layout":

        def make(name: str) -> Repository:
            return LayoutRepository(tmp_path / "layouts" / name)
    else:
        fixture = {"distribution": "registry", "crane": "crane_registry"}[kind]
        host = request.getfixturevalue(fixture).host
        settings = fast()

        def make(name: str) -> Repository:
            return RemoteRepository(host, name, settings)

    def connect(name: str) -> Repository:
        opened.append(make(name))
        return opened[-1]

    yield Backend(kind, name, connect)
    for repository in opened:
        repository.close()


@pytest.fixture
def repository(backend):
    return backend.again()


@pytest.fixture
def large(request):
    """20 MiB that no other test puts: registries share blobs among repositories."""
    return random.Random(request.node.nodeid).randbytes(20 * MIB)
