"""Every error a caller may meet.

    ModelpackError
    ├── InputError              what the caller gave cannot be used
    │   ├── BadReference        not a reference
    │   ├── BadSource           a path that cannot be packed
    │   ├── BadHeader           a tensor file whose header is not what its format says
    │   └── TargetConflict      a pull would destroy what is not the model's, or another pull runs
    ├── ArtifactError           what was published cannot be used, or is hostile
    │   ├── BadManifest, BadIndex, HostilePath, LimitExceeded, Unsupported
    ├── IntegrityError          bytes are not what their digest says
    ├── RegistryError           the other side
    │   ├── NotFound, Unauthorized, Denied, Rejected
    │   ├── ProtocolViolation   an answer that the specification does not allow
    │   ├── RangeIgnored        the whole blob came instead of the range
    │   └── Unavailable         unreachable, stalled, overloaded; `retry_after` in seconds
    └── DiskError               this machine's storage

`permanent` says whether the same request can ever succeed; retry and failover read it and nothing
else. `side` names the party at fault. `hint` is the next step for a person. Exit codes are assigned
in one place, `modelpack.cli.exits`.
"""


class ModelpackError(Exception):
    """An error with one line for a person: the object, what was expected, the next step."""

    side: str = "modelpack"
    permanent: bool = True

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InputError(ModelpackError):
    """What the caller gave cannot be used."""

    side = "input"


class BadReference(InputError):
    """Not a reference."""


class BadSource(InputError):
    """A path that cannot be packed."""


class BadHeader(InputError):
    """A tensor file whose header is not what its format says."""

    def __init__(self, file: str, field: str, problem: str, *, hint: str = "") -> None:
        super().__init__(f"{file}: {field}: {problem}", hint=hint)
        self.file = file
        self.field = field


class TargetConflict(InputError):
    """A pull would destroy what is not the model's, or another pull is at work there."""


class ArtifactError(ModelpackError):
    """What was published cannot be used, or is hostile."""

    side = "artifact"


class BadManifest(ArtifactError):
    """A manifest or config that is not what the specification says."""


class BadIndex(ArtifactError):
    """A chunk index that contradicts itself or its manifest."""


class HostilePath(ArtifactError):
    """A path inside an artifact that must not be created."""


class LimitExceeded(ArtifactError):
    """Something from outside is larger than any honest one."""


class Unsupported(ArtifactError):
    """An artifact of a kind that cannot be unpacked here."""


class IntegrityError(ModelpackError):
    """Bytes are not what their digest says. Another source, or another try, may have them right."""

    side = "registry"
    permanent = False

    def __init__(self, what: str, *, expected: str, got: str, source: str, hint: str = "") -> None:
        super().__init__(f"{what}: expected {expected}, got {got} from {source}", hint=hint)
        self.expected = expected
        self.got = got
        self.source = source


class RegistryError(ModelpackError):
    """The other side: a registry, a bucket, a layout."""

    side = "registry"


class NotFound(RegistryError):
    """The repository, tag, manifest or blob does not exist (or is hidden from this caller)."""


class Unauthorized(RegistryError):
    """Credentials are missing or wrong (401)."""


class Denied(RegistryError):
    """Credentials are known but not allowed to do this (403)."""


class Rejected(RegistryError):
    """The registry refuses the request for good (other 4xx)."""


class ProtocolViolation(RegistryError):
    """An answer that the specification does not allow: wrong range, wrong length, not JSON."""

    permanent = False


class RangeIgnored(ProtocolViolation):
    """The whole blob came instead of the range that was asked for."""


class Unavailable(RegistryError):
    """Unreachable, stalled or overloaded; may work later."""

    permanent = False

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class DiskError(ModelpackError):
    """This machine's storage: full, read-only, failing, not permitted."""

    side = "disk"
