"""Realistic bf16 safetensors: normally distributed weights, as initialised and trained layers have."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np

SHARD_BYTES = 500_000_000
_SHAPES = ((4096, 4096), (1024, 4096), (4096,), (14336, 1024), (4096, 1024))


def bf16(shape: tuple[int, ...], generator: np.random.Generator) -> bytes:
    """Return weights with a standard deviation of 0.02, rounded to bf16."""
    values = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()


def write_shard(path: Path, tensors: dict[str, tuple[tuple[int, ...], bytes]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, data) in tensors.items():
        end = offset + len(data)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, data in tensors.values():
            file.write(data)


def make_model(directory: Path, total: int, seed: int = 7) -> None:
    """Write a sharded model of about `total` bytes, with index, config and a tokenizer."""
    if (directory / "config.json").exists():
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    count = max(1, round(total / SHARD_BYTES))
    weight_map = {}
    layer = 0
    for number in range(1, count + 1):
        name = f"model-{number:05d}-of-{count:05d}.safetensors"
        tensors: dict[str, tuple[tuple[int, ...], bytes]] = {}
        size = 0
        while size < SHARD_BYTES:
            for part, shape in enumerate(_SHAPES):
                key = f"model.layers.{layer}.part{part}.weight"
                tensors[key] = (shape, bf16(shape, generator))
                size += len(tensors[key][1])
                weight_map[key] = name
            layer += 1
        write_shard(directory / name, tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "tokenizer.json").write_text(json.dumps({str(n): n for n in range(100_000)}))
    (directory / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": layer,
                    "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
                    "torch_dtype": "bfloat16", "max_position_embeddings": 8192})
    )  # fmt: skip


def change_tensors(source: Path, directory: Path, share: float, seed: int = 11) -> None:
    """Copy a model and replace `share` of its tensor bytes, spread over all shards."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(source, directory)
    generator = np.random.default_rng(seed)
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("r+b") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            budget = share * (path.stat().st_size - length)
            for entry in header.values():
                begin, end = entry["data_offsets"]
                if end - begin <= budget:
                    budget -= end - begin
                    file.seek(8 + length + begin)
                    file.write(bf16(tuple(entry["shape"]), generator))
