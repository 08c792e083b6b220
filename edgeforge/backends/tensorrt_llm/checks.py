"""What TensorRT-LLM cannot load or run, known from the plan: shapes that do not divide among ranks or kernels."""

from collections.abc import Iterator

from edgeforge.backends.tensorrt_llm.sharding import local_kv_heads
from edgeforge.errors import UsageError
from edgeforge.planning import BuildPlan

# Linears are made in multiples of these (WeightOnlyGroupwiseQuantLinear of tensorrt_llm/quantization/layers.py), and
# the kernels know these groups (fpA_intB_gemm_template.h: "Only group size 64 and 128 supported for fine grained
# kernels", "Only group size 128 supported for fine grained W4A(fp)8 kernels").
KERNELS = {"w4a16": (64, (64, 128)), "w4a8": (128, (128,))}


def check(plan: BuildPlan) -> None:
    """UsageError for the first thing that does not divide."""
    for wrong, hint in (*_ranks(plan), *_kernels(plan), *_cache(plan)):
        raise UsageError(wrong, hint=hint)


def _ranks(plan: BuildPlan) -> Iterator[tuple[str, str]]:
    a, target = plan.architecture, plan.target
    tp = target.tensor_parallel
    fewer = "use fewer cards with --tensor-parallel"
    counts = {"attention heads": a.num_attention_heads, "rows of the MLP": a.intermediate_size}
    for what, count in counts.items():
        if count % tp:
            yield f"{count} {what} cannot be split over {tp} ranks", fewer
    if a.num_key_value_heads % tp and tp % a.num_key_value_heads:
        yield f"{a.num_key_value_heads} key and value heads can neither be split over {tp} ranks nor copied", fewer
    if target.pipeline_parallel > a.num_hidden_layers:
        yield (
            f"{a.num_hidden_layers} layers cannot be split over {target.pipeline_parallel} pipeline groups",
            "use fewer groups with --pipeline-parallel",
        )


def _kernels(plan: BuildPlan) -> Iterator[tuple[str, str]]:
    """A linear that is no multiple of the INT4 kernels' is made larger, and the file's tensor would not fit it."""
    a, target = plan.architecture, plan.target
    if target.scheme not in KERNELS:
        return
    tp = target.tensor_parallel
    least, known = KERNELS[target.scheme]
    size = next(scheme.group_size for scheme in plan.schemes.values() if scheme.group_size is not None)
    if size not in known:
        words = " or ".join(map(str, known))
        possible = [each for each in known if not any(row % each for row in _rows(plan))]
        hint = f"use --group-size {possible[-1]}" if possible else "use --scheme fp8 or bf16"
        yield f"TensorRT-LLM runs scheme {target.scheme} in groups of {words}, not {size}", hint
    multiple = max(least, size) * tp
    heads = a.num_attention_heads * a.head_dim
    fused = heads + 2 * local_kv_heads(a, tp) * tp * a.head_dim
    sizes = {"hidden size": a.hidden_size, "q, k and v": fused, "o": heads, "MLP": a.intermediate_size}
    for what, count in sizes.items():
        if count % multiple:
            yield (
                f"TensorRT-LLM runs scheme {target.scheme} in multiples of {multiple} on {tp} ranks, "
                f"which do not divide the {count} of the {what}",
                "use fewer cards with --tensor-parallel, or --scheme fp8",
            )


def _rows(plan: BuildPlan) -> set[int]:
    return {linear.in_features for linear in plan.architecture.linears() if linear.role != "lm_head"}


def _cache(plan: BuildPlan) -> Iterator[tuple[str, str]]:
    capability = plan.target.profile.compute_capability or ""
    if plan.target.kv_cache == "int8" and capability.startswith(("10.", "11.")):
        # tensorrt_llm/builder.py: "INT8/INT4 quantization is not supported on SM>=100", up to SM 120
        yield f"TensorRT-LLM has no int8 cache on GPUs of compute capability {capability}", "use --kv-cache fp8"
