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
    directory: Path, kind: str, *, megabytes: int = 300, image: Path | None = None, make: str = ""
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
    with _mounted(directory / kind, "-o", "loop", str(image)) as point:
        yield point
    image.unlink()


@contextlib.contextmanager
def memory_mount(directory: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs, such as `size=20m` or `nr_inodes=100`."""
    with _mounted(directory / "tmpfs", "-t", "tmpfs", "-o", options, "tmpfs") as point:
        yield point


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
        # Lazily if a process that a test lost still has something open: the next test goes on.
        if subprocess.run(["umount", str(point)], check=False, capture_output=True).returncode:
            subprocess.run(["umount", "--lazy", str(point)], check=True)
        point.rmdir()


def remount(point: Path, options: str) -> None:
    """Change how something is mounted, such as `ro`."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(point)], check=True)


def free_bytes(point: Path) -> int:
    """Return what is free, once everything that was written has got its place."""
    os.sync()
    status = os.statvfs(point)
    return status.f_bavail * status.f_frsize
