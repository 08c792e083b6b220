"""The options of a bit budget: what has to share a scheme, what each scheme takes, and what it costs the answer.

    loss of an option = 1/2 sum_n E[g_n^2] (W_n - V_n) G (W_n - V_n)^T / T  + what the rounded inputs cost there

G = X^T X and the gradients come from calibration text (`layerwise.collect_grams`, `sensitivity`), V is the option's
searched rounding; no model runs for an option. Losses are divergences, in nats per token.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeforge.hardware import Target
from edgeforge.model.checkpoint import Checkpoint, TensorRows
from edgeforge.pipeline.walk import lies_on
from edgeforge.planning import EMBEDDING, BuildPlan, block_name, fused_blocks, matrix_bytes, scale_copies
from edgeforge.quantization.quantize import quantize
from edgeforge.quantization.scheme import QuantizationScheme, dequantize, effective_group_size

if TYPE_CHECKING:
    from edgeforge.pipeline.layerwise import Grams
    from edgeforge.pipeline.sensitivity import Sensitivity

BITS, SIZES, SYMMETRIC = (4, 8), (32, 64, 128), (True, False)
ROWS = 1024  # of each matrix, evenly spaced, that an option is judged by
PIECE = 64  # rows kept of those read at once
INT8 = 127
INPUT_SHARE = 0.5
"""Of what the formula says of rounded inputs. Against what onnxruntime 1.32 shows on SmolLM2-135M (0.0030 in groups of
32, 0.0052 in 64) it is 5 times too high, where that of rounded weights (0.0013 at 8 bits) is 2.5 times: both count the
first token, whose activations are huge and matter to nobody."""


Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What has to share a scheme: a fused block, or the embedding. `names`: of its tensors; `sizes`: of the schemes."""

    names: tuple[str, ...]
    schemes: tuple[QuantizationScheme, ...]
    copies: tuple[int, ...]
    sizes: tuple[int, ...]


def items_of(plan: BuildPlan) -> list[Item]:
    """The embedding, then every fused block."""
    a, target = plan.architecture, plan.target
    # a gathered row is whole groups
    whole = (
        s for s in _schemes(plan, EMBEDDING, a.hidden_size) if s.is_float or a.hidden_size % (s.group_size or 1) == 0
    )
    items = [_item((EMBEDDING,), tuple(whole), a.vocab_size, a.hidden_size, lambda scheme: 1)]
    for block in fused_blocks(a):
        names, k = tuple(linear.name for linear in block), block[0].in_features
        copies = partial(_copies, block_name(block[0].role), k, target)
        rows = sum(linear.out_features for linear in block)
        items.append(_item(names, _schemes(plan, names[0], k), rows, k, copies))
    return items


def _copies(block: str, in_features: int, target: Target, scheme: QuantizationScheme) -> int:
    return scale_copies(block, scheme, in_features, target)


def _item(
    names: tuple[str, ...],
    schemes: tuple[QuantizationScheme, ...],
    rows: int,
    columns: int,
    copies_of: Callable[[QuantizationScheme], int],
) -> Item:
    copies = tuple(map(copies_of, schemes))
    sizes = (matrix_bytes(s, rows, columns, scale_copies=c) for s, c in zip(schemes, copies, strict=True))
    return Item(names=names, schemes=schemes, copies=copies, sizes=tuple(sizes))


def losses_of(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    items: Sequence[Item],
    grams: "Grams",
    measured: "Sensitivity",
    progress: Progress,
) -> list[list[float]]:
    """Of each item's schemes, in nats per token."""
    embedding = _embedding_losses(checkpoint, plan, items[0], grams, measured)
    found = [embedding]
    for done, item in enumerate(items[1:], start=1):
        of_names = []
        for name in item.names:
            judged = _Judged.of(checkpoint, plan, name, grams, measured)
            of_names.append([judged.loss(*each) for each in zip(item.schemes, item.copies, strict=True)])
        found.append([sum(losses) for losses in zip(*of_names, strict=True)])
        progress(done, len(items) - 1)
    return found


def _schemes(plan: BuildPlan, name: str, in_features: int) -> tuple[QuantizationScheme, ...]:
    """The plan's own first, which may be the checkpoint's, then every other."""
    sizes = dict.fromkeys(effective_group_size(in_features, size) for size in SIZES)
    fresh = (
        QuantizationScheme(
            name=f"w{bits}a16",
            bits=bits,
            group_size=size,
            symmetric=symmetric,
            scale_dtype=plan.target.activations,
        )
        for bits in BITS
        for size in sizes
        for symmetric in SYMMETRIC
    )
    return tuple(dict.fromkeys((plan.schemes[name], *fresh)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """A linear whose options are compared: evenly spaced rows of it [n, K], E[g^2] of those [n], G / T [K, K]."""

    tensor: TensorRows
    lies_on: Callable[[QuantizationScheme], bool]
    weights: Floats
    importance: Floats
    gram: Floats
    rounds_inputs: bool
    share: float

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, plan: BuildPlan, name: str, grams: "Grams", measured: "Sensitivity"
    ) -> "_Judged":
        tensor, target = checkpoint.tensor(name), plan.target
        step = -(-tensor.shape[0] // ROWS)
        weights = _every(tensor, step)
        return cls(
            tensor=tensor,
            lies_on=partial(lies_on, tensor.grid),
            weights=weights,
            importance=measured.outputs[name][::step],
            gram=grams.gram(name) / np.float32(grams.rows),
            rounds_inputs=target.profile.kind == "cpu" and target.activations == "f32",
            share=tensor.shape[0] / len(weights),
        )

    def loss(self, scheme: QuantizationScheme, copies: int = 1) -> float:
        """Divergence in nats per token."""
        if scheme.is_float:
            return 0.0
        squares = self._of_inputs(scheme, copies) if self.rounds_inputs else np.zeros(len(self.weights), np.float32)
        if not self.lies_on(scheme):
            squares = squares + self._of_weights(scheme)
        return 0.5 * self.share * float(np.dot(squares.astype(np.float64), self.importance))

    def _of_weights(self, scheme: QuantizationScheme) -> Floats:
        """E[e_n^2] of rounded weights: (W - V) G (W - V)^T of each row."""
        change = self.weights - dequantize(quantize(self.weights, scheme, algorithm="search"))
        squares: Floats = np.einsum("nk,nk->n", change @ self.gram, change)
        return squares

    def _of_inputs(self, scheme: QuantizationScheme, copies: int) -> Floats:
        """E[e_n^2] of inputs that onnxruntime's CPU kernels round to int8, in blocks as long as the weights'.

        A step is max |x| / 127 of a block, and the error uniform within it; the mean square of the largest of b normal
        numbers is about 2 ln b times theirs, and never less than that of the loudest channel.
        """
        assert scheme.group_size is not None
        size = scheme.group_size // copies
        variances = self.gram.diagonal()
        starts = np.arange(0, len(variances), size)
        loudest = np.maximum.reduceat(variances, starts)
        mean = np.add.reduceat(variances, starts) / np.diff([*starts, len(variances)])
        squares = np.maximum(loudest, 2 * math.log(size) * mean) * np.float32(INPUT_SHARE / (12 * INT8**2))
        return (np.add.reduceat(np.square(self.weights), starts, axis=1) @ squares).astype(np.float32)


def _every(tensor: TensorRows, step: int) -> Floats:
    """Each `step`-th row, float32, a piece of the matrix in memory at a time."""
    count, piece = tensor.shape[0], PIECE * step
    pieces = [tensor.rows(start, min(start + piece, count))[::step] for start in range(0, count, piece)]
    return np.concatenate(pieces)


def _embedding_losses(
    checkpoint: Checkpoint, plan: BuildPlan, item: Item, grams: "Grams", measured: "Sensitivity"
) -> list[float]:
    """The embedding's errors reach the first layer; where it is the output head too, they also reach the answer."""
    a, tensor = plan.architecture, checkpoint.tensor(EMBEDDING)
    judged = _Judged.of(checkpoint, plan, EMBEDDING, grams, measured) if a.tie_word_embeddings else None
    step = -(-a.vocab_size // (4 * ROWS))
    rows, frequency = _every(tensor, step), measured.frequency[::step]
    shares = frequency / max(float(frequency.sum()), 1e-9)
    losses = []
    for scheme in item.schemes:
        loss = 0.0 if judged is None else judged.loss(scheme)
        if not scheme.is_float and not lies_on(tensor.grid, scheme):
            change = rows - dequantize(quantize(rows, scheme, algorithm="search"))
            loss += 0.5 * float(shares @ (np.square(change) @ measured.hidden))
        losses.append(loss)
    return losses
