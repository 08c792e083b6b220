"""What trtllm-build is told, from the plan: options of tensorrt_llm/commands/build.py and plugin/plugin.py to 1.2.1."""

from edgeforge.hardware import SCHEMES
from edgeforge.planning import BuildPlan

MAX_TOKENS = 8192  # in one pass, of all sequences together: the default of max_num_tokens


def build_arguments(plan: BuildPlan) -> tuple[str, ...]:
    """The options beside --checkpoint_dir and --output_dir."""
    target = plan.target
    tokens = min(MAX_TOKENS, target.batch * target.context)
    values = {
        "max_batch_size": target.batch,
        "max_seq_len": target.context,
        "max_input_len": target.context,
        "max_num_tokens": tokens if _reads_prompts_in_pieces(plan) else max(tokens, target.context),
        "kv_cache_type": "paged",
        # The plugin is for gemms that are not quantized; TensorRT's own FP8 ones are for many sequences at once.
        "gemm_plugin": "disable" if target.scheme == "fp8" else "auto",
        "workers": target.cards,  # at most one per GPU that is there
        "log_level": "info",
    }
    return tuple(word for name, value in values.items() for word in (f"--{name}", str(value)))


def _reads_prompts_in_pieces(plan: BuildPlan) -> bool:
    """Whether trtllm-build leaves use_paged_context_fmha on; else the longest prompt is read in one pass.

    tensorrt_llm/builder.py: not with an int8 cache, and with an fp8 one only where the inputs are fp8 too.
    """
    cache = plan.target.kv_cache
    return cache != "int8" and (cache != "fp8" or SCHEMES[plan.target.scheme].needs == "fp8")
