"""config.json and generation_config.json: the authors' own, and what this build changes."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from edgeforge.backends import Origin
from edgeforge.backends.huggingface.writing import write_json
from edgeforge.planning import BuildPlan

TORCH_DTYPES: Mapping[str, str] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def write_configs(
    plan: BuildPlan, origin: Origin, directory: Path, quantization: Mapping[str, object] | None = None
) -> None:
    """Both files; `quantization` becomes config.json's quantization_config."""
    write_json(directory / "config.json", config(plan, origin, quantization))
    write_json(directory / "generation_config.json", generation_config(plan, origin))


def config(plan: BuildPlan, origin: Origin, quantization: Mapping[str, object] | None) -> dict[str, object]:
    """The checkpoint's own config.json, every key in its place, with the stored type and the quantization.

    transformers calls the type `dtype` since 4.56 and reads both names; TensorRT-LLM and Edge-LLM want torch_dtype.
    """
    result = dict(origin.config)
    dtype = TORCH_DTYPES[plan.target.activations]
    if "dtype" in result:
        result["dtype"] = dtype
    result["torch_dtype"] = dtype
    if quantization is not None:
        result["quantization_config"] = dict(quantization)
    return result


def generation_config(plan: BuildPlan, origin: Origin) -> dict[str, object]:
    """The special tokens as EdgeForge understands them, and the authors' sampling defaults where they have any."""
    a = plan.architecture
    eos = list(a.eos_token_ids)
    fields: dict[str, object] = {
        "bos_token_id": a.bos_token_id,
        "eos_token_id": (eos[0] if len(eos) == 1 else eos) if eos else None,
        **asdict(origin.generation),
    }
    return {key: value for key, value in fields.items() if value is not None}
