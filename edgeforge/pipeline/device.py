"""What only the device's GPU can do: the engine, where it and trtllm-build are here, else a script that does it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeforge.errors import UsageError
from edgeforge.hardware import Target
from edgeforge.planning import BuildPlan
from edgeforge.runtime.manifest import EngineRecord

if TYPE_CHECKING:
    from edgeforge.backends.trtllm_engine import Builder

ENGINE_BACKEND = "trtllm-engine"
ENGINE_FOLDER = "engine"
LOG_FILE = "trtllm-build.log"


def find_builder(
    target: Target, out: Path, *, python: Path | None, command: str | None, targets: Sequence[Target]
) -> "Builder | None":
    """The trtllm-build for a target that wants an engine. Errors are `trtllm_engine.find_builder`'s, and UsageError
    where one was named and none of the build's `targets` wants an engine.
    """
    if (python or command) and all(each.backend != ENGINE_BACKEND for each in targets):
        option = "--trtllm-python" if python else "--trtllm-command"
        raise UsageError(
            f"{option} names what builds engines, and backend {target.backend} has none",
            hint=f"add --backend {ENGINE_BACKEND}, or leave it out",
        )
    if target.backend != ENGINE_BACKEND:
        return None
    from edgeforge.backends import trtllm_engine

    folder = next(parent for parent in out.absolute().parents if parent.exists())
    return trtllm_engine.find_builder(python, command, target, folder)


def complete(
    plan: BuildPlan,
    staging: Path,
    engine: EngineRecord | None,
    builder: "Builder | None",
    *,
    log: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> EngineRecord | None:
    """Build the engine from staging/model into staging/engine, or write the script; returns what is true then."""
    if engine is None or engine.state == "ready":
        return engine
    if builder is not None:
        return _build(plan, staging, builder, log, progress)
    from edgeforge.backends import on_device

    text = on_device.script(plan)
    assert text is not None and engine.script is not None, f"the engine of {plan.target.engine} has no script"
    path = staging / engine.script
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return engine


def _build(
    plan: BuildPlan,
    staging: Path,
    builder: "Builder",
    log: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> EngineRecord:
    """The log is kept as a report: it has times in it."""
    from edgeforge.backends.trtllm_engine import build_engine

    reports = staging / "reports"
    reports.mkdir(exist_ok=True)
    with (reports / LOG_FILE).open("w", encoding="utf-8") as file:

        def tell(line: str) -> None:
            file.write(line + "\n")
            log(line)

        return build_engine(builder, plan, staging / "model", staging / ENGINE_FOLDER, log=tell, progress=progress)
