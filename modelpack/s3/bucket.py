"""A prefix of a bucket as an origin of files (`pack.origin.Origin`)."""

import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self, cast

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from modelpack.pack.origin import SourceFile
from modelpack.select.patterns import BUILT_IN, Selection
from modelpack.spec import limits
from modelpack.spec.errors import (
    BadSource,
    Denied,
    HostilePath,
    InputError,
    NotFound,
    RegistryError,
    Unavailable,
)
from modelpack.spec.names import IGNORE_FILE
from modelpack.spec.paths import checked, sort_key
from modelpack.spec.source import ByteStream
from modelpack.state.digests import FileKey, fingerprint

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_SCHEME: Final = "s3://"
_IGNORE_BYTES: Final = limits.MIB
_DENIED: Final = ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_MISSING: Final = ("NoSuchBucket", "NoSuchKey", "404")


class Bucket:
    """Objects below a prefix. Sizes and ETags are taken once; an object that changes is noticed.

    boto3 brings credentials, regions, endpoints and retries; a body is read by ranges of what is
    left, so that a broken connection continues where it was.
    """

    def __init__(self, url: str, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        """Parse `s3://bucket/prefix`; raises InputError."""
        self.name = url
        bucket, _, prefix = url.removeprefix(_SCHEME).partition("/")
        if not url.startswith(_SCHEME) or not bucket:
            raise InputError(f"{url!r}: expected s3://bucket/prefix")
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._include, self._exclude = include, exclude
        # Waits are bounded: ten seconds to connect, a minute without a byte.
        settings = Config(
            connect_timeout=10,
            read_timeout=60,
            retries={"mode": "standard", "total_max_attempts": 5},
        )
        try:
            self._client: Any = boto3.Session().client("s3", config=settings)
        except (BotoCoreError, ValueError) as error:
            raise InputError(
                f"{url}: {error}", hint="configure AWS as for the aws command"
            ) from None
        self._etags: dict[str, str] = {}

    def files(self) -> list[SourceFile]:
        """List all selected objects (see Origin)."""
        selection = Selection(self._include, self._exclude, (*BUILT_IN, *self._ignore_lines()))
        found = []
        with s3_errors(self.name):
            for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix
            ):
                found += [
                    file
                    for entry in page.get("Contents", ())
                    if (file := self._file(entry, selection)) is not None
                ]
                if len(found) > limits.FILES:
                    raise BadSource(f"{self.name}: more than {limits.FILES} objects")
        if not found:
            raise BadSource(f"{self.name}: no objects to pack", hint="check bucket and prefix")
        return sorted(found, key=lambda file: sort_key(file.path))

    @contextmanager
    def open(self, file: SourceFile) -> Iterator[BinaryIO]:
        """Open for reading a header (see Origin)."""
        with io.BufferedReader(_Object(self, file), 256 * limits.KIB) as opened:
            yield cast("BinaryIO", opened)

    def stream(self, file: SourceFile, offset: int) -> AbstractContextManager[ByteStream]:
        """Stream the bytes (see Origin)."""
        return _Stream(self, file, offset)

    def check(self, file: SourceFile) -> None:
        """Raise BadSource if the object changed (see Origin)."""
        with s3_errors(f"{self.name}: {file.path}"):
            head = self._client.head_object(Bucket=self._bucket, Key=file.location)
        if head.get("ETag") != self._etags[file.location]:
            raise _changed(file)

    def body(self, file: SourceFile, offset: int, end: int) -> Any:
        """Ask for the bytes from `offset` to before `end`, of this very version."""
        with s3_errors(f"{self.name}: {file.path}"):
            try:
                answer = self._client.get_object(
                    Bucket=self._bucket,
                    Key=file.location,
                    Range=f"bytes={offset}-{end - 1}",
                    IfMatch=self._etags[file.location],
                )
            except ClientError as error:
                if _status(error) == 412:
                    raise _changed(file) from None
                raise
        return answer["Body"]

    def _file(self, entry: dict[str, Any], selection: Selection) -> SourceFile | None:
        key: str = entry["Key"]
        path = key.removeprefix(self._prefix)
        if path.endswith("/") or not selection.takes(path):
            return None  # what consoles make to show a directory
        try:
            checked(path)
        except HostilePath as error:
            raise BadSource(f"{self.name}: {error}", hint="rename it or exclude it") from None
        self._etags[key] = entry["ETag"]
        modified = int(entry["LastModified"].timestamp() * 1e9)
        # The same place, ETag and time are the same bytes: what stat is for files.
        identity = fingerprint(
            str(self._client.meta.endpoint_url).encode(), self._bucket.encode(), key.encode(),
            entry["ETag"].encode(),
        )  # fmt: skip
        state = FileKey(
            int.from_bytes(identity[:8], "little"), int.from_bytes(identity[8:], "little"),
            entry["Size"], modified, modified,
        )  # fmt: skip
        return SourceFile(path, key, entry["Size"], state)

    def _ignore_lines(self) -> list[str]:
        what = f"{self.name}: {IGNORE_FILE}"
        try:
            with s3_errors(what):
                answer = self._client.get_object(
                    Bucket=self._bucket, Key=f"{self._prefix}{IGNORE_FILE}"
                )
                data: bytes = answer["Body"].read(_IGNORE_BYTES + 1)
            lines = data.decode().splitlines()
        except NotFound:
            return []
        except UnicodeDecodeError:
            raise BadSource(f"{what}: is not UTF-8") from None
        if len(data) > _IGNORE_BYTES:
            raise BadSource(f"{what}: has more than {_IGNORE_BYTES} bytes")
        return lines


class _Stream:
    """Reads an object, opening it again after its last byte when the connection breaks."""

    _TRIES = 5

    def __init__(self, bucket: Bucket, file: SourceFile, offset: int) -> None:
        self._bucket = bucket
        self._file = file
        self._offset = offset
        self._body: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, nothing at the end."""
        wanted = min(size, limits.MIB, self._file.size - self._offset)
        if wanted <= 0:
            return b""
        problem: Exception | None = None
        for _ in range(self._TRIES):
            try:
                if self._body is None:
                    self._body = self._bucket.body(self._file, self._offset, self._file.size)
                data: bytes = self._body.read(wanted)
            except (BotoCoreError, OSError) as error:
                problem = error
            else:
                if data:
                    self._offset += len(data)
                    return data
            self._close()
        raise Unavailable(f"{self._bucket.name}: {self._file.path}: the stream breaks: {problem}")

    def _close(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


class _Object(io.RawIOBase):
    """A seekable object, for headers."""

    def __init__(self, bucket: Bucket, file: SourceFile) -> None:
        super().__init__()
        self._bucket = bucket
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._position + len(view), self._file.size)
        if end <= self._position:
            return 0
        with s3_errors(f"{self._bucket.name}: {self._file.path}"):
            body = self._bucket.body(self._file, self._position, end)
            data: bytes = body.read()
            body.close()
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


@contextmanager
def s3_errors(what: str) -> Iterator[None]:
    """Translate botocore's errors."""
    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        message = f"{what}: S3 answers {code or _status(error)}"
        if code in _DENIED or _status(error) == 403:
            raise Denied(message, hint="check the AWS credentials and the bucket policy") from error
        if code in _MISSING or _status(error) == 404:
            raise NotFound(message, hint="check the names of bucket and object") from error
        raise RegistryError(message) from error
    except (BotoCoreError, OSError) as error:
        raise Unavailable(f"{what}: {error}", hint="check endpoint and credentials") from error


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _changed(file: SourceFile) -> BadSource:
    return BadSource(
        f"{file.path}: changed while it was being packed",
        hint="wait until nothing writes to it, then run the same command again",
    )
