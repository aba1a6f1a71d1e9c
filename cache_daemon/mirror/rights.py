"""Who may read what through the mirror: the registry says, with the caller's own token."""

from collections.abc import Iterable

from cache_daemon.fetch.grants import Grants
from cache_daemon.mirror.asked import Asked
from cache_daemon.mirror.upstream import Answer, Upstream
from modelpack.oci.credentials import Credential
from modelpack.spec.errors import RegistryError


class Rights:
    """Remembers what the registry allowed. Thread-safe."""

    def __init__(self, grants: Grants, upstream: Upstream) -> None:
        self._grants = grants
        self._upstream = upstream

    def fresh(self, asked: Asked, authorization: str) -> bool:
        """Whether the registry allowed this to the same caller a short while ago."""
        return (
            self._grants.fresh(self._identity(asked.name, asked.target, authorization)) is not None
        )

    def stale(self, asked: Asked, authorization: str) -> bool:
        """Whether it did so lately enough for a time in which it cannot be asked."""
        return (
            self._grants.stale(self._identity(asked.name, asked.target, authorization)) is not None
        )

    def allow(self, asked: Asked, authorization: str, targets: Iterable[str]) -> None:
        """The registry has just shown the caller these tags or digests of a repository."""
        for target in targets:
            identity = self._identity(asked.name, target, authorization)
            self._grants.remember(identity, asked.name, target, "")

    def refusal(self, asked: Asked, authorization: str) -> Answer | None:
        """Return what to refuse a blob with, or None: the caller may read it.

        A blob is asked for by name, so that the answer takes the same way whether we have it or
        not. Raises RegistryError where the registry cannot be asked and has not been lately.
        """
        if self.fresh(asked, authorization):
            return None
        try:
            answer = self._upstream.blob_exists(asked, authorization)
        except RegistryError:
            if self.stale(asked, authorization):
                return None
            raise
        if answer.allowed:
            self.allow(asked, authorization, [asked.target])
            return None
        self._grants.forget(self._identity(asked.name, asked.target, authorization))
        return answer

    def _identity(self, name: str, target: str, authorization: str) -> bytes:
        credential = Credential(registry_token=authorization)
        return self._grants.identity(credential, "mirror", name, target)
