"""What EdgeForge reproduces exactly: a config.json of a Llama decoder, with nothing that changes its mathematics."""

from collections.abc import Mapping

from edgeforge.errors import UnusableInput
from edgeforge.model import fields

WHERE = "config.json"

# Fields that change the mathematics, with the values under which they do not. null and absence are always neutral.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish"),
    "attention_bias": (False,),
    "attention_out_bias": (False,),
    "qkv_bias": (False,),
    "use_bias": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1, 1.0),
    "rotary_pct": (1, 1.0),
    "rope_interleaved": (False,),
    "no_rope_layers": ([],),
    "attention_chunk_size": (),
    "quantization_config": (),
    "compression_config": (),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "use_qk_norm": (False,),
    "qk_norm": (False,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "attention_multiplier": (),
    "logits_scaling": (1, 1.0),
    "logit_scale": (1, 1.0),
    "use_parallel_residual": (False,),
    "alibi": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}
QUANTIZED = ("quantization_config", "compression_config")


def check_decoder(config: Mapping[str, object]) -> None:
    names = config.get("architectures")
    model_type = config.get("model_type")
    hint = "EdgeForge builds decoders of the Llama family: model_type llama, architectures LlamaForCausalLM"
    if names is not None and names != ["LlamaForCausalLM"]:
        listed = ", ".join(map(str, names)) if isinstance(names, list) and names else repr(names)
        raise UnusableInput(f"{WHERE}: architectures is {listed}, not LlamaForCausalLM", hint=hint)
    if model_type is None and names is None:
        raise UnusableInput(f"{WHERE}: it names neither model_type nor architectures, so it is no model's", hint=hint)
    if model_type not in (None, "llama"):
        raise UnusableInput(f"{WHERE}: model_type is {model_type}, not llama", hint=hint)


def check_neutral(config: Mapping[str, object]) -> None:
    for name, neutral in NEUTRAL.items():
        value = config.get(name)
        if value is None or any(value == good and type(value) is type(good) for good in neutral):
            continue
        if name in QUANTIZED:
            method = value.get("quant_method", "?") if isinstance(value, dict) else value
            raise UnusableInput(
                f"{WHERE}: {name} says that the weights are already quantized ({method})",
                hint="give the original checkpoint in float32, float16 or bfloat16",
            )
        raise unsupported(name, value)
    windowed = config.get("sliding_window") is not None and config.get("use_sliding_window") is not False
    if windowed:
        raise unsupported("sliding_window", config.get("sliding_window"))
    layer_types = config.get("layer_types")
    if isinstance(layer_types, list):
        other = next((kind for kind in layer_types if kind != "full_attention"), None)
        if other is not None:
            raise unsupported("layer_types", other)
    elif layer_types is not None:
        raise fields.wrong(WHERE, "layer_types", layer_types, "a list or null")


def unsupported(name: str, value: object) -> UnusableInput:
    shown = fields.wrong(WHERE, name, value, "a plain Llama decoder").message.partition(", expected")[0]
    return UnusableInput(
        f"{shown}, which EdgeForge does not support",
        hint="only plain Llama decoders are built: full causal attention, no biases, SiLU, rotary over whole heads",
    )
