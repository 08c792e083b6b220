"""Refuses a plan that does not fit, and says what would: fewer bits, shorter context, smaller batch, more cards.

Every suggestion is a plan that was made and found to fit, never an estimate.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from edgeforge.errors import DoesNotFit
from edgeforge.hardware import BACKENDS, ENGINES, SCHEMES, Target, runnable_schemes
from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.model.checkpoint import StoredGrid
from edgeforge.planning.memory import budget, weight_bytes
from edgeforge.planning.overrides import with_scheme
from edgeforge.planning.plan import BuildPlan, draft_plan
from edgeforge.quantization.scheme import QuantizationScheme

CONTEXT_STEP = 256
MAX_CARDS = 64

Draft = Callable[[Target], BuildPlan]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A change under which the model fits. `available` is False where this version's backend cannot do it."""

    change: str  # as the user would type it, or "4 x h100"
    plan: BuildPlan
    available: bool = True


class PlanDoesNotFit(DoesNotFit):
    """The model does not fit the target; carries the plan (with its budget) and what would fit."""

    def __init__(self, plan: BuildPlan, alternatives: tuple[Alternative, ...]) -> None:
        super().__init__(_sentence(plan), hint=_hint(plan, alternatives))
        self.plan = plan
        self.alternatives = alternatives


def make_plan(
    architecture: LlamaArchitecture, target: Target, *, stored: Mapping[str, StoredGrid] | None = None
) -> BuildPlan:
    """The plan for `target` (overrides already applied). Raises PlanDoesNotFit (exit code 4) with what would fit."""

    known: dict[str, Mapping[str, QuantizationScheme]] = {}

    def draft(changed: Target) -> BuildPlan:
        plan = draft_plan(architecture, changed, stored=stored, schemes=known.get(changed.scheme))
        known.setdefault(changed.scheme, plan.schemes)
        return plan

    _check_size(architecture, target)
    plan = draft(target)
    if plan.memory.fits:
        return plan
    raise PlanDoesNotFit(plan, tuple(_alternatives(plan.target, draft)))


def _check_size(architecture: LlamaArchitecture, target: Target) -> None:
    engine = ENGINES[target.engine]
    if engine.max_parameters is not None and architecture.parameter_count > engine.max_parameters:
        raise DoesNotFit(
            f"{engine.title}, which runs models on {target.profile.name}, takes dense models of up to "
            f"{engine.max_parameters / 1e9:.0f} billion parameters, and this one has "
            f"{architecture.parameter_count / 1e9:.1f}",
            hint="take a smaller model, or a target of the data centre (`edgeforge targets`)",
        )


def max_context(plan: BuildPlan) -> int | None:
    """The longest context, in steps of CONTEXT_STEP tokens, that fits with the plan's schemes; None where none does."""
    a, longest = plan.architecture, plan.architecture.max_position_embeddings

    def draft(steps: int) -> BuildPlan:
        target = replace(plan.target, context=min(steps * CONTEXT_STEP, longest))
        memory = budget(a, target, plan.schemes, weight_bytes(a, target, plan.schemes))
        return replace(plan, target=target, memory=memory)

    best = _largest(-(-longest // CONTEXT_STEP), draft)
    return None if best is None else best.target.context


def _alternatives(target: Target, draft: Draft) -> Iterator[Alternative]:
    found = [option for option in (_fewer_bits(target, draft), _shorter_context(target, draft)) if option]
    found += [option for option in (_smaller_batch(target, draft),) if option]
    yield from found or _everything_smaller(target, draft)
    cards = _more_cards(target, draft)
    if cards:
        yield cards


def _fewer_bits(target: Target, draft: Draft) -> Alternative | None:
    """The scheme with the most bits, among those with fewer than now, that fits."""
    for scheme in _smaller_schemes(target):
        plan = draft(with_scheme(target, scheme))
        if plan.memory.fits:
            return Alternative(change=f"--scheme {scheme}", plan=plan)
    return None


def _smaller_schemes(target: Target) -> list[str]:
    bits = SCHEMES[target.scheme].bits
    profile = target.profile
    known = runnable_schemes(profile.compute_capability, target.backend, target.engine, profile.formats)
    smaller = [name for name in known if SCHEMES[name].bits < bits]
    return sorted(smaller, key=lambda name: -SCHEMES[name].bits)


def _shorter_context(target: Target, draft: Draft) -> Alternative | None:
    """The longest context that fits, in steps of CONTEXT_STEP tokens."""
    plan = _largest(
        (target.context - 1) // CONTEXT_STEP, lambda steps: draft(replace(target, context=steps * CONTEXT_STEP))
    )
    return None if plan is None else Alternative(change=f"--context {plan.target.context}", plan=plan)


def _smaller_batch(target: Target, draft: Draft) -> Alternative | None:
    plan = _largest(target.batch - 1, lambda batch: draft(replace(target, batch=batch)))
    return None if plan is None else Alternative(change=f"--batch {plan.target.batch}", plan=plan)


def _everything_smaller(target: Target, draft: Draft) -> Iterator[Alternative]:
    """Where no single change is enough: the fewest bits, one sequence, and the longest context that then fits."""
    scheme = (_smaller_schemes(target) or [target.scheme])[-1]
    smallest = replace(with_scheme(target, scheme), batch=1)
    if draft(smallest).memory.fits:
        change, plan = "", draft(smallest)
    else:
        shorter = _shorter_context(smallest, draft)
        if shorter is None:
            return
        change, plan = f" {shorter.change}", shorter.plan
    batch = " --batch 1" if target.batch > 1 else ""
    yield Alternative(change=f"--scheme {scheme}{batch}{change}", plan=plan)


def _more_cards(target: Target, draft: Draft) -> Alternative | None:
    """The fewest cards that hold the model as asked for, else with the fewest bits; only for cards one can add."""
    if target.profile.kind != "gpu":
        return None
    for scheme in (target.scheme, *_smaller_schemes(target)[-1:]):
        plan = _fewest_cards(with_scheme(target, scheme), draft)
        if plan is not None:
            cards = plan.target.tensor_parallel
            fewer_bits = "" if scheme == target.scheme else f" --scheme {scheme}"
            possible = cards in BACKENDS[target.backend].tensor_parallel
            return Alternative(change=f"{cards} x {target.profile.name}{fewer_bits}", plan=plan, available=possible)
    return None


def _fewest_cards(target: Target, draft: Draft) -> BuildPlan | None:
    """The plan of the smallest power of two that divides the heads and holds the model, up to MAX_CARDS."""
    cards = 2 * target.tensor_parallel
    while cards <= MAX_CARDS:
        plan = draft(replace(target, tensor_parallel=cards))
        if plan.architecture.num_attention_heads % cards:
            return None
        if plan.memory.fits:
            return plan
        cards *= 2
    return None


def _largest(most: int, draft: Callable[[int], BuildPlan]) -> BuildPlan | None:
    """The plan of the largest number in 1..most that fits (memory never shrinks as the number grows)."""
    best = None
    low, high = 1, most
    while low <= high:
        middle = (low + high) // 2
        plan = draft(middle)
        if plan.memory.fits:
            best, low = plan, middle + 1
        else:
            high = middle - 1
    return best


def _sentence(plan: BuildPlan) -> str:
    target, memory = plan.target, plan.memory
    parameters = plan.architecture.parameter_count / 1e9
    at = f"in {target.scheme} with {target.context:,} tokens of context"
    if target.batch > 1:
        at += f" and batch {target.batch}"
    return (
        f"a model of {parameters:.1f} billion parameters {at} needs {_gb(memory.total_bytes)}, "
        f"and {target.profile.name} has {_gb(memory.available_bytes)}"
    )


def _hint(plan: BuildPlan, alternatives: tuple[Alternative, ...]) -> str:
    """What would fit; and where fewer bits or less context would not, that they would not."""
    target = plan.target
    options = "; ".join(_spoken(option) for option in alternatives)
    if any(option.available for option in alternatives):
        return f"what would fit: {options}"
    smallest = (_smaller_schemes(target) or [target.scheme])[-1]
    hint = f"no context is short enough, and {smallest} is the smallest scheme of backend {target.backend}; "
    return hint + (f"what would fit: {options}" if options else "take a smaller model or a target with more memory")


def _spoken(option: Alternative) -> str:
    per_card = " each" if option.plan.target.tensor_parallel > 1 else ""
    note = "" if option.available else f", once backend {option.plan.target.backend} can split a model"
    return f"{option.change} ({_gb(option.plan.memory.total_bytes)}{per_card}{note})"


def _gb(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
