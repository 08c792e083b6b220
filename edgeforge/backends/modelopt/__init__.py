"""ModelOpt's unified checkpoint: what TensorRT-LLM, TensorRT Edge-LLM and (FP8, NVFP4) vLLM load.

Hugging Face's layout, with the codes of a linear under its weight's own name and its scales beside it, and the
quantization said twice: in config.json and in hf_quant_config.json. Names, types and both files are those of
nvidia-modelopt 0.47 (torch/export/unified_export_hf.py and quant_utils.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeforge.backends import InputScales, ModelFiles, Origin, Requirements, WeightSink
from edgeforge.backends.huggingface import consumers
from edgeforge.backends.huggingface.configs import write_configs
from edgeforge.backends.huggingface.layout import shards
from edgeforge.backends.huggingface.writing import write_json
from edgeforge.backends.modelopt import reading
from edgeforge.backends.modelopt.configs import hf_quant_config, quantization_config
from edgeforge.backends.modelopt.layout import tensors
from edgeforge.backends.modelopt.writing import open_sink
from edgeforge.model.checkpoint import Weights
from edgeforge.planning import BuildPlan
from edgeforge.quantization.calibration import Calibration

__all__ = ["check", "files", "finish", "read_back", "read_inputs", "requirements", "sink"]

HF_QUANT_CONFIG_FILE = "hf_quant_config.json"


def requirements(plan: BuildPlan) -> Requirements:
    """See `edgeforge.backends.Backend`."""
    return consumers.requirements(plan)


def files(plan: BuildPlan) -> ModelFiles:
    """See `edgeforge.backends.Backend`."""
    return ModelFiles(weights=tuple(shards(tensors(plan))))


def check(plan: BuildPlan) -> None:
    """See `edgeforge.backends.Backend`."""
    consumers.check_groups(plan)
    consumers.check_cache(plan)
    consumers.check_tiles(plan)


@contextmanager
def sink(plan: BuildPlan, calibration: Calibration, directory: Path) -> Iterator[WeightSink]:
    """See `edgeforge.backends.Backend`. UsageError where the calibration lacks a figure that the engine needs."""
    with open_sink(plan, calibration, directory) as weights:
        yield weights


def finish(plan: BuildPlan, origin: Origin, directory: Path) -> None:
    """See `edgeforge.backends.Backend`."""
    write_configs(plan, origin, directory, quantization_config(plan))
    described = hf_quant_config(plan)
    if described is not None:
        write_json(directory / HF_QUANT_CONFIG_FILE, described)


def read_back(plan: BuildPlan, directory: Path) -> Weights:
    """See `edgeforge.backends.ReadableBackend`."""
    return reading.read_back(plan, directory)


def read_inputs(plan: BuildPlan, directory: Path) -> InputScales:
    """See `edgeforge.backends.ReadableBackend`."""
    return reading.read_inputs(plan, directory)
