"""A config.json becomes one architecture, whichever way it is spelled, or is refused by the field's name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeforge.errors import UnusableInput
from edgeforge.model.architecture import (
    LlamaArchitecture,
    Rotary,
    architecture_from_config,
    architecture_from_json,
    architecture_to_json,
    hf_config,
)

CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def config(**changes: object) -> dict[str, object]:
    return {**CONFIG, **changes}


def without(*names: str) -> dict[str, object]:
    return {name: value for name, value in CONFIG.items() if name not in names}


@pytest.mark.parametrize(
    ("size", "parameters", "shape"),
    [("8B", 8_030_261_248, (4096, 14336, 32, 32)), ("70B", 70_553_706_496, (8192, 28672, 80, 64))],
)
def test_the_published_llama_3_1_configs_have_their_published_sizes(
    test_data: Path, size: str, parameters: int, shape: tuple[int, ...]
) -> None:
    file = test_data / "configs" / f"meta-llama--Meta-Llama-3.1-{size}_config.json"
    a = architecture_from_config(json.loads(file.read_text()))
    assert a.parameter_count == parameters
    assert (a.hidden_size, a.intermediate_size, a.num_hidden_layers, a.num_attention_heads) == shape
    assert (a.num_key_value_heads, a.head_dim, a.vocab_size, a.tie_word_embeddings) == (8, 128, 128256, False)
    assert a.rotary == Rotary(theta=5e5, kind="llama3", **LLAMA3)
    assert (a.bos_token_id, a.eos_token_ids, a.max_position_embeddings) == (128000, (128001,), 131072)


def test_a_quantized_checkpoint_is_refused_by_its_field(test_data: Path) -> None:
    file = test_data / "configs" / "nvidia--Llama-3.1-70B-Instruct-FP8_config.json"
    quantized = json.loads(file.read_text()) | {"quantization_config": {"quant_method": "modelopt"}}
    with pytest.raises(UnusableInput, match=r"quantization_config .*modelopt"):
        architecture_from_config(quantized)


def test_linears_and_tensors_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    for tied in (True, False):
        for head_dim in (8, 16):
            a = architecture_from_config(config(tie_word_embeddings=tied, head_dim=head_dim))
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**hf_config(a, dtype="float32")))
            shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
            assert dict(a.tensors()) == shapes
            assert a.parameter_count == sum(p.numel() for p in model.parameters())
            assert [linear.role for linear in a.linears()][:7] == ["q", "k", "v", "o", "gate", "up", "down"]
            assert ("lm_head" in [linear.role for linear in a.linears()]) is not tied


def test_head_dim_is_implied_or_explicit() -> None:
    assert architecture_from_config(config()).head_dim == 8
    assert architecture_from_config(config(head_dim=None)).head_dim == 8
    assert architecture_from_config(config(head_dim=32)).head_dim == 32


def test_absent_fields_mean_what_they_mean_to_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    given = without(
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings"
    )
    theirs = transformers.LlamaConfig(**given)
    a = architecture_from_config(given)
    assert a.num_key_value_heads == theirs.num_key_value_heads
    assert a.max_position_embeddings == theirs.max_position_embeddings
    assert a.rms_norm_eps == theirs.rms_norm_eps
    assert a.rotary.theta == theirs.rope_theta
    assert a.tie_word_embeddings == theirs.tie_word_embeddings
    bare = architecture_from_config(without("bos_token_id", "eos_token_id"))
    assert (bare.bos_token_id, bare.eos_token_ids) == (theirs.bos_token_id, (theirs.eos_token_id,))


@pytest.mark.parametrize(
    ("written", "rotary"),
    [
        ({}, Rotary(theta=1e4)),
        ({"rope_scaling": None, "rope_theta": 1e5}, Rotary(theta=1e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, Rotary(theta=1e4, kind="linear", factor=2.0)),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, Rotary(theta=1e4, kind="dynamic", factor=4.0)),
        ({"rope_scaling": {"type": "default"}}, Rotary(theta=1e4)),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, Rotary(theta=1e4, kind="llama3", **LLAMA3)),
        (
            {"rope_scaling": {"type": "llama3", "rope_type": "llama3", **LLAMA3}},
            Rotary(theta=1e4, kind="llama3", **LLAMA3),
        ),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, Rotary(theta=5e5)),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 5e5}}, Rotary(theta=5e5)),
        (
            {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
            Rotary(theta=5e5, kind="llama3", **LLAMA3),
        ),
    ],
)
def test_old_and_new_rotary_spellings_mean_the_same(written: dict[str, object], rotary: Rotary) -> None:
    assert architecture_from_config(config(**written)).rotary == rotary


@pytest.mark.parametrize(
    ("written", "generation", "bos", "eos"),
    [
        ({}, None, 1, (2,)),
        ({"eos_token_id": [3, 4, 3]}, None, 1, (3, 4)),
        ({"eos_token_id": None, "bos_token_id": None}, {}, None, ()),
        ({}, {"eos_token_id": [5, 6]}, 1, (5, 6)),
        ({"eos_token_id": [3, 4]}, {"eos_token_id": 7, "bos_token_id": 8}, 8, (7,)),
        ({}, {"eos_token_id": None}, 1, (2,)),
    ],
)
def test_generation_config_wins_over_config_for_token_ids(
    written: dict[str, object], generation: dict[str, object] | None, bos: int | None, eos: tuple[int, ...]
) -> None:
    a = architecture_from_config(config(**written), generation)
    assert (a.bos_token_id, a.eos_token_ids) == (bos, eos)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_bias", True),
        ("mlp_bias", True),
        ("sliding_window", 4096),
        ("hidden_act", "gelu"),
        ("partial_rotary_factor", 0.5),
        ("quantization_config", {"quant_method": "gptq"}),
        ("num_local_experts", 8),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("final_logit_softcapping", 30.0),
        ("model_type", "bert"),
        ("model_type", "mistral"),
        ("architectures", ["BertForMaskedLM"]),
        ("architectures", ["LlamaForSequenceClassification"]),
        ("architectures", []),
        ("head_dim", 7),
        ("num_key_value_heads", 3),
        ("hidden_size", 0),
        ("hidden_size", "64"),
        ("hidden_size", None),
        ("vocab_size", True),
        ("rms_norm_eps", -1e-5),
        ("rms_norm_eps", float("nan")),
        ("tie_word_embeddings", "yes"),
        ("eos_token_id", -1),
        ("eos_token_id", 512),
        ("eos_token_id", [2, "3"]),
        ("bos_token_id", [1, 2]),
        ("rope_theta", 0),
        ("rope_scaling", "llama3"),
    ],
)
def test_whatever_would_change_the_mathematics_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(UnusableInput) as caught:
        architecture_from_config(config(**{field: value}))
    assert field in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("scaling", "named"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, "yarn"),
        ({"type": "longrope", "short_factor": [1.0]}, "longrope"),
        ({"factor": 2.0}, "rope_scaling"),
        ({"type": "linear", "rope_type": "dynamic", "factor": 2.0}, "disagree"),
        ({"type": "linear"}, "factor"),
        ({"type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor"),
        ({"type": "linear", "factor": 2.0, "attention_factor": 1.5}, "attention_factor"),
        ({"type": "default", "rope_theta": 5e5}, "rope_theta"),
        ({"type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_rotary_scaling_that_is_not_supported_is_refused_by_name(scaling: dict[str, object], named: str) -> None:
    with pytest.raises(UnusableInput, match=named):
        architecture_from_config(config(rope_scaling=scaling))


def test_neutral_values_of_those_fields_are_accepted() -> None:
    neutral = {
        "attention_bias": False,
        "mlp_bias": None,
        "sliding_window": None,
        "partial_rotary_factor": 1.0,
        "hidden_act": "swish",
        "layer_types": ["full_attention"] * 2,
        "pretraining_tp": 2,
        "attention_dropout": 0.1,
    }
    assert architecture_from_config(config(**neutral)) == architecture_from_config(config())
    windowless = config(sliding_window=4096, use_sliding_window=False)
    assert architecture_from_config(windowless) == architecture_from_config(config())


positive = st.floats(1e-6, 1e7)
rotaries = st.one_of(
    st.builds(Rotary, theta=positive),
    st.builds(Rotary, theta=positive, kind=st.sampled_from(["linear", "dynamic"]), factor=positive),
    st.builds(
        Rotary,
        theta=positive,
        kind=st.just("llama3"),
        factor=positive,
        low_freq_factor=st.floats(0.5, 2),
        high_freq_factor=st.floats(3, 8),
        original_max_position_embeddings=st.integers(1, 1 << 17),
    ),
)
architectures = st.builds(
    LlamaArchitecture,
    hidden_size=st.integers(1, 1 << 15),
    intermediate_size=st.integers(1, 1 << 17),
    num_hidden_layers=st.integers(1, 200),
    num_attention_heads=st.integers(1, 16).map(lambda h: 8 * h),
    num_key_value_heads=st.sampled_from([1, 2, 4, 8]),
    head_dim=st.integers(1, 128).map(lambda e: 2 * e),
    vocab_size=st.integers(100, 1 << 18),
    rms_norm_eps=st.floats(1e-8, 1e-3),
    rotary=rotaries,
    max_position_embeddings=st.integers(1, 1 << 20),
    tie_word_embeddings=st.booleans(),
    bos_token_id=st.none() | st.integers(0, 99),
    eos_token_ids=st.lists(st.integers(0, 99), max_size=3, unique=True).map(tuple),
)


@given(architectures)
def test_json_and_config_round_trips_are_exact(a: LlamaArchitecture) -> None:
    assert architecture_from_json(json.loads(json.dumps(architecture_to_json(a)))) == a
    assert architecture_from_config(json.loads(json.dumps(hf_config(a, dtype="bfloat16")))) == a


def test_a_damaged_plan_is_refused_by_name() -> None:
    good = architecture_to_json(architecture_from_config(config()))
    with pytest.raises(UnusableInput, match="head_dim"):
        architecture_from_json(good | {"head_dim": None})
    with pytest.raises(UnusableInput, match="kind"):
        architecture_from_json(good | {"rotary": {"theta": 1.0, "kind": "yarn", "factor": 1.0}})


def test_an_architecture_is_a_value() -> None:
    a = architecture_from_config(config())
    assert replace(a, vocab_size=513) != a
    assert hash(a) == hash(architecture_from_config(config()))
