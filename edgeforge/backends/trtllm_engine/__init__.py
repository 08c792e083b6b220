"""From a TensorRT-LLM checkpoint to an engine, with a trtllm-build (up to 1.2.1) that the user names.

The checkpoint is `edgeforge.backends.tensorrt_llm`'s. An engine is tied to its GPU's compute capability and to the
version that built it, so both are checked before any work, and written down.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgeforge.backends.tensorrt_llm import requirements
from edgeforge.backends.trtllm_engine.arguments import build_arguments
from edgeforge.backends.trtllm_engine.finding import NEWEST, OLDEST, Builder, find_builder
from edgeforge.backends.trtllm_engine.process import failure, run
from edgeforge.errors import MissingDependency
from edgeforge.planning import BuildPlan
from edgeforge.runtime.manifest import EngineRecord

__all__ = ["NEWEST", "OLDEST", "Builder", "build_arguments", "build_engine", "find_builder"]

_ENGINE_FILE = re.compile(r"\brank(\d+)\.engine\b")


def build_engine(
    builder: Builder,
    plan: BuildPlan,
    checkpoint: Path,
    engine: Path,
    *,
    log: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> EngineRecord:
    """Build the engines of all ranks into the new folder `engine`; `log` gets trtllm-build's lines as they come.

    `progress(done, total)` counts ranks. Errors are those of `process.failure`; then, and after Ctrl-C, no folder is
    left, and no process.
    """
    ranks = plan.target.cards
    partial = engine.with_name(f".{engine.name}.partial")
    written: set[str] = set()

    def follow(line: str) -> None:
        log(line)
        match = _ENGINE_FILE.search(line)
        if match and match.group(1) not in written:
            written.add(match.group(1))
            progress(min(len(written), ranks - 1), ranks)

    progress(0, ranks)
    folders = ("--checkpoint_dir", str(checkpoint.absolute()), "--output_dir", str(partial.absolute()))
    try:
        partial.mkdir()
        outcome = run([*builder.command, *folders, *build_arguments(plan)], follow)
        if outcome.exit_code != 0:
            raise failure(outcome)
        record = _record(builder, plan, partial)
        partial.rename(engine)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    progress(ranks, ranks)
    return record


def _record(builder: Builder, plan: BuildPlan, folder: Path) -> EngineRecord:
    """What the manifest says of the engine. MissingDependency where files are missing that its end promised."""
    missing = [name for name in _expected(plan) if not (folder / name).is_file()]
    if missing:
        raise MissingDependency(
            f"trtllm-build ended well and left no {missing[0]}", hint=f"use TensorRT-LLM {NEWEST}; its log says more"
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    version = config.get("version") or builder.versions["tensorrt_llm"]
    record = requirements(plan).engine
    assert record is not None
    return replace(
        record,
        state="ready",
        script=None,
        compute_capability=builder.compute_capability,
        versions={**builder.versions, "tensorrt_llm": version},
    )


def _expected(plan: BuildPlan) -> tuple[str, ...]:
    return ("config.json", *(f"rank{rank}.engine" for rank in range(plan.target.cards)))
