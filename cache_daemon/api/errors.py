"""Errors of the daemon, beside those of `modelpack.spec.errors`.

ModelpackError
└── CacheError
    ├── NoSuchModel, NoSuchLease
    ├── InUse              leased, pinned or in flight: it stays
    ├── NoSpace            does not fit; `shortfall` in bytes
    ├── Draining           nothing new is taken
    ├── Refused            the artifact is not what it says, or policy does not want it
    ├── Cancelled          nobody waits for it any more
    └── BadStore           the directory is not a store, or of another time
"""

from modelpack.spec.errors import ModelpackError


class CacheError(ModelpackError):
    """The cache cannot do what was asked."""

    side = "cache"


class NoSuchModel(CacheError):
    """No snapshot and no fetch has this key."""


class NoSuchLease(CacheError):
    """No lease has this id."""


class InUse(CacheError):
    """Leased, pinned or in flight: it stays where it is."""


class NoSpace(CacheError):
    """Does not fit, whatever may be evicted; `limit` is what it does not fit into."""

    permanent = False

    def __init__(
        self, message: str, *, shortfall: int, hint: str = "", limit: str = "space"
    ) -> None:
        super().__init__(message, hint=hint)
        self.shortfall = shortfall
        self.limit = limit


class Draining(CacheError):
    """The node is being drained: nothing new is taken."""

    permanent = False


class Refused(CacheError):
    """The artifact is not what it says it is, or the operator's policy does not accept it."""


class Cancelled(CacheError):
    """Nobody waits for it any more."""


class BadStore(CacheError):
    """The directory is not a store of ours, is of another version, or is in use."""
