"""The float32 forward pass of a Llama decoder in numpy, written like the paper (arXiv 2302.13971): the reference.

Shape letters: B sequences, T tokens, D hidden, H heads, K KV heads, R = H / K heads that share one, E head_dim,
V vocabulary.
One layer's weights are in memory at a time, so that a model of any size runs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.model.checkpoint import TensorRows, Weights
from edgeforge.model.rotary import rotary_tables

Array = NDArray[np.float32]

BLOCK_BYTES = 64 << 20  # of embedding or lm_head rows in memory at a time
QUERY_ROWS = 256  # queries that meet their keys in one matrix product


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One decoder layer; matrices are [out, in] as in the checkpoint."""

    input_layernorm: Array
    q: Array
    k: Array
    v: Array
    o: Array
    post_attention_layernorm: Array
    gate: Array
    up: Array
    down: Array


def read_layer(checkpoint: Weights, layer: int) -> LayerWeights:
    """All weights of one layer, float32."""
    prefix = f"model.layers.{layer}"

    def whole(name: str) -> Array:
        tensor = checkpoint.tensor(f"{prefix}.{name}.weight")
        return tensor.rows(0, tensor.shape[0])

    return LayerWeights(
        input_layernorm=whole("input_layernorm"),
        q=whole("self_attn.q_proj"),
        k=whole("self_attn.k_proj"),
        v=whole("self_attn.v_proj"),
        o=whole("self_attn.o_proj"),
        post_attention_layernorm=whole("post_attention_layernorm"),
        gate=whole("mlp.gate_proj"),
        up=whole("mlp.up_proj"),
        down=whole("mlp.down_proj"),
    )


def forward(checkpoint: Weights, ids: NDArray[np.int64]) -> Array:
    """Logits, float32 [T, V], of one sequence of token ids [T]."""
    return lm_head_logits(checkpoint, final_hidden(checkpoint, ids[None])[0])


def final_hidden(
    checkpoint: Weights, ids: NDArray[np.int64], *, progress: Callable[[int, int], None] | None = None
) -> Array:
    """What lm_head sees, float32 [B, T, D], of B sequences of token ids [B, T]; each attends to itself alone.

    `progress` is called with (layers done, layers). Raises ValueError for an id outside the vocabulary.
    """
    architecture = checkpoint.architecture
    batch, length = ids.shape
    cos, sin = rotary_tables(architecture.rotary, architecture.head_dim, length)
    x = embed(checkpoint.tensor("model.embed_tokens.weight"), ids.reshape(-1))
    for layer in range(architecture.num_hidden_layers):
        decoder_layer(architecture, read_layer(checkpoint, layer), x, batch, cos, sin)
        if progress is not None:
            progress(layer + 1, architecture.num_hidden_layers)
    norm = checkpoint.tensor("model.norm.weight").rows(0, architecture.hidden_size)
    return rms_norm(x, norm, architecture.rms_norm_eps).reshape(batch, length, -1)


def decoder_layer(
    architecture: LlamaArchitecture, weights: LayerWeights, x: Array, batch: int, cos: Array, sin: Array
) -> None:
    """Add one layer's attention and MLP to the residual stream `x` [B*T, D], in place."""
    eps = architecture.rms_norm_eps
    h = rms_norm(x, weights.input_layernorm, eps)
    q, k, v = (split_heads(h @ w.T, batch, architecture.head_dim) for w in (weights.q, weights.k, weights.v))
    x += attention(rotate(q, cos, sin), rotate(k, cos, sin), v) @ weights.o.T
    h = rms_norm(x, weights.post_attention_layernorm, eps)
    x += swiglu(h @ weights.gate.T, h @ weights.up.T) @ weights.down.T


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (arXiv 1910.07467)."""
    mean_square: Array = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    normalized: Array = x / np.sqrt(mean_square + np.float32(eps))
    return normalized * weight


def split_heads(x: Array, batch: int, head_dim: int) -> Array:
    """[B*T, heads*E] to contiguous [B, heads, T, E]."""
    return np.ascontiguousarray(x.reshape(batch, -1, x.shape[1] // head_dim, head_dim).transpose(0, 2, 1, 3))


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding of [B, heads, T, E]; channel i turns with channel i + E/2 (cos, sin: [T, E/2])."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    turned = np.empty_like(x)
    np.subtract(a * cos, b * sin, out=turned[..., :half])
    np.add(b * cos, a * sin, out=turned[..., half:])
    return turned


def attention(q: Array, k: Array, v: Array) -> Array:
    """Causal grouped-query attention (arXiv 2305.13245): q [B, H, T, E], k, v [B, K, T, E] to [B*T, H*E]."""
    batch, heads, length, head_dim = q.shape
    kv_heads = k.shape[1]
    shared = q.reshape(batch, kv_heads, heads // kv_heads, length, head_dim) * np.float32(head_dim**-0.5)
    mixed = np.empty((batch, length, kv_heads, heads // kv_heads, head_dim), np.float32)
    for b in range(batch):
        for kv_head in range(kv_heads):
            for start, stop in _blocks(length, QUERY_ROWS):
                queries = shared[b, kv_head, :, start:stop]
                answer = _attend(queries, k[b, kv_head, :stop], v[b, kv_head, :stop])
                mixed[b, start:stop, kv_head] = answer.transpose(1, 0, 2)
    return mixed.reshape(batch * length, heads * head_dim)


def _attend(queries: Array, keys: Array, values: Array) -> Array:
    """softmax(q k^T) v of the last rows of a sequence: queries [R, rows, E], keys, values [stop, E] to [R, rows, E].

    The R heads that share these keys are one tall matrix; a query sees the keys up to its own position.
    """
    shared, rows, head_dim = queries.shape
    stop = len(keys)
    scores: Array = (queries.reshape(-1, head_dim) @ keys.T).reshape(shared, rows, stop)
    scores[:, :, stop - rows :] += np.triu(np.full((rows, rows), -np.inf, np.float32), 1)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    answer = (scores.reshape(-1, stop) @ values).reshape(shared, rows, head_dim)
    answer /= scores.sum(axis=-1, keepdims=True)  # here rather than before: E columns instead of `stop`
    return answer


def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) * up (arXiv 2002.05202), silu(z) = z / (1 + exp(-z)); overwrites its arguments."""
    up *= gate
    np.negative(gate, out=gate)
    with np.errstate(over="ignore"):  # exp of a large number is inf, and z / inf the zero it should be
        np.exp(gate, out=gate)
    gate += 1
    up /= gate
    return up


def embed(embedding: TensorRows, ids: NDArray[np.int64]) -> Array:
    """Rows `ids` [N] of the embedding, float32 [N, D]; ValueError for an id outside it."""
    vocabulary, hidden = embedding.shape
    if ids.size and not 0 <= ids.min() <= ids.max() < vocabulary:
        raise ValueError(f"token ids must lie in 0..{vocabulary - 1}, not {ids.min()}..{ids.max()}")
    x = np.empty((ids.size, hidden), np.float32)
    for start, stop in _row_blocks(embedding):
        here = np.flatnonzero((ids >= start) & (ids < stop))
        if here.size:
            first, last = int(ids[here].min()), int(ids[here].max())
            x[here] = embedding.rows(first, last + 1)[ids[here] - first]
    return x


def lm_head_logits(checkpoint: Weights, hidden: Array) -> Array:
    """Logits, float32 [N, V], of final hidden states [N, D]; the head or tied embedding is read by blocks of rows."""
    tied = checkpoint.architecture.tie_word_embeddings
    head = checkpoint.tensor("model.embed_tokens.weight" if tied else "lm_head.weight")
    logits = np.empty((len(hidden), head.shape[0]), np.float32)
    for start, stop in _row_blocks(head):
        np.matmul(hidden, head.rows(start, stop).T, out=logits[:, start:stop])
    return logits


def _row_blocks(tensor: TensorRows) -> Iterator[tuple[int, int]]:
    rows, width = tensor.shape
    return _blocks(rows, max(1, BLOCK_BYTES // (4 * width)))


def _blocks(length: int, step: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + step, length)) for start in range(0, length, step))
