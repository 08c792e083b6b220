"""A function-preserving shuffle of a Llama's channels: the same answers from weights in another order.

The demo's weights lie on a 4-bit grid in groups of 32 along each row; quantized again to that grid they lose nothing,
which measures nothing. Shuffled, the weights of a group come from many groups, as those of a model that never was
quantized do. Permuted are the channels of the residual stream, the intermediate channels of each MLP, and the value
channels inside each head; nothing is folded, and a tied embedding stays tied. Queries and keys keep their order, which
rotary embedding gives a meaning to.

Shape letters: D hidden, H heads, K KV heads, E head_dim, F intermediate.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from edgeforge.model.architecture import LlamaArchitecture

Array = NDArray[np.float32]


def shuffled(
    architecture: LlamaArchitecture, tensor: Callable[[str], Array], names: tuple[str, ...], seed: int
) -> Mapping[str, Array]:
    """All tensors in their new order, by name; `tensor` gives the original ones."""
    random = np.random.default_rng(seed)
    residual = random.permutation(architecture.hidden_size)
    found: dict[str, Array] = {}
    for layer in range(architecture.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        inner = random.permutation(architecture.intermediate_size)
        v, o = _value_channels(architecture, random)
        orders = {
            "self_attn.q_proj": (None, residual),
            "self_attn.k_proj": (None, residual),
            "self_attn.v_proj": (v, residual),
            "self_attn.o_proj": (residual, o),
            "mlp.gate_proj": (inner, residual),
            "mlp.up_proj": (inner, residual),
            "mlp.down_proj": (residual, inner),
        }
        for role, (rows, columns) in orders.items():
            name = f"{prefix}.{role}.weight"
            found[name] = _ordered(tensor(name), rows, columns)
    for name in names:
        if name not in found:  # norms [D], the embedding and the head [V, D]
            found[name] = np.ascontiguousarray(tensor(name)[..., residual])
    return {name: found[name] for name in names}


def _value_channels(a: LlamaArchitecture, random: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Orders of the rows of v_proj [K*E] and of the columns of o_proj [H*E]: heads that share values share theirs."""
    inside = np.stack([random.permutation(a.head_dim) for _ in range(a.num_key_value_heads)])  # [K, E]
    of_heads = np.repeat(inside, a.num_attention_heads // a.num_key_value_heads, axis=0)  # [H, E]
    return _across_heads(inside), _across_heads(of_heads)


def _across_heads(inside: NDArray[np.intp]) -> NDArray[np.intp]:
    """[heads, E], each a permutation of 0..E-1, to one permutation [heads * E]."""
    heads, head_dim = inside.shape
    order: NDArray[np.intp] = (inside + head_dim * np.arange(heads)[:, None]).reshape(-1)
    return order


def _ordered(weight: Array, rows: NDArray[np.intp] | None, columns: NDArray[np.intp]) -> Array:
    return np.ascontiguousarray((weight if rows is None else weight[rows])[:, columns])
