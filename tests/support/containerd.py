"""A real containerd with everything of its own, which pulls as a node of Kubernetes does."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import cri
from tests.support.processes import process
from tests.support.servers import ROOT
from tests.support.tools import run

PULL = ("pull", "resolve")  # what a mirror may be asked: content, and what a tag is
_NAMESPACE = "k8s.io"  # where the CRI keeps its images


@dataclass(frozen=True)
class Binaries:
    """Which containerd: Debian's, or the one that tests/support/build-containerd made."""

    containerd: Path
    ctr: Path


DEBIAN = Binaries(Path("/usr/bin/containerd"), Path("/usr/bin/ctr"))
RECENT = Binaries(ROOT / ".cache/bin/containerd", ROOT / ".cache/bin/ctr")


class Containerd:
    """A running containerd; all its images are in one namespace, whoever pulled them."""

    def __init__(self, directory: Path, address: Path, binaries: Binaries) -> None:
        self.directory = directory
        self.address = address
        self._binaries = binaries
        self._hosts = directory / "hosts"
        self._hosts.mkdir(parents=True, exist_ok=True)

    @property
    def log(self) -> str:
        """What containerd said so far."""
        return (self.directory / "log").read_text(errors="replace")

    def ctr(self, *arguments: object) -> str:
        """Run ctr."""
        return run(self._binaries.ctr, *self._connection, *arguments)

    def set_mirror(self, registry: str, mirror: str, capabilities: Sequence[str] = PULL) -> None:
        """Name the URL that is asked before a registry; every pull reads this anew."""
        # No skip_verify: with it containerd 2 tries TLS on http:// first.
        lines = [f'server = "http://{registry}"']
        if mirror:
            lines += [f'[host."{mirror}"]', f"  capabilities = {json.dumps(capabilities)}"]
        file = self._hosts / registry / "hosts.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(lines) + "\n")

    def pull(self, reference: str, credential: tuple[str, str] | None = None) -> None:
        """Pull with ctr: in 1.x it asks the registries itself, in 2.x containerd does."""
        user = [f"--user={':'.join(credential)}"] if credential else []
        self.ctr("images", "pull", f"--hosts-dir={self._hosts}", *user, reference)

    def cri_pull(
        self, reference: str, credential: tuple[str, str] | None = None, server: str = ""
    ) -> str:
        """Pull through the CRI, as kubelet does; return the image's ID."""
        return cri.pull_image(self.address, reference, credential, server)

    def content(self, digest: str) -> bytes:
        """Return a blob of the content store."""
        algorithm, _, value = digest.partition(":")
        store = self.directory / "root/io.containerd.content.v1.content/blobs"
        return (store / algorithm / value).read_bytes()

    def forget(self) -> None:
        """Remove all images, and what belongs to no other image with them."""
        if names := self.ctr("images", "list", "--quiet").split():
            self.ctr("images", "rm", "--sync", *names)

    @contextlib.contextmanager
    def mounted(self, reference: str) -> Iterator[Path]:
        """Mount an image that was pulled, read-only."""
        target = Path(tempfile.mkdtemp(prefix="mount-", dir=self.directory))
        self.ctr("images", "mount", reference, target)
        try:
            yield target
        finally:
            self.ctr("images", "unmount", "--rm", target)

    @property
    def _connection(self) -> tuple[str, ...]:
        return f"--address={self.address}", f"--namespace={_NAMESPACE}"


@contextlib.contextmanager
def containerd(
    directory: Path,
    mirrors: Mapping[str, str] | None = None,
    binaries: Binaries = DEBIAN,
    settings: str = "",
) -> Iterator[Containerd]:
    """Run containerd with its state and log in `directory` until the block ends.

    `mirrors` has the URL that is asked first for each registry, "host:port"; where that URL is
    empty, the registry is asked alone. Registries speak plain HTTP. `settings` is more TOML.
    """
    for binary in (binaries.containerd, binaries.ctr):
        if not binary.exists():
            raise RuntimeError(f"{binary} is missing: run `make system` or `make containerd`")
    directory.mkdir(parents=True, exist_ok=True)
    # Not below pytest's directory: the path of a socket has at most 107 characters.
    short = Path(tempfile.mkdtemp(prefix="mp-", dir="/tmp"))
    address = short / "containerd.sock"
    running = Containerd(directory, address, binaries)
    for registry, mirror in (mirrors or {}).items():
        running.set_mirror(registry, mirror)
    config = directory / "config.toml"
    config.write_text(_config(directory, short) + settings)
    environment = {**os.environ, "TMPDIR": str(short)}
    try:
        with process(
            [binaries.containerd, "--config", config, "--log-level", "debug"],
            directory / "log",
            lambda: address.exists() and cri.is_ready(address),
            env=environment,
        ):
            yield running
    finally:
        _unmount_below(directory, short)
        shutil.rmtree(short, ignore_errors=True)


def _config(directory: Path, short: Path) -> str:
    """Return config.toml: nothing of it lies outside these directories."""
    sections: dict[str, dict[str, object]] = {
        "": {"version": 2, "root": directory / "root", "state": short / "state"},
        "grpc": {"address": short / "containerd.sock"},
        "ttrpc": {"address": short / "containerd.sock.ttrpc"},
        'plugins."io.containerd.grpc.v1.cri"': {
            "restrict_oom_score_adj": True, "stream_server_address": "127.0.0.1",
        },
        'plugins."io.containerd.grpc.v1.cri".cni': {
            "bin_dir": directory / "cni", "conf_dir": directory / "cni",
        },
        'plugins."io.containerd.grpc.v1.cri".registry': {"config_path": directory / "hosts"},
        'plugins."io.containerd.internal.v1.opt"': {"path": directory / "opt"},
        'plugins."io.containerd.nri.v1.nri"': {"disable": True},
    }  # fmt: skip
    lines = []
    for section, values in sections.items():
        lines += [f"[{section}]"] if section else []
        lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    return json.dumps(str(value) if isinstance(value, Path) else value)


def _unmount_below(*directories: Path) -> None:
    """Unmount what is left below these directories, the innermost first."""
    points = [
        Path(line.split()[4].encode().decode("unicode_escape"))
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    for point in reversed(points):
        if any(point.is_relative_to(directory) for directory in directories):
            run("umount", "--lazy", point)
