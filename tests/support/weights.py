"""Model directories for tests: small, deterministic, of the standard library alone."""

import hashlib
import json
import os
import random
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from statistics import NormalDist

from tests.formats.builders import STRING, U32, gguf, info, pair

# The upper bytes (sign and most of the exponent) of normally distributed weights: what makes bf16
# compress by about a fifth, and nothing else of it.
_UPPER = bytes(
    struct.pack(">f", NormalDist(0, 0.02).inv_cdf((n + 0.5) / 256))[0] for n in range(256)
)


def bf16(seed: int, size: int) -> bytes:
    """Return an even number of bytes of weights that look trained."""
    generator = random.Random(seed)
    data = bytearray(size)
    data[0::2] = generator.randbytes(size // 2)
    data[1::2] = generator.randbytes(size // 2).translate(_UPPER)
    return bytes(data)


def make_tensors(seed: int, sizes: list[int]) -> dict[str, bytes]:
    """Return tensors of these sizes in bytes."""
    return {f"layers.{n}.weight": bf16(seed * 1000 + n, size) for n, size in enumerate(sizes)}


def safetensors(path: Path, tensors: dict[str, bytes], metadata: dict | None = None) -> None:
    """Write bf16 tensors to one file."""
    header: dict = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "BF16", "shape": [len(data) // 2],
                        "data_offsets": [offset, offset + len(data)]}  # fmt: skip
        offset += len(data)
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors.values()))


def make_model(directory: Path, seed: int = 1, megabytes: int = 12) -> Path:
    """Two shards with index, config, tokenizer, odd names and an empty file."""
    half = megabytes * 500_000
    sizes = [half // 2 * 2, 300, 70_000, 4_000]
    weight_map = {}
    for shard in (1, 2):
        name = f"model-{shard:05d}-of-00002.safetensors"
        tensors = make_tensors(seed * 10 + shard, sizes)
        safetensors(directory / name, {f"s{shard}.{k}": v for k, v in tensors.items()})
        weight_map.update({f"s{shard}.{key}": name for key in tensors})
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64,
              "num_attention_heads": 4, "num_key_value_heads": 2, "torch_dtype": "bfloat16",
              "max_position_embeddings": 2048}  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text(json.dumps({str(n): n for n in range(5000)}))
    (directory / "empty").write_bytes(b"")
    odd = directory / "Ünï cøde" / "模型" / "a b.txt"
    odd.parent.mkdir(parents=True)
    odd.write_text("odd names are names too")
    return directory


def make_gguf(path: Path, seed: int = 1, values: int = 100_000) -> Path:
    """Write a GGUF file with one f32 tensor of so many values and one of ten."""
    pairs = [
        pair("general.architecture", STRING, "llama"),
        pair("general.name", STRING, "small"),
        pair("llama.block_count", U32, 2),
        pair("general.alignment", U32, 32),
    ]
    second = -(-values * 4 // 32) * 32
    infos = [info("token_embd.weight", (values,)), info("output_norm.weight", (10,), offset=second)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gguf(pairs, infos) + random.Random(seed).randbytes(second + 40))
    return path


def make_odd_names(directory: Path) -> Path:
    """Write files whose names are legal and rare: long, deep, composed and decomposed, empty ones."""
    names = [
        "a b.txt", "-rf", "#frag?query&x=%20", "quote's \"twice\"", "模型.txt", "😀.bin",
        "n" * 255, "é" * 127, "/".join(["deep"] * 40) + "/x", "ends with space ",
    ]  # fmt: skip
    for number, name in enumerate(names):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if number % 3 == 2 else name.encode())
    return directory


def make_sparse(path: Path, size: int = (8 << 30) + 12345) -> Path:
    """Write a file that is larger than USTAR can say and takes next to nothing on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(b"first")
        file.truncate(size)
        file.seek(size - 4)
        file.write(b"last")
    return path


def make_hf_cache(root: Path, model: Path, repository: str = "org/small") -> Path:
    """Lay a model out as huggingface_hub does: contents in `blobs`, a snapshot of links to them.

    Return the snapshot, which `refs/main` names.
    """
    revision = hashlib.sha1(repository.encode()).hexdigest()
    top = root / f"models--{repository.replace('/', '--')}"
    snapshot = top / "snapshots" / revision
    (top / "blobs").mkdir(parents=True)
    (top / "refs").mkdir()
    (top / "refs" / "main").write_text(revision)
    for path in sorted(model.rglob("*")):
        if path.is_file():
            blob = top / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            blob.write_bytes(path.read_bytes())
            link = snapshot / path.relative_to(model)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def tree(directory: Path, *, ignore: Iterable[str] = ()) -> dict[str, str]:
    """Return path -> SHA-256 of all files below a directory, and what else is there.

    A link to a file counts as the file. Other links, empty directories, devices and the like are
    named for what they are. Nothing is left out but the paths in `ignore`.
    """
    found = {}
    for parent, directories, files in os.walk(directory):
        for name in [*directories, *files]:
            path = Path(parent, name)
            if what := _what(path):
                found[str(path.relative_to(directory))] = what
    return {path: what for path, what in found.items() if path not in set(ignore)}


def _what(path: Path) -> str:
    """Say what is there; nothing for a directory with something in it."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if path.is_symlink():
        return f"-> {path.readlink()}"
    if path.is_dir():
        return "" if any(path.iterdir()) else "empty directory"
    return stat.filemode(path.stat().st_mode)
