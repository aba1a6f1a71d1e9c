"""Sources in a row: what the site has first, the registry last.

Stores of the site hold blobs by digest and know of no rights: the registry has been asked for the
manifest with the caller's credential before anything is taken from them, and every chunk is checked
as if it came from the registry.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from modelpack.oci.layout import LayoutRepository
from modelpack.spec.errors import InputError, IntegrityError, ModelpackError, NotFound, Unavailable
from modelpack.spec.manifest import Descriptor
from modelpack.spec.source import BlobSource, ByteStream

_PAUSE_SECONDS: Final = 30.0


def open_store(url: str) -> BlobSource:
    """Open a store of the site: s3://bucket/prefix or oci:DIR. Raises InputError."""
    if url.startswith("s3://"):
        try:
            from modelpack.s3.blobs import S3Blobs
        except ModuleNotFoundError as error:
            raise InputError(
                f"{url}: {error.name} is not installed", hint="pip install 'modelpack-oci[s3]'"
            ) from None
        return S3Blobs(url)
    if url.startswith("oci:") and len(url) > len("oci:"):
        return LayoutRepository(Path(url.removeprefix("oci:")))
    raise InputError(f"{url!r}: expected s3://bucket/prefix or oci:DIR")


class Store:
    """One store of the site, and what is known of it. Thread-safe, shared by all fetches."""

    def __init__(self, source: BlobSource, clock: Callable[[], float] = time.monotonic) -> None:
        self.source = source
        self._clock = clock
        self._lock = threading.Lock()
        self._until = 0.0

    @property
    def usable(self) -> bool:
        """Whether it has not failed lately."""
        with self._lock:
            return self._clock() >= self._until

    def failed(self) -> None:
        """Leave it alone for a while."""
        with self._lock:
            self._until = self._clock() + _PAUSE_SECONDS


class Failover:
    """Stores, then the last source (a `spec.source.BlobSource`); for one fetch. Thread-safe.

    A store that does not have a blob is not asked for it again, one that fails is left alone for
    half a minute, also for wrong bytes. A range that is asked for again comes from the last.
    """

    def __init__(self, stores: Sequence[Store], last: BlobSource) -> None:
        self._stores = stores
        self._last = last
        self._lock = threading.Lock()
        self._absent: set[tuple[str, str]] = set()
        self._asked: set[tuple[str, int]] = set()

    @property
    def name(self) -> str:
        """Who this is: the last source."""
        return self._last.name

    @contextmanager
    def open(self, blob: Descriptor, offset: int, length: int) -> Iterator[ByteStream]:
        """Stream a range (see BlobSource)."""
        store = self._choose(blob, offset)
        if store is None:
            with self._last.open(blob, offset, length) as stream:
                yield stream
            return
        with self._blamed(store, blob):
            opened = store.source.open(blob, offset, length)
            stream = opened.__enter__()
        try:
            yield _Stream(stream, lambda: self._blamed(store, blob))
        except IntegrityError as error:
            store.failed()
            raise _elsewhere(error) from error
        finally:
            opened.__exit__(None, None, None)

    @contextmanager
    def _blamed(self, store: Store, blob: Descriptor) -> Iterator[None]:
        """Turn what a store fails with into a reason to ask again: another has its turn then.

        What the reader of a stream fails with, a full disk or the end of the fetch, is its own.
        """
        try:
            yield
        except NotFound as error:
            with self._lock:
                self._absent.add((store.source.name, blob.digest))
            raise _elsewhere(error) from error
        except ModelpackError as error:
            store.failed()
            raise _elsewhere(error) from error

    def _choose(self, blob: Descriptor, offset: int) -> Store | None:
        with self._lock:
            again = (blob.digest, offset) in self._asked
            self._asked.add((blob.digest, offset))
            if again:
                return None
            return next(
                (
                    store
                    for store in self._stores
                    if store.usable and (store.source.name, blob.digest) not in self._absent
                ),
                None,
            )


class _Stream:
    def __init__(
        self, stream: ByteStream, blamed: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._stream = stream
        self._blamed = blamed

    def read(self, size: int, /) -> bytes | memoryview:
        """Return the next bytes (see ByteStream)."""
        with self._blamed():
            return self._stream.read(size)


def _elsewhere(error: ModelpackError) -> Unavailable:
    """Return an error after which the same is asked for again at once."""
    return Unavailable(str(error), hint=error.hint, retry_after=0)
