"""What placement needs to know of a model, from its headers and its config.json."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from modelpack.formats.architecture import Architecture, from_config, from_gguf
from modelpack.spec import limits
from modelpack.spec.tensors import TensorFile

_RUNTIME_BYTES: Final = 2 * limits.GIB  # CUDA context, activations, graphs
_CONTEXT: Final = 8_192  # tokens, where the caller does not say
_DTYPES: Final = 64  # what is listed; a header may invent a million
_QUANTIZED: Final = ("Q", "IQ", "TQ", "MXFP", "NVFP", "F8_", "F6_", "F4")


@dataclass(frozen=True, slots=True)
class Facts:
    """Numbers about a model; None or empty where unknown.

    `tensor_bytes` has the bytes of each tensor type as its file names it (at most the 64 largest).

    `parameters` counts the elements of all tensors. For GGUF these are the weights, whatever the
    block type. For integers that hold several weights each (GPTQ and AWQ in I32, MXFP4 in U8) they
    are the integers, not the weights inside, and scales count too.

    `kv_bytes_per_token` is for the whole model, keys and values of all layers, in the type of its
    config (16 bits in GGUF). Sliding windows count as full attention: it is an upper bound.

    `quantization` is the method that config.json names, or else the type of most bytes if that is a
    quantized one.
    """

    tensor_bytes: Mapping[str, int] = field(default_factory=dict)
    parameters: int = 0
    architecture: str = ""
    hidden_layers: int | None = None
    kv_bytes_per_token: int | None = None
    context_length: int | None = None
    quantization: str = ""


def parse_config(data: bytes) -> dict[str, object] | None:
    """Read config.json; None if it is not a JSON object or larger than limits.CONFIG_BYTES."""
    if len(data) > limits.CONFIG_BYTES:
        return None
    try:
        return msgspec.json.decode(_without_infinity(data), type=dict[str, object])
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _without_infinity(data: bytes) -> bytes:
    # Python writes Infinity and NaN, and configs of state-space models have them; JSON has not.
    if b"Infinity" not in data and b"NaN" not in data:
        return data
    return json.dumps(json.loads(data, parse_constant=lambda _: None)).encode()


def model_facts(headers: Mapping[str, TensorFile], config: Mapping[str, object] | None) -> Facts:
    """Put together what headers (by path) and config say; config.json is believed first."""
    sizes: Counter[str] = Counter()
    parameters = 0
    known = from_config(config or {})
    for header in headers.values():
        if header.format == "gguf":
            known = known.or_else(_language_model(header))
        for tensor in header.tensors:
            sizes[tensor.dtype] += tensor.size
            parameters += tensor.elements
    return Facts(
        tensor_bytes=dict(sorted(sizes.most_common(_DTYPES))),
        parameters=parameters,
        architecture=known.name,
        hidden_layers=known.hidden_layers,
        kv_bytes_per_token=known.kv_bytes_per_token,
        context_length=known.context_length,
        quantization=known.quantization or _quantized(sizes),
    )


def estimated_vram(facts: Facts, weight_bytes: int, context: int = 0) -> int:
    """Bytes of VRAM to start serving on one GPU: 1.10 x weights + KV of one sequence + 2 GiB.

    `context` is the length of the sequence in tokens; 0 means the model's own maximum, at most
    8192. Expect it to be within 10-15 % of the least that an engine starts with, before any
    measurement has corrected it.
    """
    tokens = context or min(facts.context_length or 0, _CONTEXT)
    cache = (facts.kv_bytes_per_token or 0) * tokens
    return weight_bytes + -(-weight_bytes // 10) + cache + _RUNTIME_BYTES


def _language_model(header: TensorFile) -> Architecture:
    found = from_gguf(header.metadata)
    # The vision encoder of a multimodal model is a file of its own, and not the model.
    return Architecture() if found.name == "clip" else found


def _quantized(sizes: Counter[str]) -> str:
    largest = max(sizes, key=lambda dtype: (sizes[dtype], dtype), default="")
    return largest if largest.startswith(_QUANTIZED) else ""
