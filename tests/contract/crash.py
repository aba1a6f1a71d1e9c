"""Die at every instant of a push, and look at what is left. Run as a program: crash.py DIRECTORY.

A child process works on a layout and kills itself (SIGKILL) before its n-th step; a step is
everything that Python tells its audit hooks (open, rename, mkdir, remove, truncate) and every
write and fsync. Then the layout is checked as a stranger would, and the work is done again.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from modelpack.oci.layout import LayoutRepository
from modelpack.spec.errors import NotFound
from modelpack.spec.manifest import Manifest, decode
from tests.contract.contents import MIB, put_image, put_index, read

LAYERS = [os.urandom(2 * MIB + 5), b"small", b""]
STEPS = ("open", "os.rename", "os.mkdir", "os.remove", "os.truncate", "fcntl.flock", "os.utime")


def work(directory: Path) -> None:
    """Everything that changes a layout."""
    layout = LayoutRepository(directory)
    put_image(layout, LAYERS[0], tag="v1")
    child = put_image(layout, *LAYERS)
    put_index(layout, child, tag="v2")
    put_image(layout, LAYERS[1], tag="v1")
    if "v0" in layout.tags():
        layout.delete_manifest("v0")
    put_image(layout, LAYERS[2], tag="v0")
    layout.delete_manifest("v0")
    layout.close()


def die_before(step: int) -> None:
    left = step

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, _: object) -> None:
        if event in STEPS:
            count()

    def counted(function):
        def wrapper(*arguments):
            count()
            return function(*arguments)

        return wrapper

    os.write, os.fsync = counted(os.write), counted(os.fsync)
    sys.addaudithook(hook)


def check(directory: Path) -> None:
    """See that nobody can find anything incomplete or false."""
    for path in directory.glob("blobs/sha256/*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, path
    if (directory / "oci-layout").exists():
        assert json.loads((directory / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
        for entry in json.loads((directory / "index.json").read_text())["manifests"]:
            assert (directory / "blobs" / entry["digest"].replace(":", "/")).exists()
    layout = LayoutRepository(directory)
    try:
        tags = layout.tags()
    except NotFound:
        return
    for tag in tags:
        _, data = layout.manifest(tag)
        manifest = decode(data, tag)
        if not isinstance(manifest, Manifest):
            manifest = decode(layout.manifest(manifest.manifests[0].digest)[1], tag)
        for blob in (manifest.config, *manifest.layers):
            assert layout.stat_blob(blob.digest) == blob.size
            if blob.size:
                read(layout, blob)
    layout.close()


def finished(directory: Path) -> None:
    """See that the work, done again, leaves what it always leaves, and nothing else."""
    work(directory)
    check(directory)
    layout = LayoutRepository(directory)
    assert layout.tags() == ["v1", "v2"]
    # Three layers, a config, an index, and the manifests of v1, of v1 before, and of v2's child.
    assert len(list(directory.glob("blobs/sha256/*"))) == 8
    assert list((directory / ".modelpack/uploads").iterdir()) == []
    layout.close()


def main(base: Path) -> None:
    step = 0
    while True:
        directory = base / "layout"
        child = os.fork()
        if not child:
            die_before(step)
            work(directory)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        check(directory)
        finished(directory)
        shutil.rmtree(directory)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        step += 1
    print(step)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
