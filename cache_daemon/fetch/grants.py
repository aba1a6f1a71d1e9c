"""Grants: that some identity may read a repository and digest, with an expiry. Only in memory."""

import hashlib
import hmac
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from modelpack.oci.credentials import Credential

_MOST: Final = 10_000


@dataclass(frozen=True, slots=True)
class Grant:
    """What somebody was found to be allowed: a snapshot, checked at a time (seconds)."""

    repository: str
    digest: str
    key: str
    checked: float


class Grants:
    """Remembers who was allowed what. Thread-safe.

    Identities are kept as a keyed hash, so that a dump of this process holds no credential longer
    than a request needs it.
    """

    def __init__(
        self, seconds: float, max_stale: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """A grant holds for `seconds`, and for `max_stale` while the registry is unreachable."""
        self._seconds = seconds
        self._max_stale = max_stale
        self._clock = clock
        self._secret = os.urandom(32)
        self._lock = threading.Lock()
        self._held: dict[bytes, Grant] = {}

    def identity(self, credential: Credential | None, *what: str) -> bytes:
        """Return the name under which somebody's right to something is remembered."""
        mac = hmac.new(self._secret, digestmod=hashlib.sha256)
        who = credential or Credential()
        secrets = (who.username, who.password, who.identity_token, who.registry_token)
        for part in (*secrets, *what):
            mac.update(len(part.encode()).to_bytes(8, "big") + part.encode())
        return mac.digest()

    def fresh(self, identity: bytes) -> Grant | None:
        """Return a grant that holds without asking anybody."""
        return self._younger(identity, self._seconds)

    def stale(self, identity: bytes) -> Grant | None:
        """Return a grant that holds while nobody can be asked."""
        return self._younger(identity, self._max_stale)

    def remember(self, identity: bytes, repository: str, digest: str, key: str) -> None:
        """The registry has just said yes."""
        with self._lock:
            self._held.pop(identity, None)
            self._held[identity] = Grant(repository, digest, key, self._clock())
            while len(self._held) > _MOST:
                del self._held[next(iter(self._held))]

    def forget(self, identity: bytes) -> None:
        """The registry has just said no."""
        with self._lock:
            self._held.pop(identity, None)

    def revoke(self, repository: str = "") -> int:
        """Forget everybody's grants, or those for a repository; returns how many there were."""
        with self._lock:
            gone = [k for k, one in self._held.items() if repository in ("", one.repository)]
            for identity in gone:
                del self._held[identity]
            return len(gone)

    def _younger(self, identity: bytes, seconds: float) -> Grant | None:
        with self._lock:
            grant = self._held.get(identity)
        return grant if grant and self._clock() - grant.checked < seconds else None
