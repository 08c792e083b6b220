"""How ModelOpt's unified checkpoint stores one linear: the tensors that take the place of its weight.

Shape letters: N out_features, K in_features, G groups of a row.

    FP8                        weight e4m3 [N, K], weight_scale f32 [], input_scale f32 []
    FP8_PER_CHANNEL_PER_TOKEN  weight e4m3 [N, K], weight_scale f32 [N]
    W4A16_AWQ                  weight u8 [N / 2, K], weight_scale f32 [N, G], on o and down pre_quant_scale [K]
    W4A8_AWQ                   the same, weight_scale_2 f32 [], input_scale f32 []
    NVFP4                      weight u8 [N, K / 2], weight_scale e4m3 [N, G], weight_scale_2 f32 [], input_scale f32 []

Unquantized tensors and pre-quant scales are in the model's type. An FP8 cache adds k_proj.k_scale and v_proj.v_scale,
f32 []. TensorRT-LLM reads the pre-quant scales of o and down unconditionally, so they are there as ones, too. Every N
is another linear's K, or heads of an even width, so that it is even where the rows are whole groups.
"""

from collections.abc import Iterator

from edgeforge.backends.huggingface.layout import TensorSpec, float_word, model_tensors, side
from edgeforge.model.architecture import Linear
from edgeforge.planning import BuildPlan
from edgeforge.quantization.scheme import QuantizationScheme

SCALED_INPUT_ROLES = ("o", "down")
"""Linears with an input of their own, whose pre-quant scale no norm can take."""


def tensors(plan: BuildPlan) -> list[TensorSpec]:
    """Everything that the files hold. FP8's input scales are optional (see `writing.open_sink`)."""
    return list(model_tensors(plan, lambda linear: _linear(plan, linear), lambda layer: _cache(plan, layer)))


def carries_input_scale(linear: Linear, scheme: QuantizationScheme) -> bool:
    """Whether a pre_quant_scale is stored with the linear."""
    return scheme.code_format == "int" and linear.role in SCALED_INPUT_ROLES


def cache_names(layer: int) -> tuple[str, str]:
    """Where the scales of a layer's cached keys and values are."""
    prefix = f"model.layers.{layer}.self_attn."
    return f"{prefix}k_proj.k_scale", f"{prefix}v_proj.v_scale"


def _linear(plan: BuildPlan, linear: Linear) -> Iterator[TensorSpec]:
    scheme, n, k = plan.schemes[linear.name], linear.out_features, linear.in_features
    word, scales = {
        "e4m3": ("F8_E4M3", (n,) if scheme.granularity == "channel" else ()),
        "int": ("U8", (n, scheme.groups(k))),
        "e2m1": ("U8", (n, scheme.groups(k))),
    }[scheme.code_format]
    shape = {"e4m3": (n, k), "int": (n // 2, k), "e2m1": (n, k // 2)}[scheme.code_format]
    yield TensorSpec(name=linear.name, dtype=word, shape=shape)
    scale_word = "F8_E4M3" if scheme.code_format == "e2m1" else "F32"
    yield TensorSpec(name=side(linear, "weight_scale"), dtype=scale_word, shape=scales)
    if scheme.needs_amax and scheme.granularity == "group":
        yield TensorSpec(name=side(linear, "weight_scale_2"), dtype="F32", shape=())
    if scheme.activations == "static":
        is_optional = scheme.code_format == "e4m3"
        yield TensorSpec(name=side(linear, "input_scale"), dtype="F32", shape=(), optional=is_optional)
    if carries_input_scale(linear, scheme):
        yield TensorSpec(name=side(linear, "pre_quant_scale"), dtype=float_word(plan), shape=(k,))


def _cache(plan: BuildPlan, layer: int) -> Iterator[TensorSpec]:
    if plan.target.kv_cache == "fp8":
        for name in cache_names(layer):
            yield TensorSpec(name=name, dtype="F32", shape=())
