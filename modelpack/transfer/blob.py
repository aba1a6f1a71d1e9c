"""Small reads from a source, into memory: an index, a config, one chunk of a header."""

import random
import time
from typing import Final

from modelpack.spec.digest import Digest
from modelpack.spec.errors import IntegrityError, LimitExceeded, ModelpackError, Unavailable
from modelpack.spec.limits import MIB
from modelpack.spec.manifest import Descriptor
from modelpack.spec.source import BlobSource

TRIES: Final = 6  # without a new byte, or a new chunk, in between
_BACKOFF_SECONDS: Final = 0.5
_BACKOFF_CAP: Final = 30.0


def read_blob(source: BlobSource, blob: Descriptor, limit: int) -> bytes:
    """Read a blob of at most `limit` bytes and check its digest.

    Raises LimitExceeded, IntegrityError (after a second try) and what the source raises.
    """
    if blob.size > limit:
        raise LimitExceeded(f"blob {blob.digest}: {blob.size} bytes; at most {limit}")
    for last in (False, True):
        data = read_range(source, blob, 0, blob.size)
        got = Digest.of(data, blob.checked_digest.algorithm)
        if got == blob.checked_digest:
            return data
        if last:
            break
    raise IntegrityError(
        f"blob {blob.digest}", expected=blob.digest, got=str(got), source=source.name,
        hint="the registry's copy is damaged: delete the artifact there and push it again",
    )  # fmt: skip


def read_range(source: BlobSource, blob: Descriptor, offset: int, length: int) -> bytes:
    """Read a range, continuing after errors that are not permanent; nothing is verified."""
    data = bytearray()
    failures = counted = 0
    while len(data) < length:
        try:
            with source.open(blob, offset + len(data), length - len(data)) as stream:
                while len(data) < length and (part := stream.read(min(MIB, length - len(data)))):
                    data += part
        except ModelpackError as error:
            # A source that sends a byte at a time is not getting anywhere.
            if len(data) - counted >= min(MIB, length // TRIES + 1):
                failures, counted = 0, len(data)
            failures += 1
            if error.permanent or failures >= TRIES:
                raise
            time.sleep(pause(error, failures))
    return bytes(data)


def pause(error: ModelpackError, failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    if isinstance(error, Unavailable) and error.retry_after is not None:
        return error.retry_after
    # Jitter, so that a crowd that failed together does not come back together.
    longest: float = min(_BACKOFF_CAP, _BACKOFF_SECONDS * 2 ** (failures - 1))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311
