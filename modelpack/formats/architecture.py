"""What a model says of its own architecture: in config.json (Hugging Face), or in GGUF metadata.

Pure functions of hostile values: one of the wrong type is as good as absent, never an error.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

_LARGEST: Final = 1 << 48  # of any number here
_DTYPE_BYTES: Final = {
    "float64": 8, "float32": 4, "float8_e4m3fn": 1, "float8_e5m2": 1
}  # fmt: skip
_SIXTEEN_BITS: Final = 2  # what everything else is served in
# Multimodal models keep the language model's numbers one or two levels down.
_INNER: Final = ("thinker_config", "text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is known; None or empty where it is not."""

    name: str = ""
    hidden_layers: int | None = None
    kv_bytes_per_token: int | None = None
    context_length: int | None = None
    quantization: str = ""

    def or_else(self, other: "Architecture") -> "Architecture":
        """Return this one, with what it does not know taken from the other."""
        return Architecture(
            self.name or other.name,
            self.hidden_layers or other.hidden_layers,
            self.kv_bytes_per_token or other.kv_bytes_per_token,
            self.context_length or other.context_length,
            self.quantization or other.quantization,
        )


def from_config(config: Mapping[str, object]) -> Architecture:
    """Read config.json."""
    text = _flat(config)
    layers = _count(text, "num_hidden_layers", "n_layer", "num_layers")
    quantization = text.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else ""
    return Architecture(
        name=_first(config.get("architectures")) or _text(config.get("model_type")),
        hidden_layers=layers,
        kv_bytes_per_token=_config_cache(text, layers) if layers else None,
        context_length=_count(
            text, "max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"
        ),
        quantization=_text(method),
    )


def from_gguf(metadata: Mapping[str, object]) -> Architecture:
    """Read the metadata of a GGUF header."""
    name = _text(metadata.get("general.architecture"))
    layers = _count(metadata, f"{name}.block_count")
    return Architecture(
        name=name,
        hidden_layers=layers,
        kv_bytes_per_token=_gguf_cache(metadata, name, layers) if layers else None,
        context_length=_count(metadata, f"{name}.context_length"),
    )


def _flat(config: Mapping[str, object]) -> dict[str, object]:
    """Return the numbers of the language model; what it leaves out is taken from outside."""
    flat: dict[str, object] = {}
    level: object = config
    for _ in range(3):
        if not isinstance(level, Mapping):
            break
        flat.update((key, value) for key, value in level.items() if value is not None)
        level = next((level[key] for key in _INNER if isinstance(level.get(key), dict)), None)
    return flat


def _config_cache(text: Mapping[str, object], layers: int) -> int | None:
    dtype = _text(text.get("dtype")) or _text(text.get("torch_dtype"))
    width = _DTYPE_BYTES.get(dtype.removeprefix("torch."), _SIXTEEN_BITS)
    kinds = text.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        layers = sum(map(_has_cache, kinds))
    latent, rope = _count(text, "kv_lora_rank"), _count(text, "qk_rope_head_dim")
    if latent and rope:
        return _bytes(layers, latent + rope, width)  # multi-head latent attention: one vector
    heads = _count(text, "num_attention_heads", "n_head")
    shared = 1 if text.get("multi_query") is True else None
    key_heads = (
        _count(text, "num_key_value_heads", "num_kv_heads", "multi_query_group_num")
        or shared
        or heads
    )
    hidden = _count(text, "hidden_size", "n_embd", "d_model")
    head = _count(text, "head_dim", "kv_channels") or _each(hidden, heads)
    return _bytes(layers, key_heads, head, 2 * width)


def _has_cache(kind: object) -> bool:
    """Whether a layer of this kind keeps keys and values; others keep a state of fixed size."""
    return isinstance(kind, str) and "attention" in kind and not kind.startswith("linear")


def _gguf_cache(metadata: Mapping[str, object], name: str, layers: int) -> int | None:
    latent = _count(metadata, f"{name}.attention.kv_lora_rank")
    rope = _count(metadata, f"{name}.rope.dimension_count")
    # Without this key the tensors are those of plain multi-head attention, whatever the rank says.
    if latent and rope and f"{name}.attention.key_length_mla" in metadata:
        return _bytes(layers, latent + rope, _SIXTEEN_BITS)
    heads = _count(metadata, f"{name}.attention.head_count")
    own = _each(_count(metadata, f"{name}.embedding_length"), heads)
    key = _count(metadata, f"{name}.attention.key_length") or own
    value = _count(metadata, f"{name}.attention.value_length") or own
    both = key + value if key and value else None
    per_layer = metadata.get(f"{name}.attention.head_count_kv")
    if isinstance(per_layer, tuple):
        return _bytes(_sum(per_layer), both, _SIXTEEN_BITS)
    key_heads = _count(metadata, f"{name}.attention.head_count_kv") or heads
    return _bytes(layers, key_heads, both, _SIXTEEN_BITS)


def _bytes(*factors: int | None) -> int | None:
    product = 1
    for factor in factors:
        if not factor:
            return None
        product *= factor
    return product if product < _LARGEST else None


def _each(total: int | None, parts: int | None) -> int | None:
    return total // parts if total and parts else None


def _sum(values: Iterable[object]) -> int:
    return sum(value for value in values if isinstance(value, int) and 0 < value < _LARGEST)


def _count(values: Mapping[str, object], *keys: str) -> int | None:
    for key in keys:
        value = values.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _LARGEST:
            return value
    return None


def _first(value: object) -> str:
    return _text(value[0]) if isinstance(value, list) and value else ""


def _text(value: object) -> str:
    return value[:128] if isinstance(value, str) and value.isprintable() else ""
