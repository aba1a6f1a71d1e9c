"""Any sequence of operations does to a layout what it does to the registry in memory."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from modelpack.oci.layout import LayoutRepository
from modelpack.oci.memory import MemoryRegistry
from modelpack.spec import media
from modelpack.spec.errors import ModelpackError, NotFound
from modelpack.spec.manifest import Index, Manifest, decode
from tests.contract.contents import blob_of, image, put, put_image, put_index, read

LAYERS = [bytes([number]) * size for number, size in enumerate((0, 1, 100, 5000))]
layers = st.lists(st.sampled_from(LAYERS), max_size=3, unique=True)
tags = st.sampled_from(["v1", "v2", "latest"])
tags_or_none = st.one_of(st.just(""), tags)
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None


class Twins(RuleBasedStateMachine):
    """A layout and a registry in memory that are asked the same."""

    manifests = Bundle("manifests")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir=FAST))
        self.memory = MemoryRegistry().repository("memory")
        self.layout = LayoutRepository(self.directory / "layout")

    def teardown(self) -> None:
        self.layout.close()
        shutil.rmtree(self.directory)

    def both(self, ask):
        """Ask both; they answer the same, or fail alike."""
        answers = []
        for repository in (self.memory, self.layout):
            try:
                answers.append(ask(repository))
            except ModelpackError as error:
                answers.append(type(error))
        assert answers[0] == answers[1]
        return answers[0]

    @rule(data=st.sampled_from(LAYERS))
    def put_blob(self, data):
        self.both(lambda repository: put(repository, data))
        self.both(lambda repository: repository.stat_blob(blob_of(data).digest))

    @rule(target=manifests, layers=layers, tag=tags_or_none)
    def put_image(self, layers, tag):
        return self.both(lambda repository: put_image(repository, *layers, tag=tag))

    @rule(target=manifests, subject=manifests, kind=st.sampled_from("ab"), tag=tags_or_none)
    def put_referrer(self, subject, kind, tag):
        return self.both(
            lambda repository: put_image(repository, tag=tag, subject=subject, artifact_type=kind)
        )

    @rule(target=manifests, children=st.lists(manifests, max_size=3), tag=tags_or_none)
    def put_index(self, children, tag):
        stored = self.both(lambda repository: put_index(repository, *children, tag=tag))
        return multiple() if isinstance(stored, type) else stored

    @rule(tag=tags_or_none)
    def put_incomplete(self, tag):
        data = image([blob_of(b"this is never put")])
        put_it = lambda repository: repository.put_manifest(data, media.OCI_MANIFEST, tag)  # noqa: E731
        assert isinstance(self.both(put_it), type)

    @rule(manifest=manifests, tag=tags)
    def tag_again(self, manifest, tag):
        found = self.both(lambda repository: repository.manifest(manifest.digest))
        if not isinstance(found, type) and self.has_blobs(found[1]):
            self.both(
                lambda repository: repository.put_manifest(found[1], manifest.media_type, tag)
            )

    @rule(manifest=consumes(manifests))
    def delete_digest(self, manifest):
        self.both(lambda repository: repository.delete_manifest(manifest.digest))

    @rule(tag=tags)
    def delete_tag(self, tag):
        self.both(lambda repository: repository.delete_manifest(tag))

    @rule()
    def reopen(self):
        self.layout.close()
        self.layout = LayoutRepository(self.directory / "layout")

    @rule(tag=tags)
    def collect(self, tag):
        """With nobody pushing, a removal leaves exactly the blobs that something names."""
        self.reopen()
        put_image(self.memory, tag=tag)
        put_image(self.layout, tag=tag)
        self.both(lambda repository: repository.delete_manifest(tag))
        files = {f"sha256:{p.name}" for p in (self.directory / "layout/blobs/sha256").iterdir()}
        assert files == self.alive()

    @rule(manifest=manifests)
    def look_at_manifest(self, manifest):
        self.both(lambda repository: repository.manifest(manifest.digest))
        for kind in ("", "a"):
            self.both(
                lambda repository: sorted(
                    (found.digest, found.artifact_type)
                    for found in repository.referrers(manifest.digest, kind)  # noqa: B023
                )
            )

    @invariant()
    def same_tags(self):
        names = self.both(lambda repository: repository.tags())
        for tag in names if isinstance(names, list) else ():
            self.both(lambda repository: repository.manifest(tag))  # noqa: B023

    @invariant()
    def nothing_is_missing(self):
        """All that is named by what can be found is in the layout, byte for byte."""
        named = self.alive()
        for data in LAYERS:
            blob = blob_of(data)
            if blob.digest in named:
                assert self.layout.stat_blob(blob.digest) == len(data)
                assert not data or read(self.layout, blob) == data

    def has_blobs(self, data: bytes) -> bool:
        return all(self.layout.stat_blob(digest) is not None for digest in names_of(data))

    def alive(self) -> set[str]:
        """Return the digests of all manifests that the memory knows, and of what they name."""
        try:
            with self.memory._registry.shelf("memory") as shelf:
                known = {digest: shelf.manifests[digest] for digest in shelf.known()}
        except NotFound:
            return set()
        return set(known).union(*map(names_of, known.values()))


def names_of(data: bytes) -> set[str]:
    manifest = decode(data, "a manifest")
    if isinstance(manifest, Index):
        return {child.digest for child in manifest.manifests}
    assert isinstance(manifest, Manifest)
    return {blob.digest for blob in (manifest.config, *manifest.layers)}


@pytest.mark.parametrize("steps", [12, 40])
def test_layout_and_memory_agree(steps):
    """Under random puts, tags, removals and reads both give the same answers."""
    run_state_machine_as_test(Twins, settings=settings(stateful_step_count=steps, max_examples=40))
