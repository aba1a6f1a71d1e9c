"""Model directories for tests, small and deterministic."""

import hashlib
import json
import random
import struct
from pathlib import Path


def safetensors(path: Path, tensors: dict[str, bytes], metadata: dict | None = None) -> None:
    header: dict = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "BF16", "shape": [len(data) // 2],
                        "data_offsets": [offset, offset + len(data)]}  # fmt: skip
        offset += len(data)
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors.values()))


def make_tensors(seed: int, sizes: list[int]) -> dict[str, bytes]:
    generator = random.Random(seed)
    return {f"layers.{n}.weight": generator.randbytes(size) for n, size in enumerate(sizes)}


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


def tree(directory: Path) -> dict[str, str]:
    """Return path -> SHA-256 of all regular files below a directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }
