"""What an error in each output of each linear costs the model's answer: one backward pass, a layer in memory at a time.

To second order the divergence that small changes e of a linear's outputs y cause is

    KL(p || p') = 1/2 E[(g . e)^2]        g = d -log p(z) / dy,   z drawn from p

with the Fisher information as the matrix between (z is the model's own answer, not the text's next token). Errors of
different outputs and tokens are taken to be independent, so that the mean square of each output's gradient is all that
is kept: 1/2 sum_n E[g_n^2] E[e_n^2]. For the output head the information is known: p_n (1 - p_n).

Tokens are not alike either. Everything attends to a sequence's first token (the attention sink, arXiv 2309.17453), and
so an error in its values matters as much as in hundreds of other tokens' together.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgeforge.model.checkpoint import Checkpoint, TensorRows
from edgeforge.model.forward import embed
from edgeforge.pipeline.layerwise.decoder import Matrices, Shapes, rms_norm, rotate, shapes, weight_name
from edgeforge.pipeline.layerwise.hidden import HiddenStates
from edgeforge.pipeline.layerwise.passes import head_name, load_layer
from edgeforge.pipeline.layerwise.workers import Workers, products_in_bfloat16, workers
from edgeforge.planning import EMBEDDING

Floats = NDArray[np.float32]
ROLES = ("q", "k", "v", "o", "gate", "up", "down")
SEED = 0
HEAD_ROWS = 16384  # of the output head that are in memory together


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """E[g^2] per token: `outputs` float32 [N] by a linear's name (the head's too), `hidden` [D] of the embedded token.

    `frequency` float32 [V]: each token's share of the text. `first`: by a linear's name, |g|^2 at a sequence's first
    token in terms of the mean of all others.
    """

    outputs: Mapping[str, Floats]
    hidden: Floats
    frequency: Floats
    first: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Squares:
    """Of the gradient [T, N] of a linear's outputs: mean squares [N] over tokens, and |g|^2 of the first token and of
    the mean of the others."""

    outputs: torch.Tensor
    first: float
    others: float

    @classmethod
    def of(cls, gradient: torch.Tensor) -> "_Squares":
        squares = gradient.square()
        tokens = squares.sum(dim=1)
        return cls(outputs=squares.mean(dim=0), first=float(tokens[0]), others=float(tokens[1:].mean()))


def measure(
    checkpoint: Checkpoint,
    ids: NDArray[np.int64],
    folder: Path,
    *,
    device: str,
    threads: int,
    progress: Callable[[int, int], None],
) -> Sensitivity:
    """Over sequences `ids` [B, T], T > 1. Their hidden states before every layer are files in `folder`, a new folder
    that is gone afterwards; in memory are a layer and the gradients [B, T, D]. FloatingPointError where a logit is
    not finite."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _measure(checkpoint, ids, folder, device, threads, progress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(
    checkpoint: Checkpoint,
    ids: NDArray[np.int64],
    folder: Path,
    device: str,
    threads: int,
    progress: Callable[[int, int], None],
) -> Sensitivity:
    place, a = torch.device(device), checkpoint.architecture
    layers, numbers = a.num_hidden_layers, range(len(ids))
    states = [HiddenStates(folder / f"{layer}.f32", (*ids.shape, a.hidden_size)) for layer in range(layers + 1)]
    first: dict[str, float] = {}
    outputs: dict[str, Floats] = {}
    with workers(threads if device == "cpu" else 1) as team, products_in_bfloat16():
        s = shapes(a, ids.shape[1], place)
        states[0].create()
        for number, row in enumerate(ids):
            states[0].write(number, torch.from_numpy(embed(checkpoint.tensor(EMBEDDING), row)))
        for layer in range(layers):
            w = load_layer(checkpoint, layer, place)
            states[layer + 1].create()
            team.map(partial(_forward, before=states[layer], after=states[layer + 1], w=w, s=s), numbers)
            progress(layer + 1, 2 * layers)
        outputs[head_name(checkpoint)], flowing = _head(checkpoint, states[layers], team, s, place)
        for layer in reversed(range(layers)):
            w = load_layer(checkpoint, layer, place)
            pairs = list(enumerate(flowing))
            found = team.map(partial(_backward, before=states[layer], w=w, s=s), pairs)
            flowing = [gradient for gradient, _ in found]
            for role in ROLES:
                squares = [each[role] for _, each in found]
                outputs[weight_name(layer, role)] = _mean([each.outputs for each in squares])
                others = sum(each.others for each in squares)
                first[weight_name(layer, role)] = sum(each.first for each in squares) / others if others else 1.0
            states[layer + 1].path.unlink()
            progress(2 * layers - layer, 2 * layers)
    counts = np.bincount(ids.ravel(), minlength=a.vocab_size)
    return Sensitivity(
        outputs=outputs,
        hidden=_mean([gradient.square().mean(dim=0) for gradient in flowing]),
        frequency=(counts / ids.size).astype(np.float32),
        first=first,
    )


def _mean(parts: list[torch.Tensor]) -> Floats:
    return np.asarray(torch.stack(parts).mean(dim=0).cpu().numpy(), np.float32)


def _layer(x: torch.Tensor, w: Matrices, s: Shapes) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The layer's output [T, D], and those of its linears [T, N] by role. Nothing is computed in place."""
    h = rms_norm(x, w["attention"], s.epsilon)
    y = {role: functional.linear(h, w[role]) for role in "qkv"}
    q, k, v = (y[role].view(len(x), -1, s.head_dim).transpose(0, 1) for role in "qkv")
    mixed = functional.scaled_dot_product_attention(
        rotate(q, s)[None], rotate(k, s)[None], v[None], is_causal=True, enable_gqa=True
    )[0]
    y["o"] = functional.linear(mixed.transpose(0, 1).reshape(len(x), -1), w["o"])
    x = x + y["o"]
    h = rms_norm(x, w["mlp"], s.epsilon)
    y["gate"], y["up"] = functional.linear(h, w["gate"]), functional.linear(h, w["up"])
    y["down"] = functional.linear(functional.silu(y["gate"]) * y["up"], w["down"])
    return x + y["down"], y


def _forward(number: int, *, before: HiddenStates, after: HiddenStates, w: Matrices, s: Shapes) -> None:
    after.write(number, _layer(before.read(number).to(s.cos.device), w, s)[0])


def _backward(
    numbered: tuple[int, torch.Tensor], *, before: HiddenStates, w: Matrices, s: Shapes
) -> tuple[torch.Tensor, dict[str, _Squares]]:
    """Of (a sequence's number, the gradient of the layer's output): that of its input, and of its linears' outputs."""
    number, flowing = numbered
    with torch.enable_grad():
        x = before.read(number).to(s.cos.device).requires_grad_()
        output, y = _layer(x, w, s)
        found = torch.autograd.grad(output, [x, *(y[role] for role in ROLES)], flowing)
    return found[0], {role: _Squares.of(gradient) for role, gradient in zip(ROLES, found[1:], strict=True)}


def _head(
    checkpoint: Checkpoint, states: HiddenStates, team: Workers, s: Shapes, place: torch.device
) -> tuple[Floats, list[torch.Tensor]]:
    """The head's own information [V], and the gradients of the last hidden states."""
    norm = torch.from_numpy(checkpoint.tensor("model.norm.weight").rows(0, states.shape[2])).to(place)
    tensor = checkpoint.tensor(head_name(checkpoint))
    information, gradients = [], []
    for number in range(states.shape[0]):
        with torch.enable_grad():
            x = states.read(number).to(place).requires_grad_()
            normed = rms_norm(x, norm, s.epsilon)
        h = normed.detach()

        def product(rows: Callable[[], torch.Tensor], h: torch.Tensor = h) -> torch.Tensor:
            return functional.linear(h, rows())

        logits = torch.cat(team.map(product, list(_pieces(tensor, place))), dim=1)
        if not torch.isfinite(logits).all():
            raise FloatingPointError("logits are not finite")
        p = logits.sub_(logits.amax(dim=1, keepdim=True)).exp_()
        p /= p.sum(dim=1, keepdim=True)
        draw = torch.multinomial(p.cpu(), 1, generator=torch.Generator().manual_seed(SEED + number)).to(place)
        information.append(torch.cat([(some * (1 - some)).mean(dim=0) for some in torch.split(p, HEAD_ROWS, dim=1)]))
        p.scatter_add_(1, draw, p.new_full(draw.shape, -1))
        flowing = torch.zeros_like(h)
        for columns, rows in zip(torch.split(p, HEAD_ROWS, dim=1), _pieces(tensor, place), strict=True):
            flowing.addmm_(columns, rows())
        gradients.append(torch.autograd.grad(normed, x, flowing)[0])
    return _mean(information), gradients


def _pieces(tensor: TensorRows, place: torch.device) -> Iterator[Callable[[], torch.Tensor]]:
    """Functions that read HEAD_ROWS rows each."""

    def read(start: int) -> torch.Tensor:
        return torch.from_numpy(tensor.rows(start, min(start + HEAD_ROWS, tensor.shape[0]))).to(place)

    return (partial(read, start) for start in range(0, tensor.shape[0], HEAD_ROWS))
