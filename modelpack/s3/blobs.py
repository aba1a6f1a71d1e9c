"""Blobs of an OCI image layout that lies in a bucket (`spec.source.BlobSource`)."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from modelpack.s3.bucket import s3_errors
from modelpack.spec.errors import InputError, ProtocolViolation, Unavailable
from modelpack.spec.limits import MIB
from modelpack.spec.manifest import Descriptor
from modelpack.spec.source import ByteStream

_SCHEME: Final = "s3://"


class S3Blobs:
    """`s3://bucket/prefix`, below which are blobs/sha256/... as in a layout. Thread-safe.

    Nothing is believed of what comes: who reads checks it. Credentials, region and endpoint are
    found as by the aws command.
    """

    def __init__(self, url: str, *, seconds: float = 20.0) -> None:
        """Parse; `seconds` is the longest wait for a byte. Raises InputError."""
        self.name = url
        bucket, _, prefix = url.removeprefix(_SCHEME).partition("/")
        if not url.startswith(_SCHEME) or not bucket:
            raise InputError(f"{url!r}: expected s3://bucket/prefix")
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        settings = Config(
            connect_timeout=5,
            read_timeout=seconds,
            max_pool_connections=64,
            retries={"mode": "standard", "total_max_attempts": 2},
        )
        try:
            self._client: Any = boto3.Session().client("s3", config=settings)
        except (BotoCoreError, ValueError) as error:
            hint = "configure AWS as for the aws command"
            raise InputError(f"{url}: {error}", hint=hint) from None

    @contextmanager
    def open(self, blob: Descriptor, offset: int, length: int) -> Iterator[ByteStream]:
        """Stream a range (see BlobSource)."""
        algorithm, _, value = blob.digest.partition(":")
        what = f"{self.name}: {blob.digest}"
        with s3_errors(what):
            answer = self._client.get_object(
                Bucket=self._bucket,
                Key=f"{self._prefix}blobs/{algorithm}/{value}",
                Range=f"bytes={offset}-{offset + length - 1}",
            )
        with closing(answer["Body"]) as body:
            if answer.get("ContentLength") != length:
                raise ProtocolViolation(f"{what}: has not the range that was asked for")
            yield _Body(body, what)


class _Body:
    def __init__(self, body: Any, what: str) -> None:
        self._body = body
        self._what = what

    def read(self, size: int, /) -> bytes:
        """Return the next bytes (see ByteStream)."""
        try:
            data: bytes = self._body.read(min(size, MIB))
        except (BotoCoreError, OSError) as error:
            raise Unavailable(f"{self._what}: the stream breaks: {error}") from error
        return data
