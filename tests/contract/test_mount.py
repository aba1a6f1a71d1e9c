from modelpack.oci.memory import MemoryRegistry
from modelpack.oci.remote import RemoteRepository
from modelpack.spec.manifest import describe
from modelpack.spec.progress import QUIET
from modelpack.spec.source import Bytes
from tests.conftest import fast

DATA = b"shared between repositories" * 1000
BLOB = describe("t", DATA)


def check(first, second, name):
    assert not second.mount_blob(BLOB, name)
    first.put_blob(Bytes(BLOB, DATA), QUIET)
    assert second.stat_blob(BLOB.digest) is None
    assert second.mount_blob(BLOB, name)
    assert second.stat_blob(BLOB.digest) == len(DATA)
    assert not second.mount_blob(BLOB, "no/such/repository")


def test_memory(name):
    """A blob of a neighbour is linked; one that is not there is not."""
    registry = MemoryRegistry()
    check(registry.repository(name), registry.repository(name + "-b"), name)


def test_docker_registry(registry, name):
    """The same over HTTP."""
    first = RemoteRepository(registry.host, name, fast())
    second = RemoteRepository(registry.host, name + "-b", fast())
    check(first, second, name)
    first.close()
    second.close()


def test_with_tokens(token_registry, name):
    """Mounting asks for a token with both scopes."""
    from modelpack.oci.credentials import Credential

    class Ann:
        def get(self, registry, repository):
            return Credential("ann", "s3cret")

    first = RemoteRepository(token_registry.host, name, fast(credentials=Ann()))
    second = RemoteRepository(token_registry.host, name + "-b", fast(credentials=Ann()))
    check(first, second, name)
    asked = token_registry.extra["tokens"].requests[-1]["query"]["scope"]
    assert f"repository:{name}-b:pull,push" in asked
    first.close()
    second.close()
