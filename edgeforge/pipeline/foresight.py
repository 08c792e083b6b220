"""What `--scheme auto` would choose, without a build."""

from dataclasses import replace
from pathlib import Path

from edgeforge.pipeline import BuildOptions, Prepared
from edgeforge.pipeline.budget import spend_on
from edgeforge.pipeline.budget_weighing import Log, Progress
from edgeforge.pipeline.walk import available_cores


def foresee(options: BuildOptions, prepared: Prepared, *, progress: Progress, log: Log) -> Prepared:
    """`prepared` with what the budget of `options` buys. A build of the same options finds the weighing in the cache,
    and chooses the same. Raises what `spend_on` does."""
    assert options.budget is not None
    spent = spend_on(
        prepared.checkpoint,
        prepared.plan,
        options.budget,
        options.calibration if isinstance(options.calibration, Path) else None,
        None,
        device=options.device,
        threads=options.threads or available_cores(),
        progress=progress,
        log=log,
    )
    return replace(prepared, plan=spent.plan, spent=spent)
