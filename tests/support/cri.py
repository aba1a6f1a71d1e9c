"""The image service of the Container Runtime Interface, spoken with curl: four messages are no stubs."""

import re
import struct
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote

_SERVICE = "http://localhost/runtime.v1.ImageService"


class CriError(Exception):
    """The service refused; `code` is the gRPC status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"gRPC status {code}: {message}")
        self.code = code


def pull_image(
    address: Path, reference: str, credential: tuple[str, str] | None = None, server: str = ""
) -> str:
    """PullImage, as kubelet calls it; return the reference of the image that it made.

    `server` is AuthConfig.server_address: with it the credential is for that host alone.
    """
    request = _field(1, _text(1, reference))
    if credential:
        username, password = credential
        request += _field(2, _text(1, username) + _text(2, password) + _text(4, server))
    answer = call(address, "PullImage", request)
    return answer[_varint(answer, 1)[1] :].decode()


def is_ready(address: Path) -> bool:
    """Whether the service answers."""
    try:
        call(address, "ListImages", b"")
    except (CriError, ConnectionError):
        return False
    return True


def call(address: Path, method: str, request: bytes) -> bytes:
    """Make a unary call (gRPC over HTTP/2) through the Unix socket at `address`."""
    with TemporaryDirectory() as directory:
        headers = Path(directory, "headers")
        done = subprocess.run(
            ["curl", "--disable", "--silent", "--show-error", "--http2-prior-knowledge",
             "--unix-socket", address, "--dump-header", headers,
             "--header", "Content-Type: application/grpc", "--header", "TE: trailers",
             "--data-binary", "@-", f"{_SERVICE}/{method}"],
            input=struct.pack(">BI", 0, len(request)) + request, capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ConnectionError(done.stderr.decode())
        said = headers.read_text()
    status = re.search(r"^grpc-status: (\d+)", said, re.MULTILINE | re.IGNORECASE)
    if not status:
        raise ConnectionError(f"no gRPC status in {said!r}")
    if code := int(status[1]):
        message = re.search(r"^grpc-message: (.*?)\r?$", said, re.MULTILINE | re.IGNORECASE)
        raise CriError(code, unquote(message[1]) if message else "")
    return done.stdout[5:]


# Protocol buffers: only fields of the wire type LEN.


def _field(number: int, data: bytes) -> bytes:
    size, length = len(data), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode()) if text else b""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
