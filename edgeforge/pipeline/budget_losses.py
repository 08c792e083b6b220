"""What the options of a bit budget cost the answer, in nats of divergence per token; no model runs for an option.

    loss of an option = 1/2 sum_n E[g_n^2] (W_n - V_n) G (W_n - V_n)^T / T  + what the rounded inputs cost there

G = X^T X and the gradients g come from calibration text (`layerwise.collect_grams`, `sensitivity`); a sequence's first
token counts in G as its own gradient says, and the mean is over the others. V is the option's searched rounding. Where
gptq will choose the codes, what its later columns make up for is not lost: instead of G stand its pivots, 1 / U_ii^2.

A block of fused matrices is judged by ROWS of its rows, drawn in proportion to E[g_n^2], so that each stands for the
same share of what can be lost. Options are weighed by several threads, each by one alone, on the same rows: their
number changes no figure.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgeforge.model.checkpoint import Checkpoint, StoredGrid
from edgeforge.pipeline.budget_options import Item
from edgeforge.pipeline.layerwise import Grams, Recipe
from edgeforge.pipeline.layerwise.codes import damped_factor
from edgeforge.pipeline.layerwise.workers import workers
from edgeforge.pipeline.sensitivity import Sensitivity
from edgeforge.pipeline.walk import lies_on
from edgeforge.planning import EMBEDDING, BuildPlan
from edgeforge.quantization.quantize import quantize
from edgeforge.quantization.scheme import QuantizationScheme, dequantize

ROWS = 512
"""On SmolLM2-135M at four sizes, what they choose loses at most 0.21 % more than the choice by (nearly) all rows."""
INT8 = 127
INPUT_SHARE = 0.5
"""Of what the formula says of rounded inputs. So they come out 1.6 times too low, as rounded weights do: on
SmolLM2-135M 0.0019 in groups of 32 and 0.0031 in 64, where onnxruntime 1.32 shows 0.0030 and 0.0052."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def losses_of(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    items: Sequence[Item],
    grams: Grams,
    measured: Sensitivity,
    *,
    threads: int,
    progress: Callable[[int, int], None],
) -> list[list[float]]:
    """Of each item's schemes, in nats per token. In memory is one Gram matrix, and ROWS rows for each thread."""
    target, found = plan.target, []
    rounds_inputs = target.profile.kind == "cpu"
    compensates = "gptq" in target.algorithm
    with workers(threads) as team:
        for done, item in enumerate(items, start=1):
            if item.names == (EMBEDDING,):
                judges = _of_embedding(checkpoint, grams, measured, rounds_inputs)
            else:
                importance = [_of_others(measured, name, grams) for name in item.names]
                drawn = _Drawn.of(checkpoint, item.names, importance)
                judges = [_Linear.of(drawn, grams, measured.first, rounds_inputs, compensates)]

            def loss(option: tuple[QuantizationScheme, int], judges: Sequence[_Linear | _Gathered] = judges) -> float:
                scheme, copies = option
                return 0.0 if scheme.is_float else sum(judge.loss(scheme, copies) for judge in judges)

            found.append(team.map(loss, list(zip(item.schemes, item.copies, strict=True))))
            progress(done, len(items))
    return found


def _of_others(measured: Sensitivity, name: str, grams: Grams) -> Floats:
    """E[g_n^2] [N] of a linear's outputs at all tokens but first ones."""
    length = grams.rows / len(grams.first(name))
    return measured.outputs[name] * np.float32(length / (length - 1 + measured.first[name]))


def _of_embedding(
    checkpoint: Checkpoint, grams: Grams, measured: Sensitivity, rounds_inputs: bool
) -> "list[_Linear | _Gathered]":
    """The embedding's errors reach the first layer; where it is the output head too, they also reach the answer."""
    names = (EMBEDDING,)
    gathered = _Drawn.of(checkpoint, names, [measured.frequency])
    judges: list[_Linear | _Gathered] = [_Gathered(drawn=gathered, hidden=measured.hidden)]
    if checkpoint.architecture.tie_word_embeddings:
        drawn = _Drawn.of(checkpoint, names, [measured.outputs[EMBEDDING]])
        # codes that make up for errors in the answer make more of them in what the first layer is given
        judges.append(_Linear.of(drawn, grams, {}, rounds_inputs, compensates=False))
    return judges


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """Rows of some matrices [n, K]; `shares` [n] of all importance, in its units; `grids`: what each row lies on.

    `counts`: by matrix, how many of the rows are its own; they stand one matrix after the other.
    """

    weights: Floats
    shares: Doubles
    grids: tuple[StoredGrid | None, ...]
    counts: Mapping[str, int]

    @classmethod
    def of(cls, checkpoint: Checkpoint, names: Sequence[str], importance: Sequence[Floats]) -> "_Drawn":
        """`importance` [N] of each matrix's rows, not negative."""
        numbers, shares = drawn_rows(np.concatenate(importance), ROWS)
        weights, grids, counts, first = [], list[StoredGrid | None](), dict[str, int](), 0
        for name, values in zip(names, importance, strict=True):
            tensor = checkpoint.tensor(name)
            mine = numbers[(numbers >= first) & (numbers < first + len(values))] - first
            weights += [tensor.rows(row, row + 1) for row in mine.tolist()]
            grids += [tensor.grid] * len(mine)
            counts[name] = len(mine)
            first += len(values)
        return cls(weights=np.concatenate(weights), shares=shares, grids=tuple(grids), counts=counts)

    def change(self, scheme: QuantizationScheme) -> Floats:
        """W - V [n, K]; 0 in rows that the checkpoint holds so already."""
        change = np.zeros_like(self.weights)
        fresh = np.array([not lies_on(grid, scheme) for grid in self.grids])
        if fresh.any():
            weights = self.weights[fresh]
            change[fresh] = weights - dequantize(quantize(weights, scheme, algorithm="search"))
        return change


def drawn_rows(importance: Floats, count: int) -> tuple[NDArray[np.int64], Doubles]:
    """At most `count` rows of those that have an `importance` [N], and how much of it each stands for.

    All, where there are no more; else every (sum / count)-th unit of importance draws the row that it falls in.
    """
    wide = importance.astype(np.float64)
    if len(wide) <= count:
        return np.arange(len(wide)), wide
    reached = np.cumsum(wide)
    points = (np.arange(count) + 0.5) * (reached[-1] / count)
    rows, times = np.unique(np.minimum(np.searchsorted(reached, points), len(wide) - 1), return_counts=True)
    return rows, times * (reached[-1] / count)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Linear:
    """Rows of linears that share an input; a row's share is in nats.

    metrics   by linear: what its rows' errors cost over the text, T times: a Gram matrix [K, K], or pivots [K]
    squares   by linear: of its inputs, summed over the text [K]
    """

    drawn: _Drawn
    metrics: Mapping[str, torch.Tensor]
    squares: Mapping[str, Floats]
    tokens: int
    rounds_inputs: bool

    @classmethod
    def of(
        cls, drawn: _Drawn, grams: Grams, first: Mapping[str, float], rounds_inputs: bool, compensates: bool
    ) -> "_Linear":
        """`first`: what first tokens count as, where they do not count as others do; for pivots, as the calibrated pass
        counts them."""
        names = list(drawn.counts)
        gram = torch.from_numpy(grams.gram(names[0]))
        metrics, squares, exponent = {}, {}, Recipe().emphasis if compensates else 1
        for name in names:
            x, times = torch.from_numpy(grams.first(name)), first.get(name, 1.0)
            squares[name] = (gram.diagonal() + (times - 1) * x.square().sum(dim=0)).numpy()
            own = torch.addmm(gram, x.T, x, alpha=times**exponent - 1)
            metrics[name] = _pivots(name, own) if compensates else own
        return cls(drawn=drawn, metrics=metrics, squares=squares, tokens=grams.rows, rounds_inputs=rounds_inputs)

    def loss(self, scheme: QuantizationScheme, copies: int) -> float:
        """Divergence in nats per token."""
        change = torch.from_numpy(self.drawn.change(scheme))
        parts = torch.split(change, list(self.drawn.counts.values()))
        costs = [_cost(rows, metric) for rows, metric in zip(parts, self.metrics.values(), strict=True)]
        found = torch.cat(costs).numpy()
        if self.rounds_inputs:
            found = found + self._of_inputs(scheme, copies)
        return 0.5 / self.tokens * float((found * self.drawn.shares).sum())

    def _of_inputs(self, scheme: QuantizationScheme, copies: int) -> Floats:
        """T E[e_n^2] of inputs that onnxruntime's CPU kernels round to int8, in blocks as long as the weights'.

        A step is max |x| / 127 of a block, and the error uniform within it; the mean square of the largest of b normal
        numbers is about 2 ln b times theirs, and never less than that of the loudest channel.
        """
        assert scheme.group_size is not None
        size, found, first = scheme.group_size // copies, [], 0
        for name, squares in self.squares.items():
            rows = self.drawn.weights[first : first + self.drawn.counts[name]]
            first += len(rows)
            starts = np.arange(0, len(squares), size)
            loudest = np.maximum.reduceat(squares, starts)
            mean = np.add.reduceat(squares, starts) / np.diff([*starts, len(squares)])
            steps = np.maximum(loudest, 2 * math.log(size) * mean) * (INPUT_SHARE / (12 * INT8**2))
            found.append((np.add.reduceat(np.square(rows), starts, axis=1) * steps).sum(axis=1))
        return np.concatenate(found).astype(np.float32)


def _cost(change: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    """Of each row of changes [n, K], in a metric [K, K] or a diagonal one [K]."""
    return change.square() @ metric if metric.dim() == 1 else (change @ metric).mul_(change).sum(dim=1)


def _pivots(name: str, gram: torch.Tensor) -> torch.Tensor:
    whole = QuantizationScheme(name="w8a16", bits=8)  # activation order takes no groups into account
    return damped_factor(name, gram, whole, Recipe(), lambda line: None).pivots()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gathered:
    """Rows of the embedding as the first layer reads them, a share its part of the text; `hidden` [D]: E[g^2] there."""

    drawn: _Drawn
    hidden: Floats

    def loss(self, scheme: QuantizationScheme, copies: int) -> float:
        """Divergence in nats per token."""
        costs = (np.square(self.drawn.change(scheme)) * self.hidden).sum(axis=1)
        return 0.5 * float((costs * self.drawn.shares).sum())
