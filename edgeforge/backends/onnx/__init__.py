"""ONNX Runtime: a graph, one external data file, and what onnxruntime-genai needs to run the same directory.

Files: model.onnx (logits of the last token, as onnxruntime-genai wants them), scoring.onnx (of every token),
runtime.onnx (of as many as its caller asks for: what our runtime opens), model.onnx.data (all graphs' weights),
genai_config.json. The tokenizer's files are the pipeline's business.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeforge import __version__
from edgeforge.backends import ModelFiles, Origin, Requirements, WeightSink
from edgeforge.backends.onnx.genai import genai_config
from edgeforge.backends.onnx.layout import weight_layout
from edgeforge.backends.onnx.weights import DATA_FILE, weight_file
from edgeforge.planning import BuildPlan
from edgeforge.quantization.calibration import Calibration

__all__ = [
    "DATA_FILE",
    "GENAI_CONFIG_FILE",
    "GRAPH_FILE",
    "RUNTIME_GRAPH_FILE",
    "SCORING_GRAPH_FILE",
    "check",
    "files",
    "finish",
    "requirements",
    "sink",
]

GRAPH_FILE = "model.onnx"
SCORING_GRAPH_FILE = "scoring.onnx"
RUNTIME_GRAPH_FILE = "runtime.onnx"
GENAI_CONFIG_FILE = "genai_config.json"


def requirements(plan: BuildPlan) -> Requirements:
    """See `edgeforge.backends.Backend`."""
    package = "onnxruntime" if plan.target.profile.kind == "cpu" else "onnxruntime-gpu"
    return Requirements(packages={package: ">=1.23"}, provider=_provider(plan))


def _provider(plan: BuildPlan) -> str:
    return "CPUExecutionProvider" if plan.target.profile.kind == "cpu" else "CUDAExecutionProvider"


def files(plan: BuildPlan) -> ModelFiles:
    """See `edgeforge.backends.Backend`."""
    return ModelFiles(
        weights=(DATA_FILE,),
        graph=GRAPH_FILE,
        scoring_graph=SCORING_GRAPH_FILE,
        runtime_graph=RUNTIME_GRAPH_FILE,
    )


def check(plan: BuildPlan) -> None:
    """See `edgeforge.backends.Backend`. Every plan of the ONNX targets can be written."""


@contextmanager
def sink(plan: BuildPlan, calibration: Calibration, directory: Path) -> Iterator[WeightSink]:
    """See `edgeforge.backends.Backend`."""
    with weight_file(plan, directory) as weights:
        yield weights


def finish(plan: BuildPlan, origin: Origin, directory: Path) -> None:
    """See `edgeforge.backends.Backend`."""
    from edgeforge.backends.onnx.llama import Rows, decoder  # onnx_ir takes half a second, which `sink` does not need

    layout = weight_layout(plan)
    graphs: dict[str, Rows] = {GRAPH_FILE: "last", SCORING_GRAPH_FILE: "all", RUNTIME_GRAPH_FILE: "asked"}
    for file, rows in graphs.items():
        decoder(plan, layout, DATA_FILE, rows=rows).save(directory / file, "llama", __version__)
    config = genai_config(plan, origin.generation, _provider(plan), GRAPH_FILE)
    (directory / GENAI_CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
