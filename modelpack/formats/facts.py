"""What placement needs to know of a model, from its headers and its config.json.

All of it is hostile: a value of the wrong type is as good as absent, never an error.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from modelpack.spec import limits
from modelpack.spec.tensors import TensorFile

_LARGEST: Final = 1 << 48  # of any count in a config
_DTYPE_BYTES: Final = {"float32": 4, "float64": 8, "float8_e4m3fn": 1, "float8_e5m2": 1}
_RUNTIME_BYTES: Final = 2 * limits.GIB  # CUDA context, activations, graphs
_WEIGHT_MARGIN: Final = 1.10


@dataclass(frozen=True, slots=True)
class Facts:
    """Numbers about a model; None or empty where unknown.

    `parameters` counts the elements of all tensors: for packed integer formats (GPTQ, AWQ) these
    are the packed words, not the weights inside. `kv_bytes_per_token` is for the whole model, in
    the type of its config.
    """

    tensor_bytes: Mapping[str, int] = field(default_factory=dict)
    parameters: int = 0
    architecture: str = ""
    hidden_layers: int | None = None
    kv_bytes_per_token: int | None = None
    context_length: int | None = None
    quantization: str = ""


def parse_config(data: bytes) -> dict[str, object] | None:
    """Read config.json; None if it is not a JSON object or too large."""
    if len(data) > limits.CONFIG_BYTES:
        return None
    try:
        return msgspec.json.decode(data, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def model_facts(headers: Mapping[str, TensorFile], config: Mapping[str, object] | None) -> Facts:
    """Put together what headers and config say."""
    sizes: Counter[str] = Counter()
    parameters = 0
    metadata: Mapping[str, object] = {}
    for header in headers.values():
        if header.format == "gguf" and not metadata:
            metadata = header.metadata
        for tensor in header.tensors:
            sizes[tensor.dtype] += tensor.size
            parameters += tensor.elements
    known = _from_config(config) if config else _from_gguf(metadata)
    return Facts(
        tensor_bytes=dict(sorted(sizes.items())),
        parameters=parameters,
        architecture=known.architecture,
        hidden_layers=known.hidden_layers,
        kv_bytes_per_token=known.kv_bytes_per_token,
        context_length=known.context_length,
        quantization=known.quantization or _largest_quantization(metadata, sizes),
    )


def estimated_vram(facts: Facts, weight_bytes: int, context: int = 0) -> int:
    """Bytes of VRAM to start serving on one GPU: 1.10 x weights + KV of one sequence + 2 GiB.

    `context` is the length of the sequence in tokens; 0 means the model's own maximum, at most
    8192. For models between 3 and 13 billion parameters this is within 10-15 %.
    """
    tokens = context or min(facts.context_length or 0, 8192)
    return (
        round(_WEIGHT_MARGIN * weight_bytes)
        + (facts.kv_bytes_per_token or 0) * tokens
        + _RUNTIME_BYTES
    )


def _from_config(config: Mapping[str, object]) -> Facts:
    # Multimodal models keep the language model's numbers one level down.
    inner = config.get("text_config")
    text = {**config, **inner} if isinstance(inner, dict) else dict(config)
    layers = _count(text, "num_hidden_layers", "n_layer", "num_layers")
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else ""
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else ""
    return Facts(
        architecture=_text(named) or _text(config.get("model_type")),
        hidden_layers=layers,
        kv_bytes_per_token=_kv_bytes(text, layers),
        context_length=_count(
            text, "max_position_embeddings", "n_positions", "max_sequence_length"
        ),
        quantization=_text(method),
    )


def _kv_bytes(text: Mapping[str, object], layers: int | None) -> int | None:
    width = _DTYPE_BYTES.get(_text(text.get("torch_dtype")) or _text(text.get("dtype")), 2)
    if layers is None:
        return None
    latent, rope = _count(text, "kv_lora_rank"), _count(text, "qk_rope_head_dim")
    if latent and rope:
        return (latent + rope) * layers * width  # multi-head latent attention keeps one vector
    heads = _count(text, "num_attention_heads", "n_head")
    key_heads = _count(text, "num_key_value_heads") or heads
    hidden = _count(text, "hidden_size", "n_embd", "d_model")
    head = _count(text, "head_dim") or (hidden // heads if hidden and heads else None)
    if not key_heads or not head:
        return None
    return 2 * layers * key_heads * head * width


def _from_gguf(metadata: Mapping[str, object]) -> Facts:
    name = _text(metadata.get("general.architecture"))
    layers = _count(metadata, f"{name}.block_count")
    heads = _count(metadata, f"{name}.attention.head_count")
    key_heads = _count(metadata, f"{name}.attention.head_count_kv") or heads
    hidden = _count(metadata, f"{name}.embedding_length")
    own = hidden // heads if hidden and heads else None
    key = _count(metadata, f"{name}.attention.key_length") or own
    value = _count(metadata, f"{name}.attention.value_length") or own
    cache = (
        layers * key_heads * (key + value) * 2 if layers and key_heads and key and value else None
    )
    return Facts(
        architecture=name,
        hidden_layers=layers,
        kv_bytes_per_token=cache,
        context_length=_count(metadata, f"{name}.context_length"),
    )


def _largest_quantization(metadata: Mapping[str, object], sizes: Mapping[str, int]) -> str:
    if not metadata or not sizes:
        return ""
    largest = max(sizes, key=lambda dtype: sizes[dtype])
    return largest if largest.startswith(("Q", "IQ", "TQ", "MXFP", "NVFP")) else ""


def _count(values: Mapping[str, object], *keys: str) -> int | None:
    for key in keys:
        value = values.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _LARGEST:
            return value
    return None


def _text(value: object) -> str:
    return value[:128] if isinstance(value, str) and value.isprintable() else ""
