"""In which repositories of a registry a blob is known to be: where it can be mounted from."""

from collections.abc import Sequence

from modelpack.spec.reference import Reference
from modelpack.state.database import Database

_TRIED = 3  # mounts are cheap, but each is a request


class Homes:
    """The homes of blobs in one registry, except the repository at hand."""

    def __init__(self, database: Database, reference: Reference, also: Sequence[str] = ()) -> None:
        """Remember for `reference`; `also` names repositories to try for every blob."""
        self._database = database
        self._reference = reference
        self._also = tuple(also)

    def of(self, digest: str) -> list[str]:
        """Return repositories that may hold the blob; being wrong costs one request."""
        if not self._reference.registry:
            return []
        rows = self._database.query(
            "SELECT repository FROM homes WHERE registry=? AND digest=? AND repository<>? LIMIT ?",
            self._reference.registry, digest, self._reference.repository, _TRIED,
        )  # fmt: skip
        return list(dict.fromkeys((*self._also, *(str(row[0]) for row in rows))))

    def add(self, digest: str) -> None:
        """Remember that the repository at hand holds the blob."""
        if self._reference.registry:
            self._database.write(
                "INSERT OR IGNORE INTO homes VALUES (?, ?, ?)",
                self._reference.registry, digest, self._reference.repository,
            )  # fmt: skip
