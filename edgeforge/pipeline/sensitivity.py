"""What an error in each output of each linear costs the model's answer: one backward pass, a layer in memory at a time.

To second order the divergence that small changes e of a linear's outputs y cause is

    KL(p || p') = 1/2 E[(g . e)^2]        g = d -log p(z) / dy,   z drawn from p

with the Fisher information as the matrix between (z is the model's own answer, not the text's next token). Errors of
different outputs and tokens are taken to be independent, so that the mean square of each output's gradient is all that
is kept: 1/2 sum_n E[g_n^2] E[e_n^2]. For the output head the information is known: p_n (1 - p_n).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgeforge.model.checkpoint import Checkpoint
from edgeforge.model.forward import embed
from edgeforge.pipeline.layerwise.decoder import Matrices, Shapes, rms_norm, rotate, shapes, weight_name
from edgeforge.pipeline.layerwise.passes import head_name, load_layer
from edgeforge.pipeline.layerwise.workers import Workers, workers
from edgeforge.planning import EMBEDDING

Floats = NDArray[np.float32]
ROLES = ("q", "k", "v", "o", "gate", "up", "down")
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """E[g^2] per token: `outputs` float32 [N] by a linear's name (the head's too), `hidden` [D] of the embedded token.

    `frequency` float32 [V]: each token's share of the text.
    """

    outputs: Mapping[str, Floats]
    hidden: Floats
    frequency: Floats


def measure(
    checkpoint: Checkpoint, ids: NDArray[np.int64], *, device: str, threads: int, progress: Callable[[int, int], None]
) -> Sensitivity:
    """Over sequences `ids` [B, T]; all their hidden states before every layer are in memory, float32."""
    place, layers = torch.device(device), checkpoint.architecture.num_hidden_layers
    with workers(threads if device == "cpu" else 1) as team:
        s = shapes(checkpoint.architecture, ids.shape[1], place)
        states = [[torch.from_numpy(embed(checkpoint.tensor(EMBEDDING), row)).to(place) for row in ids]]
        for layer in range(layers):
            w = load_layer(checkpoint, layer, place)
            states.append(team.map(partial(_forward, w=w, s=s), states[-1]))
            progress(layer + 1, 2 * layers)
        outputs, flowing = _head(checkpoint, states.pop(), team, s)
        for layer in reversed(range(layers)):
            w = load_layer(checkpoint, layer, place)
            pairs = list(zip(states.pop(), flowing, strict=True))
            found = team.map(partial(_backward, w=w, s=s), pairs)
            flowing = [gradient for gradient, _ in found]
            for role in ROLES:
                outputs[weight_name(layer, role)] = _mean([squares[role] for _, squares in found])
            progress(2 * layers - layer, 2 * layers)
    counts = np.bincount(ids.ravel(), minlength=checkpoint.architecture.vocab_size)
    return Sensitivity(
        outputs=outputs,
        hidden=_mean([gradient.square().mean(dim=0) for gradient in flowing]),
        frequency=(counts / ids.size).astype(np.float32),
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


def _forward(x: torch.Tensor, *, w: Matrices, s: Shapes) -> torch.Tensor:
    return _layer(x, w, s)[0]


def _backward(
    pair: tuple[torch.Tensor, torch.Tensor], *, w: Matrices, s: Shapes
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of (the layer's input, its output's gradient): the input's, and the mean squares [N] of its linears' outputs'."""
    x, flowing = pair
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        output, y = _layer(x, w, s)
        found = torch.autograd.grad(output, [x, *(y[role] for role in ROLES)], flowing)
    return found[0], {role: gradient.square().mean(dim=0) for role, gradient in zip(ROLES, found[1:], strict=True)}


def _head(
    checkpoint: Checkpoint, states: list[torch.Tensor], team: Workers, s: Shapes
) -> tuple[dict[str, Floats], list[torch.Tensor]]:
    """The head's own information by its name, and the gradients of the last hidden states."""
    place, name = states[0].device, head_name(checkpoint)
    norm = torch.from_numpy(checkpoint.tensor("model.norm.weight").rows(0, states[0].shape[1])).to(place)
    tensor = checkpoint.tensor(name)
    head = torch.from_numpy(tensor.rows(0, tensor.shape[0])).to(place)

    def backward(numbered: tuple[int, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        number, x = numbered
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            normed = rms_norm(x, norm, s.epsilon)
        p = functional.softmax(functional.linear(normed.detach(), head), dim=-1)
        draw = torch.multinomial(p.cpu(), 1, generator=torch.Generator().manual_seed(SEED + number)).to(place)
        information = (p * (1 - p)).mean(dim=0)
        gradient = functional.linear(p.scatter_add_(1, draw, p.new_full(draw.shape, -1)), head.T)
        return torch.autograd.grad(normed, x, gradient)[0], information

    found = team.map(backward, list(enumerate(states)))
    return {name: _mean([information for _, information in found])}, [gradient for gradient, _ in found]
