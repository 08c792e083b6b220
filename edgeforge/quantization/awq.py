"""AWQ (Lin et al., arXiv 2306.00978): channels with loud inputs are scaled up before rounding, and their inputs down.

    V = quant(W diag(s)) diag(s)^-1        s = x^a / w^b, the best of a grid        (section 3.2, eq. 4 and 5)

x is the mean magnitude of each input channel and w that of its weights; b = 0 is the paper's, b = 1 - a what its
authors' code calls duo scaling. All linears that share the input share s. The loss is that of the layer's outputs, and
the Gram matrix G = X^T X knows it without a forward pass:

    L(s) = sum over the linears of tr((W - V) G (W - V)^T)

Kernels that round the inputs too, to int8 in blocks (`rounded_inputs`), are quieter where a block's channels are about
as loud as one another, which s makes them: that loss is added. (SmoothQuant, arXiv 2211.10438, does it for that alone.)

Clipping (section 3.2 of the paper's code, auto_clip): each group's range is shrunk to where its own block of G, all
correlations within the group included, leaves the least error; then its scale is refitted to its codes by least
squares. What calibration stores as `pre_quant_scale` is 1 / s.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgeforge.quantization.arithmetic import SMALLEST_SCALE, as_stored
from edgeforge.quantization.loss import output_loss
from edgeforge.quantization.rtn import round_to_grid, scales_of, zero_points_of
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor

STEPS = 20  # of a, in the authors' code
EXPONENTS = tuple(
    (step / STEPS, duo * (1 - step / STEPS)) for duo in (0, 1) for step in range(STEPS) if step or not duo
)
"""(a, b) of the grid; the first, (0, 0), changes nothing."""
INT8 = 127
SHRINKS = tuple(1.06 - 0.02 * step for step in range(24))
ROWS = 512  # of each matrix, evenly spaced, that the grid of exponents is judged by


def search_scales(
    weights: Sequence[torch.Tensor],
    gram: torch.Tensor,
    magnitudes: torch.Tensor,
    scheme: QuantizationScheme,
    *,
    exponents: Sequence[tuple[float, float]] = EXPONENTS,
    slots: torch.Tensor | None = None,
    rows: int = ROWS,
    rounded_inputs: "RoundedInputs | None" = None,
    each: Callable[[Callable[[int], float], Sequence[int]], Iterable[float]] = map,
) -> NDArray[np.float32]:
    """s float32 [K], by which to multiply the columns of `weights` (each float32 [N, K], of linears with one input).

    `magnitudes` float32 [K] is the mean |x| of each channel. `slots` int64 [K] makes channels of the same number share
    their s (those that one row of the preceding linear feeds). `rounded_inputs`: what the kernel does to them. `each`:
    a `map`, which may share the candidates out to threads. Raises ValueError for what is NaN or infinite.
    """
    if not all(torch.isfinite(tensor).all() for tensor in (gram, magnitudes, *weights)):
        raise ValueError("the inputs' Gram matrix, their magnitudes or the weights contain NaN or infinity")
    pairs = [(w[:: -(-len(w) // rows)].contiguous(), w) for w in weights]
    loud = _shared(magnitudes, slots)
    heavy = _shared(torch.stack([w.abs().sum(dim=0) for w in weights]).sum(dim=0) / sum(map(len, weights)), slots)
    squares = torch.stack([w.square().sum(dim=0) for w in weights]).sum(dim=0)

    def scales(candidate: int) -> torch.Tensor:
        a, b = exponents[candidate]
        return _normalized(loud.pow(a) / heavy.pow(b))

    def loss(candidate: int) -> float:
        s = scales(candidate)
        found = sum(output_loss(w, _rounded(w * s, scheme) / s, gram) * len(whole) / len(w) for w, whole in pairs)
        return found if rounded_inputs is None else found + rounded_inputs.loss(squares * s.square(), magnitudes / s)

    losses = list(each(loss, range(len(exponents))))
    best = scales(min(range(len(losses)), key=lambda candidate: (not losses[candidate] >= 0, losses[candidate])))
    return np.asarray(best.cpu().numpy(), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedInputs:
    """Inputs that a kernel rounds to int8 in blocks of `block` channels, in a text of `tokens`."""

    block: int
    tokens: int

    def loss(self, squares: torch.Tensor, magnitudes: torch.Tensor) -> float:
        """What that costs the outputs of linears whose columns have the sums of squares `squares` [K], as L counts it.

        A step is max |x| / 127 of a block, and the error uniform within it. Channels are taken to be normal, with the
        variance that their mean magnitude has; the mean square of the largest of b of them is about 2 ln b variances,
        and never less than the loudest one's.
        """
        variances = magnitudes.square() * (math.pi / 2)
        short = -len(variances) % self.block
        blocks = torch.nn.functional.pad(variances, (0, short)).view(-1, self.block)
        largest = torch.maximum(blocks.amax(dim=1), 2 * math.log(self.block) * blocks.mean(dim=1))
        below = torch.nn.functional.pad(squares, (0, short)).view(-1, self.block).sum(dim=1)
        return self.tokens * float(torch.dot(below, largest)) / (12 * INT8**2)


def clip(weights: torch.Tensor, gram: torch.Tensor, scheme: QuantizationScheme) -> QuantizedTensor:
    """Round `weights` float32 [N, K] within the ranges that cost each group's share of the output least.

    `gram` float32 [K, K], on the same device. Raises ValueError for what is NaN or infinite, and for a scale that its
    type cannot hold.
    """
    w, blocks = _grouped(weights, scheme), _gram_blocks(gram, scheme)
    best = _range_grid(w, 1.0, scheme)
    least = _errors(w, blocks, best, scheme)
    for shrink in SHRINKS:
        best, least = _better(best, least, _range_grid(w, shrink, scheme), w, blocks, scheme)
    c = _codes(w, best, scheme)
    weighed = torch.matmul(c, blocks)
    below = (weighed * c).sum(dim=2)
    fitting = torch.where(below > 0, (weighed * w).sum(dim=2) / below, best[0])
    fitted = torch.stack([_from_array(as_stored(_array(fitting), scheme.scale_dtype), w), best[1]])
    best, least = _better(best, least, fitted, w, blocks, scheme)
    scales, zeros = (_array(values.T) for values in best)
    return round_to_grid(_array(weights), scheme, scales, None if scheme.symmetric else zeros.astype(np.int8))


def _normalized(s: torch.Tensor) -> torch.Tensor:
    """Around 1; channels that are never met, or never used, stay as they are."""
    usable = torch.isfinite(s) & (s > 0)
    if not usable.any():
        return torch.ones_like(s)
    middle = (s[usable].max() * s[usable].min()).sqrt()
    return torch.where(usable, s / middle, torch.ones_like(s))


def _shared(values: torch.Tensor, slots: torch.Tensor | None) -> torch.Tensor:
    """The mean over the channels of each slot, at each of them."""
    if slots is None:
        return values
    count = int(slots.max()) + 1
    sums = values.new_zeros(count).index_add_(0, slots, values)
    return (sums / torch.bincount(slots, minlength=count))[slots]


def _rounded(w: torch.Tensor, scheme: QuantizationScheme) -> torch.Tensor:
    """The values [N, K] of round-to-nearest, on the weights' device."""
    grouped = _grouped(w, scheme)
    grid = _range_grid(grouped, 1.0, scheme)
    values = _codes(grouped, grid, scheme).mul_(grid[0][:, :, None])
    return values.transpose(0, 1).reshape(len(w), -1)[:, : w.shape[1]]


def _grouped(w: torch.Tensor, scheme: QuantizationScheme) -> torch.Tensor:
    """[N, K] to [G, N, size], with zeros after the last columns."""
    size = scheme.group_size or w.shape[1]
    padded = torch.nn.functional.pad(w, (0, -w.shape[1] % size))
    return padded.reshape(len(w), -1, size).transpose(0, 1).contiguous()


def _gram_blocks(gram: torch.Tensor, scheme: QuantizationScheme) -> torch.Tensor:
    """The groups' own blocks on the diagonal of G, [G, size, size]."""
    size = scheme.group_size or len(gram)
    short = -len(gram) % size
    padded = torch.nn.functional.pad(gram, (0, short, 0, short))
    return torch.stack([padded[i : i + size, i : i + size] for i in range(0, len(padded), size)])


def _range_grid(grouped: torch.Tensor, shrink: float, scheme: QuantizationScheme) -> torch.Tensor:
    """Scales and zero points, float32 [2, G, N], of the groups' own ranges, shrunk; by rtn.py's arithmetic."""
    low = _array(grouped.amin(dim=2).clamp_(max=0)) * np.float32(shrink)
    high = _array(grouped.amax(dim=2).clamp_(min=0)) * np.float32(shrink)
    scales = scales_of(low, high, scheme)
    zeros = np.zeros_like(low) if scheme.symmetric else zero_points_of(low, scales, scheme.bits).astype(np.float32)
    return torch.stack([_from_array(scales, grouped), _from_array(zeros, grouped)])


def _codes(grouped: torch.Tensor, grid: torch.Tensor, scheme: QuantizationScheme) -> torch.Tensor:
    """q - z of every weight, float32 [G, N, size]."""
    scales, zeros = grid[:, :, :, None]
    half = 2.0 ** (scheme.bits - 1)
    steps = (grouped / torch.where(scales == 0, torch.inf, scales)).round_()
    return torch.maximum(torch.minimum(steps, half - 1 - zeros), -half - zeros)


def _errors(
    grouped: torch.Tensor, blocks: torch.Tensor, grid: torch.Tensor, scheme: QuantizationScheme
) -> torch.Tensor:
    """tr(d G d^T) of each group of each row under a grid, d its rounding error; float32 [G, N]."""
    change = _codes(grouped, grid, scheme).mul_(grid[0][:, :, None]).sub_(grouped)
    return torch.matmul(change, blocks).mul_(change).sum(dim=2)


def _better(
    best: torch.Tensor,
    least: torch.Tensor,
    other: torch.Tensor,
    grouped: torch.Tensor,
    blocks: torch.Tensor,
    scheme: QuantizationScheme,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of two grids the one with the smaller error, group by group, and that error."""
    errors = _errors(grouped, blocks, other, scheme)
    wins = (errors < least) & (other[0] >= float(SMALLEST_SCALE))
    return torch.where(wins, other, best), torch.where(wins, errors, least)


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.cpu().numpy())


def _from_array(array: NDArray[np.float32], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(array).to(like.device)
