"""One decoder layer in torch, float32, of one sequence: `model/forward.py` for CPU and CUDA, in the parts between which
the calibrated pass quantizes.

Shape letters: T tokens, D hidden, H heads, K KV heads, E head_dim, F intermediate.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.model.rotary import rotary_tables

Matrices = dict[str, torch.Tensor]
"""A layer's weights by their module, in the words of `MODULES` and `NORMS`."""

MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
MLP_ROWS = 512
NORMS = {"attention": "input_layernorm", "mlp": "post_attention_layernorm"}


def weight_name(layer: int, word: str) -> str:
    """The tensor of a role or a norm: `model.layers.3.mlp.up_proj.weight`."""
    return f"model.layers.{layer}.{MODULES.get(word) or NORMS[word]}.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """What the arithmetic of every layer shares. `cos` and `sin` float32 [T, E / 2], on the device."""

    head_dim: int
    epsilon: float
    cos: torch.Tensor
    sin: torch.Tensor


def shapes(a: LlamaArchitecture, length: int, device: torch.device) -> Shapes:
    cos, sin = (torch.from_numpy(table).to(device) for table in rotary_tables(a.rotary, a.head_dim, length))
    return Shapes(head_dim=a.head_dim, epsilon=a.rms_norm_eps, cos=cos, sin=sin)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467)."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + epsilon) * weight


def attention(h: torch.Tensor, w: Matrices, s: Shapes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(what o_proj is given [T, H * E], keys as cached [K, T, E], values [K, T, E]) of the normed `h` [T, D]."""
    q, k, v = (_heads(functional.linear(h, w[role]), s.head_dim) for role in "qkv")
    q, k = rotate(q, s), rotate(k, s)
    mixed = functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)[0]
    return mixed.transpose(0, 1).reshape(len(h), -1), k, v


def _heads(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    return x.view(len(x), -1, head_dim).transpose(0, 1)


def rotate(x: torch.Tensor, s: Shapes) -> torch.Tensor:
    """Rotary embedding of [heads, T, E]; channel i turns with channel i + E/2."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * s.cos - b * s.sin, b * s.cos + a * s.sin], dim=-1)


def swiglu(h: torch.Tensor, w: Matrices) -> torch.Tensor:
    """What down_proj is given [T, F] (arXiv 2002.05202), of the normed `h` [T, D]. Some rows at a time: F is large."""
    answer = h.new_empty(len(h), len(w["up"]))
    for start in range(0, len(h), MLP_ROWS):
        some = h[start : start + MLP_ROWS]
        gate = functional.silu(functional.linear(some, w["gate"]), inplace=True)
        torch.mul(gate, functional.linear(some, w["up"]), out=answer[start : start + MLP_ROWS])
    return answer


def layer_output(x: torch.Tensor, w: Matrices, s: Shapes) -> torch.Tensor:
    """The whole layer: [T, D] to [T, D]."""
    x = x + functional.linear(attention(rms_norm(x, w["attention"], s.epsilon), w, s)[0], w["o"])
    return x + functional.linear(swiglu(rms_norm(x, w["mlp"], s.epsilon), w), w["down"])
