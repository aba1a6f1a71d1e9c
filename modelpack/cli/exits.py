"""Exit codes: the one place where errors become numbers. Documented in docs/cli.md."""

import signal
from typing import Final

from modelpack.oci.layout_disk import DamagedLayout
from modelpack.spec import errors

OK: Final = 0
BUG: Final = 1
USAGE: Final = 2
DIFFERENT: Final = 6  # `verify` found wrong bytes; the same number as corrupt transfers
INTERRUPTED: Final = 128 + signal.SIGINT
TERMINATED: Final = 128 + signal.SIGTERM

# The first match counts, so that leaves stand before their families.
_CODES: Final[tuple[tuple[type[errors.ModelpackError], int], ...]] = (
    (DamagedLayout, 6),
    (errors.TargetConflict, 9),
    (errors.InputError, USAGE),
    (errors.NotFound, 3),
    (errors.Unauthorized, 4),
    (errors.Denied, 4),
    (errors.RegistryError, 5),
    (errors.IntegrityError, 6),
    (errors.ArtifactError, 7),
    (errors.DiskError, 8),
)

MEANINGS: Final = {
    OK: "done",
    BUG: "a bug in modelpack",
    USAGE: "wrong usage, or an input that cannot be used",
    3: "the repository, tag, manifest or file does not exist",
    4: "credentials are missing, wrong or not sufficient",
    5: "the registry cannot be reached, refuses, or answers nonsense",
    6: "bytes are not what their digest says",
    7: "the artifact cannot be used, or is hostile",
    8: "this machine's disk: full, read-only, failing",
    9: "the target holds files that are not the model's, or is in use",
    INTERRUPTED: "interrupted (Ctrl-C); the same command continues",
    TERMINATED: "terminated (SIGTERM); the same command continues",
}


def exit_code(error: errors.ModelpackError) -> int:
    """Return the exit code of an error."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return BUG
