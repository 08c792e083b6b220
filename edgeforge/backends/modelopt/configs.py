"""The two places where a unified checkpoint says how it is quantized.

hf_quant_config.json is complete. config.json's quantization_config is that of nvidia-modelopt 0.47
(torch/export/convert_hf_config.py), which leaves out the group size of the int4 formats: TensorRT-LLM needs the file.
Both exclude lm_head, tied or not, as in the checkpoints that NVIDIA publishes; ModelOpt 0.47 lists the embedding, too.
"""

from collections.abc import Mapping

from edgeforge import __version__
from edgeforge.hardware import SCHEMES
from edgeforge.planning import BuildPlan

ALGORITHMS: Mapping[str, str] = {
    "fp8": "FP8",
    "fp8-dynamic": "FP8_PER_CHANNEL_PER_TOKEN",
    "w4a16": "W4A16_AWQ",
    "w4a8": "W4A8_AWQ",
    "nvfp4": "NVFP4",
}
PRODUCER = {"name": "edgeforge", "version": __version__}
NOT_QUANTIZED = ["lm_head"]
FLOAT8: Mapping[str, object] = {"dynamic": False, "num_bits": 8, "type": "float"}


def hf_quant_config(plan: BuildPlan) -> dict[str, object] | None:
    """hf_quant_config.json; None where neither weights nor cache are quantized."""
    if not _is_quantized(plan):
        return None
    quantization: dict[str, object] = {
        "quant_algo": ALGORITHMS.get(plan.target.scheme),
        "kv_cache_quant_algo": "FP8" if plan.target.kv_cache == "fp8" else None,
    }
    size = _group_size(plan)
    if size is not None:
        quantization["group_size"] = size
    if SCHEMES[plan.target.scheme].code_format == "int" and size is not None:
        quantization |= {"has_zero_point": False, "pre_quant_scale": True}
    quantization["exclude_modules"] = NOT_QUANTIZED
    return {"producer": PRODUCER, "quantization": quantization}


def quantization_config(plan: BuildPlan) -> dict[str, object] | None:
    """config.json's quantization_config; None where there is nothing to say."""
    if not _is_quantized(plan):
        return None
    result: dict[str, object] = {}
    numbers = _numbers(plan)
    if numbers is not None:
        result["config_groups"] = {
            "group_0": {"input_activations": numbers, "weights": numbers, "targets": ["Linear"]},
        }
    result["ignore"] = NOT_QUANTIZED
    if plan.target.scheme in ALGORITHMS:
        result["quant_algo"] = ALGORITHMS[plan.target.scheme]
    if plan.target.kv_cache == "fp8":
        result["kv_cache_scheme"] = FLOAT8
    return result | {"producer": PRODUCER, "quant_method": "modelopt"}


def _is_quantized(plan: BuildPlan) -> bool:
    return plan.target.scheme in ALGORITHMS or plan.target.kv_cache == "fp8"


def _numbers(plan: BuildPlan) -> dict[str, object] | None:
    """What weights and inputs alike are, for the two formats that ModelOpt says it of."""
    if plan.target.scheme == "fp8":
        return dict(FLOAT8)
    if plan.target.scheme == "nvfp4":
        return {"dynamic": False, "num_bits": 4, "type": "float", "group_size": _group_size(plan)}
    return None


def _group_size(plan: BuildPlan) -> int | None:
    """The one of the whole model."""
    return next((scheme.group_size for scheme in plan.schemes.values() if scheme.group_size is not None), None)
