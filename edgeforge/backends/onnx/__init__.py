"""ONNX Runtime: a graph, one external data file, and what onnxruntime-genai needs to run the same directory.

Files: model.onnx (generates), scoring.onnx (logits of every token), model.onnx.data (both graphs' weights),
genai_config.json. The tokenizer's files are the pipeline's business.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeforge import __version__
from edgeforge.backends import Requirements, WeightSink
from edgeforge.backends.onnx.genai import genai_config
from edgeforge.backends.onnx.layout import weight_layout
from edgeforge.backends.onnx.weights import DATA_FILE, weight_file
from edgeforge.model.checkpoint import GenerationDefaults
from edgeforge.planning import BuildPlan

__all__ = ["DATA_FILE", "GENAI_CONFIG_FILE", "GRAPH_FILE", "SCORING_GRAPH_FILE", "finish", "requirements", "sink"]

GRAPH_FILE = "model.onnx"
SCORING_GRAPH_FILE = "scoring.onnx"
GENAI_CONFIG_FILE = "genai_config.json"


def requirements(plan: BuildPlan) -> Requirements:
    """See `edgeforge.backends.Backend`."""
    if plan.target.profile.kind == "cpu":
        return Requirements(packages={"onnxruntime": ">=1.23"}, provider="CPUExecutionProvider")
    return Requirements(packages={"onnxruntime-gpu": ">=1.23"}, provider="CUDAExecutionProvider")


@contextmanager
def sink(plan: BuildPlan, directory: Path) -> Iterator[WeightSink]:
    """See `edgeforge.backends.Backend`."""
    with weight_file(plan, directory) as weights:
        yield weights


def finish(plan: BuildPlan, generation: GenerationDefaults, directory: Path) -> None:
    """See `edgeforge.backends.Backend`."""
    from edgeforge.backends.onnx.llama import decoder  # onnx_ir takes half a second, which `sink` does not need

    layout = weight_layout(plan)
    for file, all_logits in ((GRAPH_FILE, False), (SCORING_GRAPH_FILE, True)):
        decoder(plan, layout, DATA_FILE, all_logits=all_logits).save(directory / file, "llama", __version__)
    config = genai_config(plan, generation, requirements(plan).provider, GRAPH_FILE)
    (directory / GENAI_CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
