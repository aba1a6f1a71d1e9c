"""File systems of their own, in a file or in memory, mounted for one test. As root."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

_MAKE = {
    "xfs": ("mkfs.xfs", "-q", "-K"),
    "btrfs": ("mkfs.btrfs", "-q"),
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0"),
}
# Where files may share blocks; btrfs where somebody has installed its tools, as .ci/system does.
SHARING = ["xfs", *(["btrfs"] if shutil.which("mkfs.btrfs") else [])]


@contextlib.contextmanager
def loop_mount(
    directory: Path,
    kind: str,
    *,
    megabytes: int = 300,
    image: Path | None = None,
    make: str = "",
    at: Path | None = None,
) -> Iterator[Path]:
    """Mount a new file system of this kind until the block ends; `make` are options of mkfs.

    The image is sparse; xfs refuses to be made smaller than 300 MB. The loop device goes with the
    mount, also if the tests are killed and somebody unmounts it.
    """
    image = image or directory / f"{kind}.img"
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    command = [*_MAKE[kind], *make.split(), str(image)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with _mounted(at or directory / kind, "-o", "loop", str(image)) as point:
        yield point
    with contextlib.suppress(OSError):  # it may lie on a disk that has died
        image.unlink()


@contextlib.contextmanager
def memory_mount(directory: Path, options: str, *, at: Path | None = None) -> Iterator[Path]:
    """Mount a tmpfs, such as `size=20m` or `nr_inodes=100`."""
    how = ("-t", "tmpfs", "-o", options, "tmpfs")
    with _mounted(at or directory / "tmpfs", *how) as point:
        yield point


@contextlib.contextmanager
def read_only(point: Path) -> Iterator[None]:
    """Let a mount be read-only until the block ends, for all who look up a name in it.

    The kernel refuses to remount what is open for writing; so it is covered by itself.
    """
    subprocess.run(["mount", "--bind", str(point), str(point)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(point)], check=True)
        yield
    finally:
        _unmount(point)


@contextlib.contextmanager
def overlay_mount(directory: Path) -> Iterator[Path]:
    """Mount an overlay of two directories, as containers have for their root."""
    for name in ("lower", "upper", "work"):
        (directory / name).mkdir()
    layers = ",".join(
        f"{option}={directory / name}"
        for option, name in (("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work"))
    )
    with _mounted(directory / "overlay", "-t", "overlay", "-o", layers, "overlay") as point:
        yield point


@contextlib.contextmanager
def _mounted(point: Path, *how: str) -> Iterator[Path]:
    point.mkdir(parents=True)
    subprocess.run(["mount", *how, str(point)], check=True)
    try:
        yield point
    finally:
        _unmount(point)
        point.rmdir()


def _unmount(point: Path) -> None:
    # Lazily if a process that a test lost still has something open: the next test goes on.
    if subprocess.run(["umount", str(point)], check=False, capture_output=True).returncode:
        subprocess.run(["umount", "--lazy", str(point)], check=True)


def free_bytes(point: Path) -> int:
    """Return what is free, once everything that was written has got its place."""
    os.sync()
    status = os.statvfs(point)
    return status.f_bavail * status.f_frsize


@contextlib.contextmanager
def filled(directory: Path) -> Iterator[None]:
    """Take every byte of a disk that is free, until the block ends."""
    path = directory / "filling"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
                    os.fsync(file.fileno())
    try:
        yield
    finally:
        path.unlink()


@contextlib.contextmanager
def crowded(directory: Path) -> Iterator[None]:
    """Take every inode of a disk that is free, until the block ends."""
    theirs = directory / "crowd"
    theirs.mkdir()
    try:
        with contextlib.suppress(OSError):
            for number in range(1 << 20):
                (theirs / str(number)).touch()
        yield
    finally:
        shutil.rmtree(theirs)
