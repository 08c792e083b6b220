"""Codes of one block of linears, by a recipe: cut in rows, which are quantized apart: threads share the work."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.pipeline.layerwise.recipe import Recipe
from edgeforge.pipeline.layerwise.statistics import Statistics
from edgeforge.pipeline.layerwise.workers import Workers
from edgeforge.pipeline.walk import lies_on
from edgeforge.planning import BuildPlan
from edgeforge.quantization import awq, gptq, search
from edgeforge.quantization.quantize import quantize
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor

ROWS = 512  # a piece
MOST_DAMPING = 1.0

Floats = NDArray[np.float32]


def chosen_names(checkpoint: Checkpoint, plan: BuildPlan) -> frozenset[str]:
    """Tensors that have codes of their own choosing: not float ones, nor those carried over."""
    return frozenset(
        name
        for name, scheme in plan.schemes.items()
        if not (scheme.is_float or scheme.offset or lies_on(checkpoint.tensor(name).grid, scheme))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """D^T X, float32 [M, K], where D is what the original would have beside each row of X, the input here: of the input
    itself (M = K), or, with `in_outputs`, of what the linear writes to (M = N).
    """

    product: torch.Tensor
    in_outputs: bool

    def of_rows(self, w: torch.Tensor, start: int) -> torch.Tensor:
        """What rows `w` [n, K] from `start` on lack in their outputs, times X: [n, K]."""
        return self.product[start : start + len(w)] if self.in_outputs else w @ self.product


def drift_of(block: str, statistics: Statistics) -> Drift | None:
    """None where it was not measured."""
    if not len(statistics.drift):
        return None
    return Drift(product=statistics.drift, in_outputs=is_residual(block))


def is_residual(block: str) -> bool:
    """Whether the block writes to the residual stream, whose drift it then makes up for."""
    return block in ("o", "down")


def quantize_block(
    weights: Mapping[str, torch.Tensor],
    gram: torch.Tensor,
    drift: Drift | None,
    scheme: QuantizationScheme,
    recipe: Recipe,
    team: Workers,
    log: Callable[[str], None],
    *,
    amax: float | None = None,
) -> dict[str, QuantizedTensor]:
    """Linears float32 [N, K] with one input, whose Gram matrix is `gram` [K, K], and one scheme; by their names.

    `drift`: what gptq's weights also have to make up for. `amax`: for schemes with one scale for a whole block.

    UnusableInput, naming the linears, where the Hessian stays singular or a scale does not fit its type.
    """
    matrices = list(weights.values())
    whole = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
    where = next(iter(weights))
    try:
        factor = damped_factor(where, gram, scheme, recipe, log) if recipe.compensates else None
        starts = range(0, len(whole), ROWS)

        def piece(start: int) -> QuantizedTensor:
            w = whole[start : start + ROWS]
            if factor is not None and drift is not None:
                w = w + factor.solve(drift.of_rows(w, start))
            return _quantize_rows(w, gram, factor, scheme, recipe, amax)

        pieces = team.map(piece, starts)
    except ValueError as error:
        raise UnusableInput(f"{where}: {error}", hint="build with --algorithm rtn, or another scheme") from None
    found = joined(pieces)
    parts, start = {}, 0
    for name, matrix in weights.items():
        parts[name] = found.rows(start, start + len(matrix))
        start += len(matrix)
    return parts


def damped_factor(
    where: str, gram: torch.Tensor, scheme: QuantizationScheme, recipe: Recipe, log: Callable[[str], None]
) -> gptq.Factor:
    """With more damping where the recipe's is too little."""
    damping = recipe.damping
    while True:
        try:
            return gptq.factorize(gram, scheme, damping=damping, order=recipe.order)
        except gptq.SingularHessian:
            if damping >= MOST_DAMPING:
                raise
            damping = min(10 * damping, MOST_DAMPING)
            log(f"{where}: its inputs repeat one another (a singular Hessian); damping {damping:g} is used for it")


def _quantize_rows(
    w: torch.Tensor,
    gram: torch.Tensor,
    factor: gptq.Factor | None,
    scheme: QuantizationScheme,
    recipe: Recipe,
    amax: float | None,
) -> QuantizedTensor:
    start = _scaled(w, gram, scheme, recipe, amax)
    return start if factor is None else gptq.quantize_rows(w, factor, scheme, start=start)


def _scaled(
    w: torch.Tensor, gram: torch.Tensor, scheme: QuantizationScheme, recipe: Recipe, amax: float | None
) -> QuantizedTensor:
    """Rounded to nearest, under the scales that the recipe chooses."""
    if scheme.code_format != "int" or scheme.needs_amax or recipe.algorithm == "rtn":
        return quantize(_array(w), scheme, amax=amax)
    if recipe.clip:
        return awq.clip(w, gram, scheme)
    return search.quantize(_array(w), scheme, _array(gram.diagonal()), shrinks=gptq.SHRINKS)


def joined(pieces: list[QuantizedTensor]) -> QuantizedTensor:
    """One matrix of consecutive rows."""
    first = pieces[0]
    zero_points = [piece.zero_points for piece in pieces if piece.zero_points is not None]
    return replace(
        first,
        codes=np.concatenate([piece.codes for piece in pieces]),
        scales=np.concatenate([piece.scales for piece in pieces]),
        zero_points=np.concatenate(zero_points) if zero_points else None,
    )


def _array(tensor: torch.Tensor) -> Floats:
    return np.ascontiguousarray(tensor.cpu().numpy())
