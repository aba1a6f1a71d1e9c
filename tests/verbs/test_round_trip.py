import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelpack.oci.remote import RemoteRepository
from modelpack.spec import media, names
from modelpack.spec.errors import InputError, NotFound, TargetConflict
from modelpack.spec.index import Coding
from modelpack.spec.manifest import decode
from modelpack.spec.reference import Reference
from modelpack.verbs.copy import copy
from modelpack.verbs.pull import PullOptions, pull
from modelpack.verbs.push import PushOptions, push
from tests.conftest import fast
from tests.support.weights import make_model, make_tensors, safetensors, tree

FORMS = {
    "image": PushOptions(),
    "sha256": PushOptions(coding=Coding(algorithm="sha256")),
    "zstd": PushOptions(coding=Coding(codec="zstd")),
    "modelpack": PushOptions(modelpack_form=True),
    "prefix": PushOptions(prefix="models"),
}


@pytest.fixture(params=["registry", "layout"])
def reference(request, name, tmp_path):
    if request.param == "layout":
        return Reference.parse(f"oci:{tmp_path / 'layout'}:v1")
    return Reference.parse(f"{request.getfixturevalue('registry').host}/{name}:v1")


@pytest.mark.parametrize("form", FORMS)
def test_what_is_pushed_is_pulled(form, reference, model, tmp_path, session):
    """Every form comes back byte for byte, leaves nothing else behind, and says what moved."""
    options = FORMS[form]
    pushed = push(str(model), reference, session(), options)
    pulled = pull(reference, tmp_path / "out", session(), PullOptions())
    assert tree(tmp_path / "out" / options.prefix) == tree(model)
    assert pulled.digest == pushed.digest
    total = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    assert pushed.bytes_total == pulled.bytes_total == total
    assert pushed.bytes_moved > 0.5 * total
    assert pulled.bytes_reused == 0
    assert [p.name for p in tmp_path.iterdir() if "modelpack" in p.name] == []


def test_pushing_again_moves_nothing(reference, model, session):
    """The second push finds everything there and gives the same digest."""
    first = push(str(model), reference, session(), PushOptions())
    again = push(str(model), reference, session(), PushOptions())
    assert (again.digest, again.bytes_moved) == (first.digest, 0)
    assert again.bytes_reused == first.bytes_moved


def test_pulling_again_moves_nothing(reference, model, tmp_path, session):
    """What is in place is verified and left alone."""
    push(str(model), reference, session(), PushOptions())
    pull(reference, tmp_path / "out", session(), PullOptions())
    inodes = {p: p.stat().st_ino for p in (tmp_path / "out").rglob("*")}
    again = pull(reference, tmp_path / "out", session(), PullOptions())
    assert again.bytes_moved == 0
    assert again.bytes_reused == again.bytes_total
    assert {p: p.stat().st_ino for p in (tmp_path / "out").rglob("*")} == inodes


def test_a_second_version_moves_what_changed(reference, model, tmp_path, session):
    """One changed tensor, a renamed shard, other metadata: only the tensor travels."""
    push(str(model), reference, session(), PushOptions())
    pull(reference, tmp_path / "out", session(), PullOptions())
    for number in (1, 2):
        old = model / f"model-0000{number}-of-00002.safetensors"
        old.rename(model / f"renamed-{number}.safetensors")
    (model / "model.safetensors.index.json").unlink()
    tensors = make_tensors(12, [6_000_000, 300, 70_000, 4_000])
    changed = os.urandom(70_000)
    tensors["layers.2.weight"] = changed
    safetensors(
        model / "renamed-2.safetensors",
        {f"s2.{k}": v for k, v in tensors.items()}, {"edited": "x" * 500},
    )  # fmt: skip
    push(str(model), reference, session(), PushOptions())
    pulled = pull(reference, tmp_path / "out", session(), PullOptions())
    assert tree(tmp_path / "out") == tree(model)
    assert pulled.bytes_moved < 70_000 + 10_000
    assert sorted(pulled.removed) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    elsewhere = pull(reference, tmp_path / "new", session(), PullOptions(reuse=[tmp_path / "out"]))
    assert tree(tmp_path / "new") == tree(model)
    assert elsewhere.bytes_moved == 0


def test_the_users_files_are_safe(reference, model, tmp_path, session):
    """A pull adds to a directory; an edited or foreign file of the same name stops it before it
    fetches anything."""
    push(str(model), reference, session(), PushOptions())
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.md").write_text("mine")
    pull(reference, out, session(), PullOptions())
    assert (out / "notes.md").read_text() == "mine"
    (out / "config.json").write_text("edited")
    before = tree(out)
    with pytest.raises(TargetConflict, match=r"config\.json"):
        pull(reference, out, session(), PullOptions())
    assert tree(out) == before
    pull(reference, out, session(), PullOptions(overwrite=True))
    assert {k: v for k, v in tree(out).items() if k != "notes.md"} == tree(model)


def test_selection(reference, model, tmp_path, session):
    """--include and --exclude choose files; nothing chosen is an error that says so."""
    push(str(model), reference, session(), PushOptions())
    pulled = pull(
        reference, tmp_path / "o", session(), PullOptions(include=["*.json"], exclude=["tok*"])
    )
    assert sorted(tree(tmp_path / "o")) == ["config.json", "model.safetensors.index.json"]
    assert pulled.bytes_moved < 4000
    with pytest.raises(NotFound, match="none of"):
        pull(reference, tmp_path / "p", session(), PullOptions(include=["*.bin"]))


def test_equal_bytes_travel_once(reference, tmp_path, session):
    """A file that occurs twice, and tensors that are tied, are fetched once and copied."""
    source = tmp_path / "m"
    data = make_tensors(5, [5_000_000])["layers.0.weight"]
    safetensors(source / "a.safetensors", {"x": data, "y": data})
    (source / "copy.bin").write_bytes(data)
    push(str(source), reference, session(), PushOptions())
    pulled = pull(reference, tmp_path / "out", session(), PullOptions())
    assert tree(tmp_path / "out") == tree(source)
    assert pulled.bytes_moved < 5_100_000


def other_user():
    os.umask(0o077)


@pytest.mark.parametrize(
    "environment",
    [{"TZ": "Asia/Kolkata", "LC_ALL": "C", "PYTHONHASHSEED": "1"},
     {"TZ": "America/St_Johns", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "2", "LANG": "de_DE"}],
)  # fmt: skip
def test_the_same_bytes_give_the_same_digest(environment, model, tmp_path, session):
    """Another process, umask, time zone, locale, hash seed, directory order and mtime: one digest."""
    reference = Reference.parse(f"oci:{tmp_path / 'layout'}:v1")
    here = push(str(model), reference, session(), PushOptions())
    other = tmp_path / "other"
    files = sorted((p for p in model.rglob("*") if p.is_file()), key=lambda p: p.name, reverse=True)
    for path in files:
        target = other / path.relative_to(model)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        target.chmod(0o600)
        os.utime(target, (1, 1))
    done = subprocess.run(
        [sys.executable, "-m", "modelpack.cli.entry", "push", str(other), f"oci:{tmp_path / 'two'}:x",
         "--json", "--no-digest-cache"],
        env={**os.environ, **environment}, check=True, capture_output=True, preexec_fn=other_user,
    )  # fmt: skip
    assert json.loads(done.stdout)["digest"] == here.digest


def test_the_artifact_is_what_the_format_says(registry, name, model, session):
    """A plain image manifest, uncompressed tars, the index last, the facts in annotations."""
    reference = Reference.parse(f"{registry.host}/{name}:v1")
    push(str(model), reference, session(), PushOptions(annotations={"org.example.team": "a"}))
    repository = RemoteRepository(registry.host, name, fast())
    descriptor, data = repository.manifest("v1")
    repository.close()
    manifest = decode(data, "x")
    assert descriptor.media_type == manifest.media_type == media.OCI_MANIFEST
    assert {layer.media_type for layer in manifest.layers} == {media.LAYER_TAR}
    assert manifest.layers[-1].annotations == {names.ROLE: names.ROLE_INDEX}
    notes = manifest.annotations
    assert notes[names.PARAMETERS] == str(3_000_000 * 2 + 300 + 70_000 + 4_000)
    assert notes[names.KV_BYTES_PER_TOKEN] == str(2 * 2 * 2 * 16 * 2)
    assert notes[names.ARCHITECTURE] == "LlamaForCausalLM"
    assert json.loads(notes[names.TENSOR_BYTES]) == {"BF16": 2 * (6_000_000 + 300 + 70_000 + 4_000)}
    assert notes["org.example.team"] == "a"


def test_five_hundred_shards_fit_into_256_layers(tmp_path, session):
    """More weights than layers are put together, and come back."""
    source = tmp_path / "m"
    for number in range(500):
        safetensors(source / f"model-{number:05d}.safetensors", make_tensors(number, [500]))
    (source / "config.json").write_text("{}")
    reference = Reference.parse(f"oci:{tmp_path / 'layout'}:v1")
    pushed = push(str(source), reference, session(), PushOptions())
    assert pushed.layers == 255
    pull(reference, tmp_path / "out", session(), PullOptions())
    assert tree(tmp_path / "out") == tree(source)


def test_a_missing_shard_is_noticed(model, tmp_path, session):
    """An incomplete download is not published."""
    (model / "model-00002-of-00002.safetensors").unlink()
    reference = Reference.parse(f"oci:{tmp_path / 'layout'}:v1")
    with pytest.raises(InputError, match="model-00002-of-00002"):
        push(str(model), reference, session(), PushOptions())
    assert not (tmp_path / "layout").exists()


def test_layers_that_a_registry_would_refuse_are_met_before_the_upload(tmp_path, session):
    """A file above the limit of GHCR is refused at once, with what to do."""
    source = tmp_path / "m"
    source.mkdir()
    with (source / "huge.gguf.bin").open("wb") as file:
        file.truncate(11 * 10**9)
    started = time.monotonic()
    with pytest.raises(InputError, match=r"huge\.gguf\.bin.*GitHub.*10000000000") as caught:
        push(str(source), Reference.parse("ghcr.io/org/model:v1"), session(), PushOptions())
    assert "shards" in caught.value.hint
    assert time.monotonic() - started < 60  # it did not read 11 GB of zeros


def test_copies_keep_the_digest(registry, name, model, tmp_path, session):
    """Registry to layout to registry: the same manifest, the same bytes; a neighbour is mounted."""
    first = Reference.parse(f"{registry.host}/{name}:v1")
    layout = Reference.parse(f"oci:{tmp_path / 'layout'}:v1")
    last = Reference.parse(f"{registry.host}/{name}-copy:v9")
    pushed = push(str(model), first, session(), PushOptions())
    assert copy(first, layout, session()).digest == pushed.digest
    done = copy(first, last, session())
    assert (done.digest, done.bytes_moved) == (pushed.digest, 0)
    assert copy(layout, last, session()).bytes_moved == 0
    pull(last, tmp_path / "out", session(), PullOptions())
    assert tree(tmp_path / "out") == tree(model)


def test_one_file_is_a_model(model, tmp_path, session):
    """A single file is pushed under its own name."""
    reference = Reference.parse(f"oci:{tmp_path / 'layout'}:v1")
    source = model / "model-00001-of-00002.safetensors"
    push(str(source), reference, session(), PushOptions())
    pull(reference, tmp_path / "out", session(), PullOptions())
    assert tree(tmp_path / "out") == {source.name: tree(model)[source.name]}


def test_other_models_grow_nothing(tmp_path, session, registry, name):
    """A layer that another repository of the registry has is mounted, not sent."""
    source = make_model(tmp_path / "m", seed=99)
    push(str(source), Reference.parse(f"{registry.host}/{name}:v1"), session(), PushOptions())
    other = Reference.parse(f"{registry.host}/{name}-fork:v1")
    assert push(str(source), other, session(), PushOptions()).bytes_moved == 0


def test_sources_that_are_not_there(tmp_path, session):
    """A missing source is named."""
    reference = Reference.parse(f"oci:{tmp_path / 'l'}:v1")
    with pytest.raises(InputError, match="nowhere"):
        push(str(tmp_path / "nowhere"), reference, session(), PushOptions())
    shutil.rmtree(tmp_path / "l", ignore_errors=True)
    assert not Path(tmp_path / "l").exists()
