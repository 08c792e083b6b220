"""TensorRT-LLM up to 1.2.1: the checkpoint that trtllm-build makes engines of, with tensor and pipeline parallelism.

Files: config.json, and rank{r}.safetensors of every rank r = tensor rank + pipeline group * tensor parallelism. A rank
numbers its own layers from 0. Shapes, names and types were read in tensorrt_llm/models (modeling_utils.py, llama/),
tensorrt_llm/layers and tensorrt_llm/quantization of the release, and in nvidia-modelopt's exporter of this format
(modelopt/torch/export/tensorrt_llm_utils.py).
"""

import json
from contextlib import AbstractContextManager
from pathlib import Path

from edgeforge.backends import ModelFiles, Origin, Requirements, WeightSink
from edgeforge.backends.huggingface.consumers import DEVICE_SCRIPT
from edgeforge.backends.tensorrt_llm.checks import check
from edgeforge.backends.tensorrt_llm.config import checkpoint_config
from edgeforge.backends.tensorrt_llm.files import rank_file, rank_files
from edgeforge.backends.tensorrt_llm.reading import read_back, read_inputs
from edgeforge.planning import BuildPlan
from edgeforge.quantization.calibration import Calibration
from edgeforge.runtime.manifest import EngineRecord

__all__ = ["CONFIG_FILE", "check", "files", "finish", "read_back", "read_inputs", "requirements", "sink"]

CONFIG_FILE = "config.json"


def requirements(plan: BuildPlan) -> Requirements:
    """See `edgeforge.backends.Backend`. The engine is still to be built: only its GPU can build it."""
    engine = EngineRecord(
        name="tensorrt",
        tensor_parallel=plan.target.tensor_parallel,
        pipeline_parallel=plan.target.pipeline_parallel,
        compute_capability=None,
        state="to-be-built",
        script=DEVICE_SCRIPT,
        versions={},
    )
    return Requirements(packages={}, engine=engine)


def files(plan: BuildPlan) -> ModelFiles:
    """See `edgeforge.backends.Backend`."""
    return ModelFiles(weights=tuple(rank_file(rank) for rank in range(plan.target.cards)))


def sink(plan: BuildPlan, calibration: Calibration, directory: Path) -> AbstractContextManager[WeightSink]:
    """See `edgeforge.backends.Backend`."""
    return rank_files(plan, calibration, directory)


def finish(plan: BuildPlan, origin: Origin, directory: Path) -> None:
    """See `edgeforge.backends.Backend`."""
    text = json.dumps(checkpoint_config(plan, origin.config), indent=2) + "\n"
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")
