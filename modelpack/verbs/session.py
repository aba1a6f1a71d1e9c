"""What every verb needs: connections, memory between runs, somebody to report to."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from modelpack.oci.connect import ConnectSettings, open_repository
from modelpack.spec.progress import QUIET, Reporter
from modelpack.spec.reference import Reference
from modelpack.spec.registry import Repository
from modelpack.state.database import Database
from modelpack.state.digests import DigestCache


@dataclass(frozen=True, slots=True)
class Session:
    """One run of the program. `jobs` is the number of parallel transfers."""

    connect: ConnectSettings
    database: Database
    cache: DigestCache
    jobs: int = 4
    reporter: Reporter = field(default=QUIET)

    @contextmanager
    def repository(self, reference: Reference) -> Iterator[Repository]:
        """Open the repository of a reference, and close it."""
        repository = open_repository(reference, self.connect)
        try:
            yield repository
        finally:
            repository.close()
