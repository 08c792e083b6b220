"""build-on-device.sh: the step that only the device can take, for bundles whose engine is still to be built.

POSIX sh, since `sh` is what every board has. The script knows its plan's figures, checks the GPU, the tools, the memory
and the bundle before it starts, builds beside the bundle and never into it, and does nothing where that was done.
"""

import shlex
from collections.abc import Mapping
from importlib.resources import files

from edgeforge.backends.huggingface.consumers import DEVICE_SCRIPT
from edgeforge.backends.trtllm_engine.arguments import build_arguments
from edgeforge.backends.trtllm_engine.finding import IMAGE, NEWEST, OLDEST
from edgeforge.planning import BuildPlan

SCRIPT = DEVICE_SCRIPT
EDGE_LLM = "0.11"
"""The release whose reader of checkpoints, exporter (tensorrt_edgellm/scripts/export.py) and file names were looked at.
llm_build is C++ in its repository: examples/llm/llm_build.cpp."""
LEAST_BYTES_PER_PARAMETER, USUAL_BYTES_PER_PARAMETER = 3, 4
MIB = 1 << 20


def script(plan: BuildPlan) -> str | None:
    """The script of a plan whose files an engine cannot load as they are; None where nothing is left to do."""
    makers = {"edge-llm": edge_llm_script, "tensorrt": trtllm_script}
    maker = makers.get(plan.target.engine)
    return None if maker is None else maker(plan)


def edge_llm_script(plan: BuildPlan) -> str:
    """Jetson: ONNX export, then llm_build."""
    target, parameters = plan.target, plan.architecture.parameter_count
    # The quick start guide of Edge-LLM: on Orin, weights outside the graph make building take less memory.
    int4 = any(scheme.name == "w4a16" for scheme in plan.schemes.values())
    values = {
        "edge_llm": EDGE_LLM,
        "parameters": f"{parameters / 1e9:.1f} billion",
        "least_mib": str(LEAST_BYTES_PER_PARAMETER * parameters // MIB),
        "usual_mib": str(USUAL_BYTES_PER_PARAMETER * parameters // MIB),
        "export_options": "--externalize-weights int4_ffn" if int4 else "",
        "batch": str(target.batch),
        "context": str(target.context),
    }
    run = '"run it: llm_inference --engineDir $out/engine --inputFile input.json --outputFile output.json"'
    return _script(plan, f"TensorRT Edge-LLM {EDGE_LLM}", values, run, "edge_llm.sh")


def trtllm_script(plan: BuildPlan) -> str:
    """TensorRT-LLM up to 1.2.1: trtllm-build."""
    values = {
        "oldest": OLDEST,
        "newest": NEWEST,
        "image": IMAGE,
        "ranks": str(plan.target.cards),
        "build_options": " ".join(build_arguments(plan)),
    }
    run = '"run it: trtllm-serve $out/engine --tokenizer $bundle/model --backend tensorrt"'
    return _script(plan, f"TensorRT-LLM {OLDEST} to {NEWEST}", values, run, "trtllm.sh")


def _script(plan: BuildPlan, needs: str, values: Mapping[str, str], run: str, body: str) -> str:
    profile = plan.target.profile
    known = {"profile": profile.name, "capability": profile.compute_capability or "", **values}
    folder = files(__name__)
    return "".join(
        (
            "#!/bin/sh\n",
            f"# Builds the engine of this bundle on the {profile.title or profile.name} that runs it. Needs {needs}.\n",
            "#   sh build-on-device.sh [FOLDER]   (by default the folder BUNDLE-engine, beside the bundle)\n",
            "set -eu\n\n",
            *(f"{name}={shlex.quote(value)}\n" for name, value in known.items()),
            f"how_to_run() {{ say {run}; printf '%s\\n' \"$out/engine\"; }}\n",
            (folder / "common.sh").read_text(encoding="utf-8"),
            (folder / body).read_text(encoding="utf-8"),
        )
    )
