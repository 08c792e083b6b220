"""GPTQ (Frantar et al., arXiv 2210.17323): codes chosen column by column, the rest of the row making up for each error.

With G = X^T X, the Hessian of ||X W^T - X V^T||^2 up to a factor, and H = G + damping * mean(diag G) * I (section 3):

    H^-1 = U^T U, U upper triangular (step 3)        column i:  E_i = (W_i - quant(W_i)) / U_ii
                                                                W_j -= E_i U_ij for all j > i

Columns are handled in blocks (step 2): inside one, each column takes the errors of those before it when its turn comes;
behind it, all of a block's errors are one matrix product. U comes from one factorization: H read from its last corner
is L L^T, so that H = R R^T with R upper triangular, and U = R^-1, which is L^-1 read from its last corner.

Orders of the columns. "activation" (the paper's authors' act_order) takes the largest diagonal first; scales are then
fixed beforehand for the groups as they lie in the file ("static groups"), so that no consumer needs an index of groups.
"groups" takes whole groups, most important first, and "natural" the file's order; both may find a group's scales when
they reach it, from weights that already carry the earlier errors (`dynamic_groups`).

An input channel that calibration never met says nothing: its weights are rounded to nearest. (The authors' code makes
them zero, which real text then pays for.) Everything runs on one thread of torch's, whose order of summation is always
the same, and so are the codes; rows, which do not know of each other, are shared out in pieces of one size.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from edgeforge.quantization import search
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor

Order = Literal["natural", "activation", "groups"]

BLOCK_COLUMNS = 128  # the paper's B
ROWS = 1024  # in a piece: steps long enough that two threads seldom wait for the interpreter
DAMPING = 0.01  # the authors' percdamp
SHRINKS = tuple(1.1 - 0.02 * step for step in range(26))
"""Of the ranges that the search for scales tries: it is no more than a tenth of the work here."""


class SingularHessian(ValueError):
    """The inputs repeat one another, beyond what the damping makes up for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """What the inputs alone decide, for all rows of all linears that share them.

    columns    int64 [K]: the order in which columns are handled
    diagonal   float32 [K] of the Gram matrix, in the file's order
    inverse    float32 [K, K]: U turned by half a circle, U_ij = inverse[K - 1 - i, K - 1 - j]
    """

    columns: torch.Tensor
    diagonal: torch.Tensor
    inverse: torch.Tensor

    def block(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows `first` to `last` of U: their own columns, and all behind them."""
        end = len(self.columns)
        rows = self.inverse[end - last : end - first]
        return rows[:, end - last : end - first].flip(0, 1), rows[:, : end - last].flip(0, 1)

    def pivots(self) -> torch.Tensor:
        """float32 [K]: what a squared error of each column costs in the end, the later columns having made up for it
        (1 / U_ii^2; the sum over the columns is the loss, equation 5 of the paper's Optimal Brain Quantization)."""
        answer = torch.empty_like(self.diagonal)
        answer[self.columns] = self.inverse.diagonal().flip(0).square().reciprocal()
        return answer

    def solve(self, a: torch.Tensor) -> torch.Tensor:
        """A H^-1 of A float32 [n, K], the damping included; columns in the file's order."""
        backwards, answer = self.columns.flip(0), torch.empty_like(a)
        answer[:, backwards] = a[:, backwards] @ self.inverse.T @ self.inverse
        return answer


def quantize(
    weights: torch.Tensor,
    gram: torch.Tensor,
    scheme: QuantizationScheme,
    *,
    start: QuantizedTensor | None = None,
    damping: float = DAMPING,
    order: Order = "activation",
    dynamic_groups: bool = False,
) -> QuantizedTensor:
    """Codes for `weights` float32 [N, K] whose inputs have the Gram matrix `gram` float32 [K, K] (same device).

    `start` brings the scales (and is needed for float codes: `quantize.quantize` makes it); without it they are
    searched, weighed by the diagonal. Raises ValueError for NaN and infinity, scales that the order cannot have, and
    what `search.quantize` refuses; SingularHessian where the damping does not make it positive definite.
    """
    if dynamic_groups and (order == "activation" or start is not None):
        raise ValueError("dynamic groups find their scales group by group: not in activation order, nor given ones")
    factor = factorize(gram, scheme, damping=damping, order=order)
    return quantize_rows(weights, factor, scheme, start=start, dynamic_groups=dynamic_groups)


def factorize(
    gram: torch.Tensor, scheme: QuantizationScheme, *, damping: float = DAMPING, order: Order = "activation"
) -> Factor:
    """The part of the work that rows share. ValueError for NaN and infinity, SingularHessian."""
    diagonal = _checked_diagonal(gram)
    columns = _ordered(diagonal, _group_sizes(scheme, len(gram)), order)
    return Factor(columns=columns, diagonal=diagonal, inverse=_inverse(gram, diagonal, columns, damping))


def quantize_rows(
    weights: torch.Tensor,
    factor: Factor,
    scheme: QuantizationScheme,
    *,
    start: QuantizedTensor | None = None,
    dynamic_groups: bool = False,
) -> QuantizedTensor:
    """The rest, for any rows float32 [N, K]; the arguments are `quantize`'s."""
    sizes, columns = _group_sizes(scheme, weights.shape[1]), factor.columns
    if start is None and not dynamic_groups:
        start = search.quantize(_array(weights), scheme, _array(factor.diagonal), shrinks=SHRINKS)
    grid = _Grid.empty(scheme, len(sizes), weights) if start is None else _Grid.of(start, weights.device)
    group_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[columns.cpu()].tolist()
    codes = torch.empty_like(weights)

    def choose(rows: slice) -> None:
        w = weights[rows].T[columns].contiguous()
        codes[rows, columns] = _choose(w, factor, grid.of_rows(rows), group_of).T

    with _one_thread() as threads, ThreadPoolExecutor(threads) as pool:
        pieces = range(0, len(weights), len(weights) if weights.is_cuda else ROWS)
        list(pool.map(choose, (slice(first, first + pieces.step) for first in pieces)))
    return grid.tensor(_array(codes), start)


def _choose(w: torch.Tensor, factor: Factor, grid: "_Grid", group_of: list[int]) -> torch.Tensor:
    """Codes [K, n] of the weights `w` [K, n] of n rows, which are overwritten; a column of the matrix is a row here."""
    codes, importance = torch.empty_like(w), factor.diagonal[factor.columns]
    for first, last in _blocks(group_of, whole_groups=grid.is_dynamic):
        errors, since = torch.empty_like(w[first:last]), 0
        within, behind = factor.block(first, last)
        pivots = within.diagonal().tolist()
        for i in range(first, last):
            group, at = group_of[i], i - first
            if grid.is_dynamic and (i == 0 or group_of[i - 1] != group):
                stop = i + group_of.count(group)
                w[i:stop].addmm_(within[:at, at : stop - first].T, errors[:at], alpha=-1)
                grid.find(group, w[i:stop], importance[i:stop])
                since = at
            w[i].addmv_(errors[since:at].T, within[since:at, at], alpha=-1)
            codes[i], rounded = grid.nearest(w[i], group)
            errors[at] = (w[i] - rounded) / pivots[at]
        w[last:].addmm_(behind.T, errors, alpha=-1)
    return codes


def _blocks(group_of: list[int], *, whole_groups: bool) -> Iterator[tuple[int, int]]:
    """Ranges of about BLOCK_COLUMNS columns; `whole_groups`: a scale still to be found needs its group in one block."""
    total, first = len(group_of), 0
    while first < total:
        last = min(first + BLOCK_COLUMNS, total)
        while whole_groups and last < total and group_of[last] == group_of[last - 1]:
            last += 1
        yield first, last
        first = last


def _inverse(gram: torch.Tensor, diagonal: torch.Tensor, columns: torch.Tensor, damping: float) -> torch.Tensor:
    """`Factor.inverse`: the inverse of H's Cholesky factor, columns from the last to the first.

    Two matrices of H's size at once, besides H itself.
    """
    backwards = columns.flip(0)
    hessian = gram[backwards[:, None], backwards]
    met = diagonal > 0
    floor = float(diagonal[met].mean()) if met.any() else 1.0
    hessian.diagonal().add_(damping * floor).add_(floor * (~met[backwards]).to(gram.dtype))
    with _one_thread():
        lower, failed = torch.linalg.cholesky_ex(hessian)
        del hessian
        if failed or not torch.isfinite(lower.diagonal()).all():
            raise SingularHessian(
                f"the Hessian is singular with damping {damping}: its inputs repeat one another; raise the damping"
            )
        identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device).T  # as LAPACK wants it: in place
        inverse: torch.Tensor = torch.linalg.solve_triangular(lower, identity, upper=False, out=identity)
    return inverse


@contextmanager
def _one_thread() -> Iterator[None]:
    """LAPACK splits its sums by the number of threads, and other sums may mean other codes."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _checked_diagonal(gram: torch.Tensor) -> torch.Tensor:
    diagonal = gram.diagonal().clone()
    if not (torch.isfinite(diagonal).all() and torch.isfinite(gram.sum())):
        raise ValueError("the Gram matrix of the inputs contains NaN or infinity")
    return diagonal


def _group_sizes(scheme: QuantizationScheme, in_features: int) -> list[int]:
    size, groups = scheme.group_size or in_features, scheme.groups(in_features)
    return [min(size, in_features - group * size) for group in range(groups)]


def _ordered(diagonal: torch.Tensor, sizes: list[int], order: Order) -> torch.Tensor:
    """The columns as they are handled, int64 [K]; those of equal rank in the file's order."""
    if order == "natural":
        return torch.arange(len(diagonal), device=diagonal.device)
    if order == "activation":
        return torch.argsort(diagonal, descending=True, stable=True)
    parts = torch.split(diagonal, sizes)
    within = [part.argsort(descending=True, stable=True) for part in parts]
    means = torch.stack([part.mean() for part in parts])
    starts = np.cumsum([0, *sizes])
    return torch.cat([within[g] + int(starts[g]) for g in means.argsort(descending=True, stable=True).tolist()])


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.cpu().numpy())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """The numbers that codes can stand for: float32 scales [G, N] and zero points [G, N] (0: symmetric), on the device.

    `is_dynamic` where the scales are found on the way.
    """

    scheme: QuantizationScheme
    scales: torch.Tensor
    zeros: torch.Tensor
    is_dynamic: bool

    @classmethod
    def of(cls, start: QuantizedTensor, device: torch.device) -> "_Grid":
        scales = start.scales
        if start.scheme.code_format == "e2m1" and start.tensor_scale is not None:
            scales = scales * start.tensor_scale
        zeros = np.zeros_like(scales) if start.zero_points is None else start.zero_points.astype(np.float32)
        there = [torch.from_numpy(np.ascontiguousarray(array.T)).to(device) for array in (scales, zeros)]
        return cls(scheme=start.scheme, scales=there[0], zeros=there[1], is_dynamic=False)

    def of_rows(self, rows: slice) -> "_Grid":
        """The same numbers in memory, of some rows."""
        return replace(self, scales=self.scales[:, rows], zeros=self.zeros[:, rows])

    @classmethod
    def empty(cls, scheme: QuantizationScheme, groups: int, weights: torch.Tensor) -> "_Grid":
        scales, zeros = weights.new_zeros(2, groups, len(weights))
        return cls(scheme=scheme, scales=scales, zeros=zeros, is_dynamic=True)

    def find(self, group: int, w: torch.Tensor, importance: torch.Tensor) -> None:
        """Search the scales of one group, whose weights [size, N] carry the errors of all before."""
        found = search.quantize(_array(w.T), self.scheme, _array(importance), shrinks=SHRINKS)
        self.scales[group] = torch.from_numpy(found.scales[:, 0])
        if found.zero_points is not None:
            self.zeros[group] = torch.from_numpy(found.zero_points[:, 0].astype(np.float32))

    def nearest(self, w: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes of one column's weights [N], as float32, and the weights that they stand for."""
        scale = self.scales[group]
        steps = w / torch.where(scale == 0, torch.inf, scale)
        if self.scheme.code_format == "e4m3":
            codes = steps.clamp(-448, 448).to(torch.float8_e4m3fn).float()
        elif self.scheme.code_format == "e2m1":
            codes = _e2m1(steps)
        else:
            half = 2.0 ** (self.scheme.bits - 1)
            codes = steps.round_().add_(self.zeros[group]).clamp_(-half, half - 1)
            return codes, (codes - self.zeros[group]) * scale
        return codes, codes * scale

    def tensor(self, codes: NDArray[np.float32], start: QuantizedTensor | None) -> QuantizedTensor:
        """Codes [N, K] with the scales, as the neutral tensor."""
        cast = codes.astype(_CODE_TYPES[self.scheme.code_format])
        if start is not None:
            return replace(start, codes=cast)
        zeros = None if self.scheme.symmetric else _array(self.zeros.T).astype(np.int8)
        return QuantizedTensor(scheme=self.scheme, codes=cast, scales=_array(self.scales.T), zero_points=zeros)


_CODE_TYPES = {"int": np.int8, "e4m3": ml_dtypes.float8_e4m3fn, "e2m1": ml_dtypes.float4_e2m1fn}


def _e2m1(steps: torch.Tensor) -> torch.Tensor:
    """To nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6, ties to the even code: in halves, in ones, or in twos."""
    unit = torch.where(steps.abs() < 2, 0.5, torch.where(steps.abs() < 4, 1.0, 2.0))
    return (steps / unit).round_().mul_(unit).clamp_(-6, 6)
