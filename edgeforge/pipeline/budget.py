"""`--scheme auto`: bits, group size and zero points of every fused block, the best that a budget buys.

`budget_options` says what each option takes, `budget_weighing` what it costs; `quantization.allocation` solves the
knapsack exactly, and `budget_chosen` tells why.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeforge.backends.onnx.layout import weight_layout
from edgeforge.errors import DoesNotFit, UsageError
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.pipeline.budget_chosen import Chosen, chosen_of, summary
from edgeforge.pipeline.budget_options import Item, items_of
from edgeforge.pipeline.budget_weighing import Log, Progress, Weighing, weigh
from edgeforge.pipeline.calibration_samples import read_samples
from edgeforge.pipeline.layerwise import check_torch
from edgeforge.planning import (
    BuildPlan,
    draft_plan,
    scheme_key,
)
from edgeforge.planning.memory import weight_bytes
from edgeforge.quantization.allocation import Allocation, Option, within_bytes, within_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the user set: the weights file's bytes, or the mean KL divergence. One of them."""

    max_bytes: int | None = None
    max_divergence: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """The plan that the budget bought. `divergence`: predicted. `weights_bytes`: the file.

    `bound`: nothing within the budget does better, in the figure that was not given.
    """

    plan: BuildPlan
    budget: Budget
    divergence: float
    weights_bytes: int
    bound: float
    blocks: tuple[Chosen, ...]

    def document(self) -> dict[str, object]:
        """For the manifest: what was asked for, what is predicted, and what was chosen."""
        counts = Counter(scheme_key(scheme) for scheme in self.plan.schemes.values())
        told: dict[str, object] = {
            "weights_bytes": self.weights_bytes,
            "predicted_divergence": self.divergence,
            "tensors": dict(sorted(counts.items())),
            "chosen": summary(self.blocks),
        }
        if self.budget.max_bytes is not None:
            return {"max_bytes": self.budget.max_bytes, "predicted_divergence_bound": self.bound, **told}
        return {"max_divergence": self.budget.max_divergence, "weights_bytes_bound": int(self.bound), **told}


def check(plans: Sequence[BuildPlan], budget: Budget | None) -> None:
    """Before any work. Raises UsageError where the target's files cannot mix schemes or the limit is none, DoesNotFit
    for too few bytes, MissingDependency without torch."""
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
    check_torch("cpu")
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


def spend(plan: BuildPlan, weighing: Weighing, budget: Budget) -> Spent:
    """The plan with the schemes that `budget` buys. Raises DoesNotFit for a budget that nothing meets."""
    found, chosen = _solve(plan, weighing.items, weighing.losses, budget)
    if not chosen.memory.fits:
        raise DoesNotFit(
            f"{_file_bytes(chosen):,} bytes of weights do not fit {plan.target.profile.name}",
            hint="set a smaller --max-bytes, or a shorter --context",
        )
    bound = found.bound if budget.max_divergence is None else found.bound + _other_bytes(chosen)
    return Spent(
        plan=chosen,
        budget=budget,
        divergence=found.loss,
        weights_bytes=_file_bytes(chosen),
        bound=bound,
        blocks=chosen_of(plan.architecture, weighing.items, weighing.losses, found.choices),
    )


def spend_on(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    budget: Budget,
    source: Path | None,
    out: Path | None,
    *,
    device: str,
    threads: int,
    progress: Progress,
    log: Log,
) -> Spent:
    """`spend` by what `weigh` finds on the text of `source` (None: the default set), for the bundle `out` (None: no
    bundle is made)."""
    folder = None if out is None else out.absolute().parent / f".{out.name}.budget"
    tokens = read_samples(checkpoint, source)
    weighing = weigh(checkpoint, plan, tokens, folder, device=device, threads=threads, progress=progress, log=log)
    return spend(plan, weighing, budget)


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
    room = budget.max_bytes - _other_bytes(plan)
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


def _other_bytes(plan: BuildPlan) -> int:
    """Of the weights that no choice changes, but for how they are aligned."""
    return weight_bytes(plan.architecture, plan.target, plan.schemes).others


def _file_bytes(plan: BuildPlan) -> int:
    """Of the weights file, to the byte."""
    return weight_layout(plan).size
