"""Format 1, byte by byte: these digests may never change (docs/design/artifact.md)."""

import json
import struct

import pytest

from modelpack.oci.layout import LayoutRepository
from modelpack.spec.index import Coding
from modelpack.spec.manifest import decode
from modelpack.spec.reference import Reference
from modelpack.verbs.push import PushOptions, push


def golden_model(directory):
    """A model of every kind of file that the format treats differently, from arithmetic alone."""
    large = bytes(n * 7 % 251 for n in range(1 << 20)) * 9  # a tensor of nine megabytes
    small = bytes(range(256)) * 10
    tensors = {
        "a.weight": large,
        "b.norm": small,
        "c.bias": small[:100],
        "d.weight": large[::-1][: 5 << 20],
    }
    header, offset = {}, 0
    for name, data in tensors.items():
        header[name] = {
            "dtype": "U8",
            "shape": [len(data)],
            "data_offsets": [offset, offset + len(data)],
        }
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    (directory / "sub").mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + b"".join(tensors.values())
    )
    (directory / "big.bin").write_bytes(large + large)
    (directory / "config.json").write_text('{"num_hidden_layers": 1}')
    (directory / "empty").write_bytes(b"")
    (directory / "sub" / "Ünï 模型.txt").write_text("names")
    (directory / "sub" / ("n" * 120)).write_text("long")
    return directory


GOLDEN = {
    "image": (
        PushOptions(),
        "sha256:098b72b27ea3cabd2047ca347beb093b2b646f7dee34ba8e6508a1b10df3f3a7",
    ),
    "sha256 chunks": (
        PushOptions(coding=Coding(algorithm="sha256")),
        "sha256:4327c966fce4fe056942e2b52cb897e1d9236b36ae5787f1f62b6883f24c4769",
    ),
    "models prefix": (
        PushOptions(prefix="models"),
        "sha256:d54a095ef313f12727b2b8c16bbef1d7efee3391c1108f86e6c77a14afff1cab",
    ),
    "modelpack": (
        PushOptions(modelpack_form=True),
        "sha256:d836ec63beb54cfd18c5188a7a96fa45b4b7470dec963b45c87fba08660372d6",
    ),
}


@pytest.mark.parametrize("form", GOLDEN)
def test_manifest_digests(form, tmp_path, session):
    """The same bytes give the digests that they gave when format 1 was made."""
    options, expected = GOLDEN[form]
    reference = Reference.parse(f"oci:{tmp_path / 'golden'}:v1")
    done = push(str(golden_model(tmp_path / "m")), reference, session(), options)
    assert done.digest == expected


def test_the_config_and_the_source_date(tmp_path, session, monkeypatch):
    """The config is what the format says; only SOURCE_DATE_EPOCH brings a time into it."""
    source = tmp_path / "m"
    source.mkdir()
    (source / "a").write_text("a")
    configs = []
    for epoch in ("", "1767225600"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        layout = tmp_path / f"layout{epoch}"
        push(str(source), Reference.parse(f"oci:{layout}:v1"), session(), PushOptions())
        repository = LayoutRepository(layout)
        manifest = decode(repository.manifest("v1")[1], "x")
        configs.append((layout / "blobs" / "sha256" / manifest.config.digest[7:]).read_text())
        repository.close()
    diff_ids = ",".join(f'"{layer.digest}"' for layer in manifest.layers)
    head = '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":['
    assert configs[0] == f"{head}{diff_ids}]}}}}"
    assert configs[1] == f'{head}{diff_ids}]}},"created":"2026-01-01T00:00:00Z"}}'
