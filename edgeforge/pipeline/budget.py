"""`--scheme auto`: bits, group size and zero points of every fused block, the best that a budget buys.

`budget_options` says what each option takes and costs; `quantization.allocation` solves the knapsack exactly.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeforge.backends.onnx.layout import weight_layout
from edgeforge.errors import DoesNotFit, UsageError
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.pipeline.budget_options import Item, items_of, losses_of
from edgeforge.pipeline.calibration_samples import read_samples
from edgeforge.pipeline.calibration_source import CalibrationTokens
from edgeforge.planning import (
    BuildPlan,
    draft_plan,
    scheme_key,
)
from edgeforge.planning.memory import weight_bytes
from edgeforge.quantization.allocation import Allocation, Option, within_bytes, within_loss

if TYPE_CHECKING:
    pass

GRAM_SAMPLES, GRADIENT_SAMPLES = 32, 8
"""Sequences: losses only have to be compared, and a layer's Gram matrix has far fewer figures than they have tokens."""

Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]
Log = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the user set: the weights file's bytes, or the mean KL divergence. One of them."""

    max_bytes: int | None = None
    max_divergence: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """The plan that the budget bought. `divergence`: predicted, of codes rounded to nearest. `weights_bytes`: the file.

    `bound`: nothing within the budget does better, in the other figure.
    """

    plan: BuildPlan
    budget: Budget
    divergence: float
    weights_bytes: int
    bound: float

    def document(self) -> dict[str, object]:
        """For the manifest: what was asked for, what is predicted, and how many tensors got which scheme."""
        counts = Counter(scheme_key(scheme) for scheme in self.plan.schemes.values())
        limits = {"max_bytes": self.budget.max_bytes, "max_divergence": self.budget.max_divergence}
        return {
            **{name: limit for name, limit in limits.items() if limit is not None},
            "weights_bytes": self.weights_bytes,
            "predicted_divergence": self.divergence,
            "bound": self.bound,
            "tensors": dict(sorted(counts.items())),
        }


def check(plans: Sequence[BuildPlan], budget: Budget | None) -> None:
    """Before any work. Raises UsageError where the target's files cannot mix schemes or the limit is none, DoesNotFit
    for too few bytes."""
    if budget is None:
        return
    if len(plans) > 1:
        raise UsageError("--scheme auto chooses for one target at a time", hint="build the targets one after the other")
    plan, target = plans[0], plans[0].target
    if target.backend != "onnx" or not target.scheme.endswith("a16"):
        raise UsageError(
            f"--scheme auto mixes integer schemes, which backend {target.backend} cannot store",
            hint="use --backend onnx, or name a scheme",
        )
    if (budget.max_bytes is None) == (budget.max_divergence is None):
        raise UsageError(
            "--scheme auto needs a limit, either on bytes or on divergence",
            hint="add --max-bytes N or --max-divergence D",
        )
    if budget.max_bytes is not None:
        items = items_of(plan)
        smallest = _file_bytes(_with(plan, items, [int(np.argmin(item.sizes)) for item in items]))
        if budget.max_bytes < smallest:
            raise DoesNotFit(
                f"{budget.max_bytes:,} bytes are too few: the smallest weights that the target can have take "
                f"{smallest:,}",
                hint=f"--max-bytes {smallest} or more",
            )


def spend(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    budget: Budget,
    tokens: CalibrationTokens,
    folder: Path,
    *,
    device: str,
    threads: int,
    progress: Progress,
    log: Log,
) -> Spent:
    """The plan with the schemes that `budget` buys. Gram matrices are kept in `folder`, which the caller deletes.

    Raises DoesNotFit for a budget that nothing meets, and what `collect_grams` raises.
    """
    from edgeforge.pipeline import sensitivity
    from edgeforge.pipeline.layerwise import collect_grams

    few = replace(tokens, ids=tokens.ids[:GRAM_SAMPLES])
    grams = collect_grams(checkpoint, few, folder, device=device, threads=threads, progress=_part(progress, 0), log=log)
    measured = sensitivity.measure(
        checkpoint,
        tokens.ids[:GRADIENT_SAMPLES],
        folder / "gradients",
        device=device,
        threads=threads,
        progress=_part(progress, 1),
    )
    items = items_of(plan)
    losses = losses_of(checkpoint, plan, items, grams, measured, _part(progress, 2))
    found, chosen = _solve(plan, items, losses, budget)
    if not chosen.memory.fits:
        raise DoesNotFit(
            f"{_file_bytes(chosen):,} bytes of weights do not fit {plan.target.profile.name}",
            hint="set a smaller --max-bytes, or a shorter --context",
        )
    return Spent(
        plan=chosen, budget=budget, divergence=found.loss, weights_bytes=_file_bytes(chosen), bound=found.bound
    )


def spend_on(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    budget: Budget,
    source: Path | None,
    out: Path,
    *,
    device: str,
    threads: int,
    progress: Progress,
    log: Log,
) -> Spent:
    """`spend` on the text of `source` (None: the default set), in a folder beside the bundle that is then deleted."""
    folder = out.absolute().parent / f".{out.name}.budget"
    tokens = read_samples(checkpoint, source)
    found = spend(checkpoint, plan, budget, tokens, folder, device=device, threads=threads, progress=progress, log=log)
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _part(progress: Progress, third: int) -> Progress:
    """Of three parts that take about as long."""
    return lambda done, total: progress(1000 * third + 1000 * done // max(total, 1), 3000)


def _solve(
    plan: BuildPlan, items: Sequence[Item], losses: Sequence[Sequence[float]], budget: Budget
) -> tuple[Allocation, BuildPlan]:
    options = [
        [Option(bytes=size, loss=loss) for size, loss in zip(item.sizes, each, strict=True)]
        for item, each in zip(items, losses, strict=True)
    ]
    if budget.max_bytes is None:
        best, limit = sum(min(each) for each in losses), budget.max_divergence or 0.0
        if limit < best:
            raise DoesNotFit(
                f"a divergence of {limit:g} is out of reach: 8 bits everywhere are predicted to have {best:.2g}",
                hint=f"--max-divergence {best * 1.01:.2g} or more, or --scheme f32",
            )
        found = within_loss(options, limit)
        return found, _with(plan, items, found.choices)
    smallest = sum(min(item.sizes) for item in items)
    room = budget.max_bytes - weight_bytes(plan.architecture, plan.target, plan.schemes).others
    while True:  # until what alignment adds to the file has room too
        found = within_bytes(options, max(room, smallest))
        chosen = _with(plan, items, found.choices)
        excess = _file_bytes(chosen) - budget.max_bytes
        if excess <= 0 or room <= smallest:
            return found, chosen
        room = min(room, found.bytes) - excess


def _with(plan: BuildPlan, items: Sequence[Item], choices: Sequence[int]) -> BuildPlan:
    schemes = {name: item.schemes[choice] for item, choice in zip(items, choices, strict=True) for name in item.names}
    return draft_plan(plan.architecture, plan.target, schemes={name: schemes[name] for name in plan.schemes})


def _file_bytes(plan: BuildPlan) -> int:
    """Of the weights file, to the byte."""
    return weight_layout(plan).size
