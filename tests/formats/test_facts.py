import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpack.formats.facts import Facts, estimated_vram, model_facts, parse_config
from modelpack.spec import limits
from modelpack.spec.tensors import Tensor, TensorFile

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}
KINDS = (["linear_attention"] * 3 + ["full_attention"]) * 12


def header(form="safetensors", metadata=None, **sizes):
    """Return a header with a tensor of each type, given in bytes; elements are two bytes each."""
    tensors, at = [], 100
    for dtype, size in sizes.items():
        tensors.append(Tensor(dtype, dtype, (size // 2,), at, at + size))
        at += size
    return TensorFile(form, 100, tuple(tensors), metadata or {})


@pytest.mark.parametrize(
    ("config", "kv_bytes"),
    [
        (LLAMA, 131_072),
        ({**LLAMA, "num_hidden_layers": 80, "num_attention_heads": 64,
          "hidden_size": 8192}, 327_680),
        ({**LLAMA, "head_dim": 64}, 65_536),
        ({**LLAMA, "torch_dtype": "float32"}, 262_144),
        ({**LLAMA, "dtype": "torch.float32"}, 262_144),
        ({**LLAMA, "num_key_value_heads": None}, 524_288),
        ({"n_layer": 12, "n_head": 12, "n_embd": 768}, 36_864),
        ({"num_hidden_layers": 32, "num_attention_heads": 71, "hidden_size": 4544,
          "multi_query": True}, 8_192),
        ({"num_layers": 28, "num_attention_heads": 32, "hidden_size": 4096, "kv_channels": 128,
          "multi_query_group_num": 2}, 28_672),
        ({"num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
          "num_attention_heads": 128, "num_key_value_heads": 128, "hidden_size": 7168}, 70_272),
        ({"num_hidden_layers": 48, "num_key_value_heads": 2, "head_dim": 256,
          "layer_types": KINDS}, 24_576),
        ({**LLAMA, "num_key_value_heads": True}, 524_288),
        ({**LLAMA, "num_hidden_layers": "32"}, None),
        ({**LLAMA, "num_hidden_layers": -1}, None),
        ({**LLAMA, "head_dim": 1 << 47}, None),
        ({"num_hidden_layers": 32}, None),
    ],
    ids=[
        "llama-8b", "llama-70b", "head_dim", "float32", "torch.float32", "no-gqa", "gpt2", "falcon",
        "chatglm", "deepseek-v3", "qwen3-next", "bool", "text", "negative", "huge", "too-little",
    ],
)  # fmt: skip
def test_cache_bytes_per_token_are_those_of_the_model(config, kv_bytes):
    """Full, grouped, shared and latent attention, and layers without a cache."""
    assert model_facts({}, config).kv_bytes_per_token == kv_bytes


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["X"], "text_config": {**LLAMA, "architectures": None}},
        {"architectures": ["X"], "llm_config": LLAMA, "vision_config": {"num_hidden_layers": 7}},
        {"architectures": ["X"], "thinker_config": {"text_config": LLAMA}},
        {"architectures": ["X"], "num_hidden_layers": 3, "text_config": LLAMA},
        {**LLAMA, "architectures": ["X"], "text_config": {"num_hidden_layers": None}},
    ],
    ids=range(5),
)
def test_multimodal_models_keep_their_numbers_further_in(config):
    """The name is that of the whole model, the numbers are those of its language model."""
    found = model_facts({}, config)
    assert found.architecture == "X"
    assert (found.hidden_layers, found.kv_bytes_per_token) == (32, 131_072)
    assert found.context_length == 131_072


def test_tensor_bytes_and_parameters_are_summed_over_all_files():
    """By type, in the order of their names."""
    headers = {"a": header(F32=400, BF16=800), "b": header(BF16=200)}
    found = model_facts(headers, LLAMA)
    assert list(found.tensor_bytes.items()) == [("BF16", 1000), ("F32", 400)]
    assert found.parameters == 700


def test_what_a_header_invents_does_not_grow_without_bound():
    """Names are cut, and of a thousand types only the largest are listed."""
    sizes = {f"T{n}": 2 * n for n in range(1000)}
    found = model_facts({"m": header(**sizes)}, {"architectures": ["X" * 1000]})
    assert list(found.tensor_bytes.values()) == [2 * n for n in range(936, 1000)]
    assert found.architecture == "X" * 128


@pytest.mark.parametrize(
    ("config", "sizes", "quantization"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, {"I32": 100, "F16": 10}, "gptq"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, {"I32": 100}, "awq"),
        ({}, {"F8_E4M3": 100, "BF16": 50}, "F8_E4M3"),
        ({}, {"Q4_K": 100, "Q6_K": 50, "F32": 10}, "Q4_K"),
        ({}, {"BF16": 100, "F8_E4M3": 50}, ""),
        ({"quantization_config": "gptq"}, {"I32": 100}, ""),
        ({"quantization_config": {"quant_method": ["gptq"]}}, {"I32": 100}, ""),
        ({}, {}, ""),
    ],
    ids=range(8),
)
def test_quantization_is_named_by_the_config_or_by_most_bytes(config, sizes, quantization):
    """A few quantized tensors do not make a quantized model."""
    assert model_facts({"m": header(**sizes)}, config).quantization == quantization


GGUF_LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.context_length": 8192,
    "llama.embedding_length": 4096,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
}
GGUF_DEEPSEEK = {
    "general.architecture": "d",
    "d.block_count": 61,
    "d.attention.head_count": 128,
    "d.attention.head_count_kv": 1,
    "d.attention.kv_lora_rank": 512,
    "d.rope.dimension_count": 64,
    "d.attention.key_length": 576,
    "d.attention.value_length": 512,
    "d.attention.key_length_mla": 192,
}


@pytest.mark.parametrize(
    ("metadata", "kv_bytes"),
    [
        (GGUF_LLAMA, 131_072),
        ({**GGUF_LLAMA, "llama.attention.key_length": 64}, 98_304),
        ({**GGUF_LLAMA, "llama.attention.head_count_kv": (8, 0, 0, 8)}, 8_192),
        ({**GGUF_LLAMA, "llama.attention.head_count_kv": ("8", True, None, 7.5)}, 512),
        ({k: v for k, v in GGUF_LLAMA.items() if "_kv" not in k}, 524_288),
        (GGUF_DEEPSEEK, 70_272),
        ({**GGUF_LLAMA, "llama.embedding_length": None}, None),
        ({"llama.block_count": 32}, None),
    ],
    ids=["llama", "key_length", "per-layer", "nonsense", "no-gqa", "deepseek", "absent", "nothing"],
)
def test_gguf_says_the_same_in_its_metadata(metadata, kv_bytes):
    """With one number of heads for each layer where layers differ."""
    found = model_facts({"m.gguf": header("gguf", metadata)}, None)
    assert found.kv_bytes_per_token == kv_bytes


def test_a_config_beside_gguf_is_completed_from_the_header():
    """Converted repositories have a config.json that says little more than the type."""
    found = model_facts({"m.gguf": header("gguf", GGUF_LLAMA)}, {"model_type": "mistral"})
    assert (found.architecture, found.hidden_layers, found.context_length) == ("mistral", 32, 8192)


def test_neither_a_vision_encoder_nor_a_later_shard_hides_the_model():
    """Whichever file comes first."""
    vision = header("gguf", {"general.architecture": "clip", "clip.block_count": 27})
    shard = header("gguf", {"split.no": 1})
    headers = {"a": vision, "b": shard, "c": header("gguf", GGUF_LLAMA)}
    found = model_facts(headers, None)
    assert (found.architecture, found.hidden_layers) == ("llama", 32)


def test_vram_is_weights_and_a_tenth_and_the_cache_and_two_gib():
    """For the model's own context at most 8192 tokens, unless the caller says how many."""
    facts = Facts(kv_bytes_per_token=131_072, context_length=131_072)
    assert estimated_vram(facts, 16_000_000_000) == 17_600_000_000 + (1 << 30) + (2 << 30)
    assert estimated_vram(facts, 16_000_000_000, 1000) == 17_600_000_000 + 131_072_000 + (2 << 30)
    assert estimated_vram(Facts(), 1) == 2 + (2 << 30)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"null", b"{", b'{"a": 1}}', b'{"a": "\xff"}', b'{"a": "\\ud800"}',
        b'{"a": NaN, "b": "\\ud800"}', b'{"a": NaN', b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"a": NaN, "b":' + b"[" * 50_000, b'{"a": NaN, "b": 1' + b"0" * 5000 + b"}",
        b'{"a": "' + b" " * limits.CONFIG_BYTES + b'"}',
    ],
    ids=range(13),
)  # fmt: skip
def test_what_is_no_config_is_none(data):
    """Whatever is wrong with it; weights may be published without one."""
    assert parse_config(data) is None


def test_configs_that_only_python_can_write_are_read():
    """Configs of state-space models have Infinity in them, which is not JSON."""
    text = json.dumps({**LLAMA, "time_step_limit": [0.0, float("inf")], "x": float("nan")})
    assert model_facts({}, parse_config(text.encode())) == model_facts({}, LLAMA)
    assert parse_config(text.encode())["time_step_limit"] == [0.0, None]


KEYS = st.sampled_from(
    [
        *LLAMA, "head_dim", "kv_lora_rank", "qk_rope_head_dim", "layer_types", "text_config",
        "quantization_config", "quant_method", "multi_query", "dtype", "thinker_config",
    ]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("attention"),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(), inner, max_size=6)
    ),
    max_leaves=12,
)
GGUF_KEYS = st.sampled_from([*GGUF_LLAMA, *GGUF_DEEPSEEK])
SCALARS = st.booleans() | st.integers() | st.floats() | st.sampled_from(["llama", "d", "\n"])


@settings(deadline=None)
@given(
    st.dictionaries(KEYS, VALUES),
    st.dictionaries(GGUF_KEYS, SCALARS | st.lists(SCALARS, max_size=4).map(tuple)),
)
def test_no_value_of_any_type_makes_facts_fail(config, metadata):
    """And whatever they are, they fit in JSON and on one line."""
    found = model_facts({"m": header("gguf", metadata, Q4_K=100)}, config)
    for number in (found.hidden_layers, found.kv_bytes_per_token, found.context_length):
        assert number is None or 0 < number < 1 << 48
    for text in (found.architecture, found.quantization):
        assert text.isprintable()
        assert len(text) <= 128
    assert estimated_vram(found, 1 << 40) > 1 << 40
