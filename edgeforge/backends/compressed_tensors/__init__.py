"""compressed-tensors: what vLLM loads for INT4 (`pack-quantized`) and FP8 (`float-quantized`), and transformers, too.

Hugging Face's layout with the quantization in config.json. Names, types and the config are those of compressed-tensors
0.20 (compressors/pack_quantized, compressors/naive_quantized, quantization/lifecycle/initialize.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeforge.backends import InputScales, ModelFiles, Origin, Requirements, WeightSink
from edgeforge.backends.compressed_tensors import reading
from edgeforge.backends.compressed_tensors.configs import quantization_config
from edgeforge.backends.compressed_tensors.layout import tensors
from edgeforge.backends.compressed_tensors.writing import open_sink
from edgeforge.backends.huggingface import consumers
from edgeforge.backends.huggingface.configs import write_configs
from edgeforge.backends.huggingface.layout import shards
from edgeforge.model.checkpoint import Weights
from edgeforge.planning import BuildPlan
from edgeforge.quantization.calibration import Calibration

__all__ = ["check", "files", "finish", "read_back", "read_inputs", "requirements", "sink"]


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


@contextmanager
def sink(plan: BuildPlan, calibration: Calibration, directory: Path) -> Iterator[WeightSink]:
    """See `edgeforge.backends.Backend`. UsageError where the calibration lacks a static scale."""
    with open_sink(plan, calibration, directory) as weights:
        yield weights


def finish(plan: BuildPlan, origin: Origin, directory: Path) -> None:
    """See `edgeforge.backends.Backend`."""
    write_configs(plan, origin, directory, quantization_config(plan))


def read_back(plan: BuildPlan, directory: Path) -> Weights:
    """See `edgeforge.backends.ReadableBackend`."""
    return reading.read_back(plan, directory)


def read_inputs(plan: BuildPlan, directory: Path) -> InputScales:
    """See `edgeforge.backends.ReadableBackend`."""
    return reading.read_inputs(plan, directory)
