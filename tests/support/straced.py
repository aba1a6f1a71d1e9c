"""What a program asked of the file system, call by call, as strace saw it."""

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Everything that changes a file system, and what is needed to understand it. Calls that `disklog`
# does not know how to replay are an error there, so that nothing happens unnoticed.
_TRACED = (
    "write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,copy_file_range,sendfile,"
    "splice,ioctl,mmap,lseek,open,openat,openat2,creat,rename,renameat,renameat2,link,linkat,"
    "unlink,unlinkat,mkdir,mkdirat,rmdir,symlink,symlinkat,mknod,mknodat,chmod,fchmod,fchmodat,"
    "fsync,fdatasync,syncfs,sync,msync,access,faccessat,faccessat2,setxattr,fsetxattr,"
    "io_uring_setup"
)
_WHOLE = re.compile(rb"(\d+) +(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?)")
_BEGUN = re.compile(rb"(\d+) +(\w+)\((.*?)(?:, )?<unfinished \.\.\.>$")
_RESUMED = re.compile(rb"(\d+) +<\.\.\. (\w+) resumed>(?:, )?(.*)\) += (-?\d+|0x[0-9a-f]+|\?)")
_FD = re.compile(rb"(-?\w+)<([^>]*)>")


@dataclass(frozen=True, slots=True)
class Call:
    """One call that ended. `before` is how many of those traced had ended when it began."""

    name: str
    arguments: tuple[bytes, ...]
    result: int
    before: int

    def fd(self, number: int) -> tuple[int, str]:
        """Return an argument that is a descriptor, and the path that it was opened by."""
        found = _FD.match(self.arguments[number])
        if found is None:
            return -1, ""
        value = -100 if found[1] == b"AT_FDCWD" else int(found[1])
        return value, os.fsdecode(unescaped(found[2]))

    def text(self, number: int) -> str:
        """Return an argument that is a path."""
        return os.fsdecode(self.data(number))

    def data(self, number: int) -> bytes:
        """Return an argument that is a string of bytes; all of it was recorded."""
        quoted = self.arguments[number]
        assert quoted[:1] + quoted[-1:] == b'""', quoted[-40:]
        return unescaped(quoted[1:-1])

    def number(self, number: int) -> int:
        """Return an argument that is a number, perhaps behind a pointer."""
        return int(self.arguments[number].strip(b"[]").partition(b"]")[0], 0)

    def flags(self, number: int) -> set[str]:
        """Return an argument that is a set of flags."""
        return set(self.arguments[number].decode().split("|"))

    def mode(self, number: int) -> int:
        """Return an argument that is a mode."""
        return int(self.arguments[number], 8)


def unescaped(text: bytes) -> bytes:
    """Return the bytes that strace wrote in hexadecimal."""
    return bytes.fromhex(text.replace(b"\\x", b"").decode())


def record(command: Sequence[str], log: Path) -> Iterator[Call]:
    """Run a program with its children to its end, which must be good; yield its calls."""
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-xx", "-s", str(1 << 24), "-o", log]
    done = subprocess.run(
        [*strace, "-e", f"trace={_TRACED}", "-e", "signal=none", *command],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(f"{done.stdout}\n{done.stderr}"[-6000:])
    with log.open("rb") as lines:
        yield from _calls(lines)


def _calls(lines: Iterator[bytes]) -> Iterator[Call]:
    ended = 0
    begun: dict[bytes, tuple[bytes, int]] = {}
    for line in lines:
        if found := _WHOLE.match(line):
            _, name, arguments, result = found.groups()
            before = ended
        elif found := _BEGUN.match(line):
            begun[found[1]] = (found[3], ended)
            continue
        elif found := _RESUMED.match(line):
            thread, name, rest, result = found.groups()
            first, before = begun.pop(thread)
            arguments = b", ".join(part for part in (first, rest) if part)
        else:
            continue
        if result == b"?":  # its process was killed first
            continue
        ended += 1
        yield Call(name.decode(), tuple(arguments.split(b", ")), int(result, 0), before)
