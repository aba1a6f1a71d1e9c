"""What must not grow: memory with the size of a model, the index with the number of chunks."""

import os
import shutil
import statistics
import time
from pathlib import Path

from bench import measure
from modelpack.chunks.cut import CHUNK_SIZE
from modelpack.spec.index import ChunkIndex, FileEntry, Header, LayerEntry, decode
from modelpack.spec.tarrule import literals


def terabyte_index() -> ChunkIndex:
    """200 shards of 5 GB, as a real model would have them."""
    layers, lengths = [], []
    for number in range(200):
        size = 5 * 10**9
        own = [CHUNK_SIZE] * (size // CHUNK_SIZE) + [size % CHUNK_SIZE]
        path = f"model-{number:05d}-of-00200.safetensors"
        framed = size + sum(len(part) for part in literals([(path, size)]))
        digest = f"sha256:{number:064x}"
        layers.append(LayerEntry(digest, framed, (FileEntry(path, size, len(own)),)))
        lengths += own
    header = Header("blake3", CHUNK_SIZE, tuple(layers))
    return ChunkIndex(header, lengths, lengths, memoryview(os.urandom(32 * len(lengths))))


def index_of_one_terabyte() -> dict[str, object]:
    data = terabyte_index().encode()
    times = []
    for _ in range(9):
        started = time.perf_counter()
        index = decode(data)
        times.append(time.perf_counter() - started)
    return {
        "chunks": len(index),
        "bytes": len(data),
        "bytes_per_chunk": round(len(data) / len(index), 2),
        "open_milliseconds": round(1000 * statistics.median(times), 1),
    }


def memory_by_size(data: Path, modelpack: str, registry) -> dict[str, object]:
    """Peak resident bytes of push and pull of sparse models: zeros cost disk, not memory."""
    found = {}
    for gigabytes in (0.1, 1, 4):
        model = data / "sparse"
        model.mkdir(parents=True, exist_ok=True)
        # No two chunks are equal, or the second would be copied instead of fetched.
        with (model / "weights.bin").open("wb") as file:
            for at in range(0, round(gigabytes * 1e9), 1 << 20):
                file.seek(at)
                file.write(at.to_bytes(8, "little"))
            file.truncate(round(gigabytes * 1e9))
        for old in ("memory-registry", "memory-out"):
            shutil.rmtree(data / old, ignore_errors=True)
        with registry(data / "memory-registry") as host:
            reference = f"{host}/bench/memory:{gigabytes:g}"
            push = measure.run([modelpack, "push", str(model), reference])
            pull = measure.run([modelpack, "pull", reference, str(data / "memory-out")])
        found[f"{gigabytes:g} GB"] = {"push": push.rss, "pull": pull.rss}
    return found
