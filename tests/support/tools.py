"""Tools of others, each given a reference and giving back a directory of files."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.servers import CRANE


def run(*command: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a program and return its output without the last newline; its failure is ours."""
    done = subprocess.run(
        [str(part) for part in command], env=env, cwd=cwd, capture_output=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace")[-3000:]
        raise AssertionError(f"{command[0]} {command[1]} exited with {done.returncode}: {said}")
    return done.stdout.decode().removesuffix("\n")


class Containers:
    """podman and buildah with storage and settings of their own, in a directory that goes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        files = {
            "storage.conf": f'[storage]\ndriver = "vfs"\ngraphroot = "{directory}/graph"\n'
            f'runroot = "{directory}/run"\n',
            "registries.conf": "unqualified-search-registries = []\n",
            "policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}',
            # crun refuses hybrid cgroups; the other limits are those of an unprivileged root.
            "containers.conf": '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            'runtime = "/usr/sbin/runc"\n[containers]\n'
            'default_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]\n',
        }
        for name, text in files.items():
            (directory / name).write_text(text)
        self._environment = {
            **{key: value for key, value in os.environ.items() if key != "DOCKER_CONFIG"},
            "CONTAINERS_STORAGE_CONF": str(directory / "storage.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(directory / "registries.conf"),
            "CONTAINERS_CONF": str(directory / "containers.conf"),
            "BUILDAH_ISOLATION": "chroot",
        }
        self._remote = (f"--signature-policy={directory / 'policy.json'}", "--tls-verify=false")

    def podman(self, *arguments: object) -> str:
        """Run podman."""
        return run("podman", *arguments, env=self._environment)

    def buildah(self, *arguments: object) -> str:
        """Run buildah."""
        return run("buildah", *arguments, env=self._environment)

    def pull(self, reference: str, platform: str = "") -> None:
        """Pull an image, for another platform than this one's if that is named."""
        chosen = [f"--platform={platform}"] if platform else []
        self.podman("pull", "--quiet", *self._remote, *chosen, reference)

    @contextlib.contextmanager
    def mounted(self, reference: str) -> Iterator[Path]:
        """Mount an image that was pulled, read-only."""
        yield Path(self.podman("image", "mount", reference))
        self.podman("image", "umount", reference)

    def import_busybox(self, image: str = "localhost/busybox:test") -> str:
        """Make an image with a shell, of this machine's own busybox; return its name."""
        busybox = shutil.which("busybox")
        if not busybox:
            raise AssertionError("busybox is missing: run `make system`")
        root = self._directory / "busybox"
        (root / "bin").mkdir(parents=True)
        shutil.copy(busybox, root / "bin" / "busybox")
        run("tar", "cf", self._directory / "busybox.tar", "-C", root, ".")
        self.podman("import", self._directory / "busybox.tar", image)
        return image

    def seen_in_container(self, image: str, reference: str) -> tuple[dict[str, str], bool]:
        """Mount an image in a container, as Kubernetes does; return its tree, and if it was writable."""
        busybox = "/bin/busybox"
        script = (
            f"cd /model; {busybox} find . -type f -exec {busybox} sha256sum {{}} +; "
            f"{busybox} touch /model/x 2>/dev/null && echo WRITABLE; true"
        )
        output = self.podman(
            "run", "--rm", "--network=none",
            f"--mount=type=image,source={reference},destination=/model", image,
            busybox, "sh", "-c", script,
        )  # fmt: skip
        lines = output.splitlines()
        files = {line[66:].removeprefix("./"): line[:64] for line in lines if line != "WRITABLE"}
        return files, "WRITABLE" in lines

    def build_from(self, reference: str, out: Path) -> Path:
        """Copy an artifact's files into a new image with buildah, as modelcars are made."""
        context = self._directory / "context"
        context.mkdir()
        (context / "Containerfile").write_text(
            f"FROM scratch\nCOPY --from={reference} / /models/\n"
        )
        self.buildah("bud", "--quiet", *self._remote, "--tag", "localhost/car:test", context)
        container = self.buildah("from", *self._remote, "localhost/car:test")
        root = self.buildah("mount", container)
        shutil.copytree(Path(root, "models"), out, symlinks=True)
        self.buildah("rm", container)
        return out

    def end(self) -> None:
        """Unmount and remove everything."""
        for tool, *arguments in (
            ("buildah", "rm", "--all"),
            ("podman", "image", "umount", "--all"),
        ):
            subprocess.run(
                [tool, *arguments], env=self._environment, check=False, capture_output=True
            )
        shutil.rmtree(self._directory, ignore_errors=True)


@contextlib.contextmanager
def containers() -> Iterator[Containers]:
    """Yield podman and buildah with nothing in their storage."""
    # Not below pytest's directory: podman wants a run root of at most 50 characters.
    running = Containers(Path(tempfile.mkdtemp(prefix="mp-", dir="/tmp")))
    try:
        yield running
    finally:
        running.end()


def skopeo_to_layout(reference: str, layout: Path, tag: str = "v1") -> Path:
    """Copy an artifact from a registry to an OCI layout with skopeo."""
    run(
        "skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false",
        f"docker://{reference}", f"oci:{layout}:{tag}",
    )  # fmt: skip
    return layout


def skopeo_to_registry(layout: Path, reference: str, tag: str = "v1") -> None:
    """Copy an artifact from an OCI layout to a registry with skopeo."""
    run(
        "skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false",
        f"oci:{layout}:{tag}", f"docker://{reference}",
    )  # fmt: skip


def umoci_unpack(layout: Path, out: Path, tag: str = "v1") -> Path:
    """Unpack an image of an OCI layout with umoci."""
    run("umoci", "raw", "unpack", "--image", f"{layout}:{tag}", out)
    return out


def untar(archives: list[Path], out: Path) -> Path:
    """Unpack archives one over the other."""
    out.mkdir(parents=True)
    for archive in archives:
        run("tar", "xf", archive, "-C", out)
    return out


def crane_export(reference: str, out: Path) -> Path:
    """Flatten an image with crane and unpack it."""
    archive = out.with_name(out.name + ".tar")
    run(CRANE, "export", "--insecure", reference, archive)
    return untar([archive], out)


def oras_pull(host: str, reference: str, out: Path) -> Path:
    """Fetch the layers of an artifact as files with oras-py."""
    import oras.client

    oras.client.OrasClient(hostname=host, insecure=True).pull(target=reference, outdir=str(out))
    return out
