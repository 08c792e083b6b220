"""Which option each item takes under a limit on bytes or on loss: the multiple-choice knapsack problem, exactly.

    minimise  sum_i cost[i, c_i]      subject to  sum_i weight[i, c_i] <= limit        (one option c_i for each item i)

Under a byte budget the weights are bytes and the costs losses; under a bound on the loss they change places. Kellerer,
Pferschy and Pisinger, "Knapsack Problems" (2004), chapter 11:

1. Options that cost no less and weigh no less than another are dropped (dominance), and all others but those on the
   convex hull are set aside: walking the hulls by falling gain per weight solves the linear relaxation. It gives a
   bound from below, a good choice from above, and the price of a unit of weight.
2. Items are added one by one, most doubtful first, to a list of partial choices of which none costs and weighs no less
   than another. A partial choice is dropped when, with the rest at the relaxation's price, it cannot beat the best
   choice known. What is left in the end is the optimum.

Should the list outgrow `MOST_STATES`, evenly spaced ones stay, and `Allocation.bound` tells how far the optimum may be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]

MOST_STATES = 200_000
EXACT = 1e-12
"""Sums of float64 that differ by less are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to store an item: what it takes and what it costs the model's accuracy."""

    bytes: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The option chosen for each item, their sums, and a bound: no choice within the limit does better than it.

    `bound` is a loss under a byte budget, and bytes under a bound on the loss.
    """

    choices: tuple[int, ...]
    bytes: int
    loss: float
    bound: float


def within_bytes(items: Sequence[Sequence[Option]], max_bytes: int) -> Allocation:
    """The least loss in at most `max_bytes`. ValueError where no choice is that small; it names the smallest."""
    weights, costs = _columns(items)
    smallest = sum(min(option.bytes for option in options) for options in items)
    if smallest > max_bytes:
        raise ValueError(f"{max_bytes:,} bytes are too few: the smallest choice takes {smallest:,}")
    choices, bound = _solve(weights, costs, float(max_bytes))
    return _summed(items, choices, bound)


def within_loss(items: Sequence[Sequence[Option]], max_loss: float) -> Allocation:
    """The fewest bytes with a loss of at most `max_loss`. ValueError where none is; it names the least loss."""
    costs, weights = _columns(items)
    least = sum(min(option.loss for option in options) for options in items)
    if least > max_loss:
        raise ValueError(f"a loss of {max_loss:.4g} is out of reach: the most accurate choice has {least:.4g}")
    choices, bound = _solve(weights, costs, max_loss)
    return _summed(items, choices, bound)


def _columns(items: Sequence[Sequence[Option]]) -> tuple[list[Doubles], list[Doubles]]:
    """(bytes, losses) of each item's options. ValueError for an item without options, or a loss that is no number."""
    sizes = [np.array([option.bytes for option in options], np.float64) for options in items]
    losses = [np.array([option.loss for option in options], np.float64) for options in items]
    if not all(len(loss) and np.isfinite(loss).all() for loss in losses):
        raise ValueError("an item has no options, or one whose loss is NaN or infinite")
    return sizes, losses


def _summed(items: Sequence[Sequence[Option]], choices: Sequence[int], bound: float) -> Allocation:
    chosen = [options[choice] for options, choice in zip(items, choices, strict=True)]
    size, loss = sum(option.bytes for option in chosen), float(sum(option.loss for option in chosen))
    return Allocation(choices=tuple(choices), bytes=size, loss=loss, bound=bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """An item's undominated options by rising weight and falling cost: their numbers, weights and costs; `hull` picks
    those on the convex hull."""

    numbers: Indices
    weights: Doubles
    costs: Doubles
    hull: Indices


def _undominated(weights: Doubles, costs: Doubles) -> _Item:
    order = np.lexsort((costs, weights))
    cheapest = np.minimum.accumulate(costs[order])
    keep = order[np.r_[True, costs[order][1:] < cheapest[:-1]]]
    w, c = weights[keep], costs[keep]
    hull: list[int] = []
    for i in range(len(keep)):
        while len(hull) > 1 and _turns_up(w[hull[-2:]], c[hull[-2:]], w[i], c[i]):
            hull.pop()
        hull.append(i)
    return _Item(numbers=keep.astype(np.int64), weights=w, costs=c, hull=np.array(hull))


def _turns_up(w: Doubles, c: Doubles, next_w: float, next_c: float) -> bool:
    """Whether the second of two points lies on or above the line from the first to the next."""
    return bool((c[1] - c[0]) * (next_w - w[0]) >= (next_c - c[0]) * (w[1] - w[0]))


def _solve(weights: list[Doubles], costs: list[Doubles], limit: float) -> tuple[list[int], float]:
    """The options of least cost, and a bound from below on that cost."""
    items = [_undominated(w, c) for w, c in zip(weights, costs, strict=True)]
    price, greedy = _relaxed(items, limit)
    # The cheapest of each item when weight has its price: the Lagrangian relaxation.
    reduced = [item.costs + price * item.weights for item in items]
    least = np.array([values.min() for values in reduced])
    bound = float(least.sum() - price * limit)
    known = float(sum(item.costs[pick] for item, pick in zip(items, greedy, strict=True)))
    picks, complete = _merged(items, reduced, least, limit, price, known)
    picks = greedy if picks is None else picks
    cost = float(sum(item.costs[pick] for item, pick in zip(items, picks, strict=True)))
    return [int(item.numbers[pick]) for item, pick in zip(items, picks, strict=True)], cost if complete else bound


def _relaxed(items: list[_Item], limit: float) -> tuple[float, list[int]]:
    """The price of weight in the linear relaxation, and the choice that walking the hulls at falling gain leads to."""
    at = [0] * len(items)
    steps = [
        ((item.costs[a] - item.costs[b]) / (item.weights[b] - item.weights[a]), i, position, int(b))
        for i, item in enumerate(items)
        for position, (a, b) in enumerate(zip(item.hull, item.hull[1:], strict=False))
    ]
    room, price = limit - sum(item.weights[0] for item in items), 0.0
    for gain, i, position, to in sorted(steps, key=lambda step: (-step[0], step[1:])):
        item, origin = items[i], items[i].hull[position]
        heavier = item.weights[to] - item.weights[origin]
        if at[i] == origin and heavier <= room:
            at[i], room = to, room - heavier
        elif not price:
            price = float(gain)  # the first step that does not fit is the one that the relaxation would take in part
    return price, at


def _merged(
    items: list[_Item], reduced: list[Doubles], least: Doubles, limit: float, price: float, known: float
) -> tuple[list[int] | None, bool]:
    """The options of the least cost below `known` (None: there are none), and whether no state was thinned out."""
    doubt = [values.min(initial=np.inf, where=values > low) - low for values, low in zip(reduced, least, strict=True)]
    order = np.argsort(doubt, kind="stable")
    cheap = np.array([values.argmin() for values in reduced], np.int64)
    rest = _Rest(
        weight=_after([items[i].weights[0] for i in order]),
        bound=_after(least[order]) - price * limit,
        cheap_weight=_after([items[i].weights[cheap[i]] for i in order]),
        cheap_cost=_after([items[i].costs[cheap[i]] for i in order]),
    )
    weight, cost = np.zeros(1), np.zeros(1)
    trail: list[tuple[Indices, Indices]] = []
    best: tuple[int, int] | None = None
    for step, i in enumerate(order):
        weights, costs = (weight[:, None] + items[i].weights).ravel(), (cost[:, None] + items[i].costs).ravel()
        promising = costs + price * weights + rest.bound[step] < known * (1 - EXACT)
        states = _pareto(weights, costs, promising & (weights + rest.weight[step] <= limit))
        if not len(states):
            break
        trail.append((states // len(items[i].weights), states % len(items[i].weights)))
        weight, cost = weights[states], costs[states]
        last = int(np.count_nonzero(weight + rest.cheap_weight[step] <= limit)) - 1  # the heaviest that leaves room
        if last >= 0 and cost[last] + rest.cheap_cost[step] < known * (1 - EXACT):
            best, known = (step, last), float(cost[last] + rest.cheap_cost[step])
    complete = all(len(parents) < MOST_STATES for parents, _ in trail)
    return (None if best is None else _traced(best, trail, order, cheap)), complete


def _pareto(weights: Doubles, costs: Doubles, among: NDArray[np.bool_]) -> Indices:
    """Which states stay, lightest first: none that weighs and costs no less than another, and at most MOST_STATES."""
    states = np.flatnonzero(among)
    states = states[np.lexsort((costs[states], weights[states]))]
    cheapest = np.minimum.accumulate(costs[states])
    states = states[np.r_[True, costs[states][1:] < cheapest[:-1]]] if len(states) else states
    if len(states) <= MOST_STATES:
        return states
    return states[np.linspace(0, len(states) - 1, MOST_STATES).astype(np.int64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rest:
    """What the items after each step add at least, in weight and in priced cost, and what the picks there add."""

    weight: Doubles
    bound: Doubles
    cheap_weight: Doubles
    cheap_cost: Doubles


def _after(values: Sequence[float] | Doubles) -> Doubles:
    """Of each, the sum of those behind it."""
    behind = np.zeros(len(values))
    behind[:-1] = np.cumsum(np.asarray(values, np.float64)[:0:-1])[::-1]
    return behind


def _traced(best: tuple[int, int], trail: list[tuple[Indices, Indices]], order: Indices, cheap: Indices) -> list[int]:
    """The options that led to a state, and the relaxation's for the items behind it."""
    picks = cheap.tolist()
    step, state = best
    for at in range(step, -1, -1):
        parents, options = trail[at]
        picks[int(order[at])] = int(options[state])
        state = int(parents[state])
    return [int(pick) for pick in picks]
