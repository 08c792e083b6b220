"""config.json of a TensorRT-LLM checkpoint, as tensorrt_llm/models/modeling_utils.py up to 1.2.1 reads it."""

from collections.abc import Mapping

from edgeforge.model.rotary_config import rope_scaling
from edgeforge.planning import BuildPlan

DTYPES: Mapping[str, str] = {"f16": "float16", "bf16": "bfloat16"}
ALGORITHMS: Mapping[str, str] = {"fp8": "FP8", "w4a16": "W4A16_AWQ", "w4a8": "W4A8_AWQ"}
KV_ALGORITHMS: Mapping[str, str] = {"fp8": "FP8", "int8": "INT8"}
# The reader's default, which it wants to be a number even where nothing is grouped.
GROUP_SIZE = 128


def checkpoint_config(plan: BuildPlan, config: Mapping[str, object]) -> dict[str, object]:
    """`config` is the model's own config.json, whose rope_scaling is passed on as it is."""
    a, target = plan.architecture, plan.target
    own = config.get("rope_scaling")
    scaled = a.rotary.kind != "default"
    return {
        "architecture": "LlamaForCausalLM",
        "dtype": DTYPES[target.activations],
        "logits_dtype": "float32",
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden_size,
        "intermediate_size": a.intermediate_size,
        "num_hidden_layers": a.num_hidden_layers,
        "num_attention_heads": a.num_attention_heads,
        "num_key_value_heads": a.num_key_value_heads,
        "head_size": a.head_dim,
        "max_position_embeddings": a.max_position_embeddings,
        "hidden_act": "silu",
        "norm_epsilon": a.rms_norm_eps,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": a.rotary.theta,
        "rotary_scaling": (own if isinstance(own, dict) else rope_scaling(a.rotary)) if scaled else None,
        "mlp_bias": False,
        "attn_bias": False,
        "residual_mlp": False,
        "use_parallel_embedding": target.tensor_parallel > 1,
        "embedding_sharding_dim": 0,
        "share_embedding_table": False,
        "mapping": {
            "world_size": target.cards,
            "tp_size": target.tensor_parallel,
            "pp_size": target.pipeline_parallel,
        },
        "quantization": _quantization(plan),
    }


def _quantization(plan: BuildPlan) -> dict[str, object]:
    """The reader refuses a key that it does not know."""
    algorithm = ALGORITHMS.get(plan.target.scheme)
    sizes = {scheme.group_size for scheme in plan.schemes.values() if scheme.group_size is not None}
    return {
        "quant_algo": algorithm,
        "kv_cache_quant_algo": KV_ALGORITHMS.get(plan.target.kv_cache),
        "group_size": sizes.pop() if sizes else GROUP_SIZE,
        "has_zero_point": False,
        "pre_quant_scale": algorithm in ("W4A16_AWQ", "W4A8_AWQ"),
        "exclude_modules": None if algorithm is None else ["lm_head"],
    }
