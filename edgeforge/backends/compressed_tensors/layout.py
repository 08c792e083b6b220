"""How compressed-tensors stores one linear: the tensors that take the place of its weight.

Shape letters: N out_features, K in_features, G groups of a row. Scales are in the scheme's scale type.

    pack-quantized   weight_packed i32 [N, K / 8], weight_scale [N, G], weight_shape i64 [2], and where it is asymmetric
                     weight_zero_point i32 [ceil(N / 8), G]
    float-quantized  weight e4m3 [N, K], weight_scale [1] and input_scale [1], or weight_scale [N, 1] alone

An FP8 cache adds self_attn.k_scale and self_attn.v_scale, [1].
"""

from collections.abc import Iterator

from edgeforge.backends.huggingface.layout import FLOAT_WORDS, TensorSpec, float_word, model_tensors, side
from edgeforge.model.architecture import Linear
from edgeforge.planning import BuildPlan

WORD_CODES = 8
"""4-bit codes in a word of 32 bits."""


def tensors(plan: BuildPlan) -> list[TensorSpec]:
    """Everything that the files hold."""
    return list(model_tensors(plan, lambda linear: _linear(plan, linear), lambda layer: _cache(plan, layer)))


def cache_names(layer: int) -> tuple[str, str]:
    """Where the scales of a layer's cached keys and values are."""
    prefix = f"model.layers.{layer}.self_attn."
    return f"{prefix}k_scale", f"{prefix}v_scale"


def _linear(plan: BuildPlan, linear: Linear) -> Iterator[TensorSpec]:
    scheme, n, k = plan.schemes[linear.name], linear.out_features, linear.in_features
    word = FLOAT_WORDS[scheme.scale_dtype]

    def spec(name: str, dtype: str, *shape: int) -> TensorSpec:
        return TensorSpec(name=side(linear, name), dtype=dtype, shape=shape)

    if scheme.code_format == "int":
        yield spec("weight_packed", "I32", n, k // WORD_CODES)
        yield spec("weight_scale", word, n, scheme.groups(k))
        yield spec("weight_shape", "I64", 2)
        if not scheme.symmetric:
            yield spec("weight_zero_point", "I32", -(-n // WORD_CODES), scheme.groups(k))
        return
    yield spec("weight", "F8_E4M3", n, k)
    if scheme.granularity == "channel":
        yield spec("weight_scale", word, n, 1)
    else:
        yield spec("weight_scale", word, 1)
    if scheme.activations == "static":
        yield spec("input_scale", word, 1)


def _cache(plan: BuildPlan, layer: int) -> Iterator[TensorSpec]:
    if plan.target.kv_cache == "fp8":
        for name in cache_names(layer):
            yield TensorSpec(name=name, dtype=float_word(plan), shape=(1,))
