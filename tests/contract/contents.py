"""What the contract is tested with: blobs that misbehave, images, and whole reads."""

import json

from modelpack.spec import media
from modelpack.spec.manifest import Descriptor, Index, Manifest, describe, encode
from modelpack.spec.progress import QUIET, Counter
from modelpack.spec.source import Bytes

MIB = 1 << 20
CONFIG = json.dumps(
    {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": []},
    }
).encode()


def blob_of(data: bytes, media_type: str = media.OCTETS) -> Descriptor:
    return describe(media_type, data)


class Watched:
    """Content that notes where it was read from, and may break off or change its mind."""

    def __init__(self, data: bytes, *, told: bytes | None = None, fail_at=None, error=None) -> None:
        self.blob = blob_of(data)
        self.data = data if told is None else told
        self.fail_at = fail_at
        self.error = error
        self.offsets: list[int] = []

    def read_from(self, offset):
        self.offsets.append(offset)
        end = len(self.data) if self.fail_at is None else self.fail_at
        for start in range(offset, end, MIB):
            # A view of a buffer that is used again, as the Protocol allows.
            buffer = bytearray(self.data[start : min(start + MIB, end)])
            yield memoryview(buffer)
            buffer[:] = bytes(len(buffer))
        if self.fail_at is not None:
            raise self.error


def put(repository, data: bytes, media_type: str = media.OCTETS) -> Descriptor:
    blob = blob_of(data, media_type)
    repository.put_blob(Bytes(blob, data), QUIET)
    return blob


def moved_by_putting(repository, content) -> int:
    counter = Counter(QUIET)
    repository.put_blob(content, counter)
    return counter.total


def image(layers=(), *, config=None, **fields) -> bytes:
    config = config or blob_of(CONFIG, media.OCI_CONFIG)
    return encode(
        Manifest(media_type=media.OCI_MANIFEST, config=config, layers=tuple(layers), **fields)
    )


def put_image(repository, *layers: bytes, tag: str = "", **fields) -> Descriptor:
    """Publish an image with all its blobs."""
    put(repository, CONFIG, media.OCI_CONFIG)
    blobs = [put(repository, data, media.LAYER_TAR) for data in layers]
    return repository.put_manifest(image(blobs, **fields), media.OCI_MANIFEST, tag)


def put_index(repository, *children: Descriptor, tag: str = "", **fields) -> Descriptor:
    data = encode(Index(media_type=media.OCI_INDEX, manifests=children, **fields))
    return repository.put_manifest(data, media.OCI_INDEX, tag)


def read(repository, blob: Descriptor, offset: int = 0, length=None, *, size=MIB) -> bytes:
    """Read a range to its end, and see that it ends there."""
    length = blob.size - offset if length is None else length
    received = bytearray()
    with repository.open(blob, offset, length) as stream:
        while len(received) < length:
            part = stream.read(size)
            assert 1 <= len(part) <= size
            received += part
        assert not stream.read(size)
    return bytes(received)
