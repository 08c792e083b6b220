"""config.json's quantization_config, in the words of compressed-tensors' QuantizationConfig and QuantizationArgs."""

from collections.abc import Mapping

from edgeforge.planning import BuildPlan
from edgeforge.quantization.scheme import QuantizationScheme

VERSION = "0.20.0"
"""Of the format: the release of compressed-tensors whose files these are."""
FLOAT8: Mapping[str, object] = {"num_bits": 8, "type": "float", "symmetric": True}


def quantization_config(plan: BuildPlan) -> dict[str, object] | None:
    """None where nothing is quantized."""
    scheme = next((scheme for scheme in plan.schemes.values() if not scheme.is_float), None)
    if scheme is None:
        return None
    cache = {**FLOAT8, "strategy": "tensor", "dynamic": False} if plan.target.kv_cache == "fp8" else None
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if scheme.code_format == "int" else "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": _weights(scheme), "input_activations": _inputs(scheme)}
        },
        "ignore": ["lm_head"],
        "kv_cache_scheme": cache,
        "global_compression_ratio": None,
        "version": VERSION,
    }


def _weights(scheme: QuantizationScheme) -> dict[str, object]:
    if scheme.code_format == "int":
        return {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": scheme.symmetric,
            "strategy": "group",
            "group_size": scheme.group_size,
            "dynamic": False,
        }
    return {**FLOAT8, "strategy": scheme.granularity, "dynamic": False}


def _inputs(scheme: QuantizationScheme) -> dict[str, object] | None:
    if scheme.activations == "none":
        return None
    is_dynamic = scheme.activations == "dynamic"
    return {**FLOAT8, "strategy": "token" if is_dynamic else "tensor", "dynamic": is_dynamic}
