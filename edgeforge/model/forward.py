"""The float32 forward pass of a Llama decoder in numpy, written like the paper (arXiv 2302.13971): the reference.

Shape letters: B sequences, T tokens, D hidden, H heads, K KV heads, R = H / K heads that share one, E head_dim,
V vocabulary.
One block of a matrix's rows is in memory at a time, so that a model of any size runs. Whoever gives a `Tap` sees every
linear's input and every layer's cache, and may replace them.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from edgeforge.model.checkpoint import TensorRows, Weights
from edgeforge.model.rotary import rotary_tables

Array = NDArray[np.float32]

BLOCK_BYTES = 64 << 20  # of a matrix in memory at a time
QUERY_ROWS = 256  # queries that meet their keys in one matrix product

Tap = Callable[[str, Array], Array]
"""Sees what a layer's linears are given and what its cache holds, and answers with what to use instead.

The names are weights' (of linears that share an input, the first's: q_proj, o_proj, gate_proj, down_proj) with inputs
[B*T, in], and `cache_names` with the keys, as cached, and values [B, K, T, E].
"""


def untouched(name: str, x: Array) -> Array:
    """The tap that changes nothing."""
    return x


def cache_names(layer: int) -> tuple[str, str]:
    """What a tap calls a layer's keys and values."""
    return f"model.layers.{layer}.self_attn.k_cache", f"model.layers.{layer}.self_attn.v_cache"


def forward(checkpoint: Weights, ids: NDArray[np.int64]) -> Array:
    """Logits, float32 [T, V], of one sequence of token ids [T]."""
    return lm_head_logits(checkpoint, final_hidden(checkpoint, ids[None])[0])


def final_hidden(
    checkpoint: Weights,
    ids: NDArray[np.int64],
    *,
    progress: Callable[[int, int], None] | None = None,
    tap: Tap = untouched,
) -> Array:
    """What lm_head sees, float32 [B, T, D], of B sequences of token ids [B, T]; each attends to itself alone.

    `progress` is called with (layers done, layers). Raises ValueError for an id outside the vocabulary.
    """
    architecture = checkpoint.architecture
    batch, length = ids.shape
    cos, sin = rotary_tables(architecture.rotary, architecture.head_dim, length)
    x = embed(checkpoint.tensor("model.embed_tokens.weight"), ids.reshape(-1))
    for layer in range(architecture.num_hidden_layers):
        decoder_layer(checkpoint, layer, x, batch, cos, sin, tap)
        if progress is not None:
            progress(layer + 1, architecture.num_hidden_layers)
    norm = checkpoint.tensor("model.norm.weight").rows(0, architecture.hidden_size)
    return rms_norm(x, norm, architecture.rms_norm_eps).reshape(batch, length, -1)


def decoder_layer(
    checkpoint: Weights, layer: int, x: Array, batch: int, cos: Array, sin: Array, tap: Tap = untouched
) -> None:
    """Add one layer's attention and MLP to the residual stream `x` [B*T, D], in place."""
    a, prefix = checkpoint.architecture, f"model.layers.{layer}"
    k_cache, v_cache = cache_names(layer)

    def norm(name: str) -> Array:
        return rms_norm(x, checkpoint.tensor(f"{prefix}.{name}.weight").rows(0, a.hidden_size), a.rms_norm_eps)

    def seen(x: Array, by: str) -> Array:
        return tap(f"{prefix}.{by}.weight", x)

    def project(x: Array, by: str) -> Array:
        return linear(x, checkpoint.tensor(f"{prefix}.{by}.weight"))

    h = seen(norm("input_layernorm"), "self_attn.q_proj")
    q, k, v = (split_heads(project(h, f"self_attn.{role}_proj"), batch, a.head_dim) for role in "qkv")
    h = attention(rotate(q, cos, sin), tap(k_cache, rotate(k, cos, sin)), tap(v_cache, v))
    x += project(seen(h, "self_attn.o_proj"), "self_attn.o_proj")
    h = seen(norm("post_attention_layernorm"), "mlp.gate_proj")
    h = swiglu(project(h, "mlp.gate_proj"), project(h, "mlp.up_proj"))
    x += project(seen(h, "mlp.down_proj"), "mlp.down_proj")


def linear(x: Array, weight: TensorRows) -> Array:
    """x W^T, float32 [N, out], of inputs [N, in]; W is read by blocks of rows."""
    y = np.empty((len(x), weight.shape[0]), np.float32)
    for start, stop in _row_blocks(weight):
        np.matmul(x, weight.rows(start, stop).T, out=y[:, start:stop])
    return y


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
    """Logits, float32 [N, V], of final hidden states [N, D], by the head or the tied embedding."""
    tied = checkpoint.architecture.tie_word_embeddings
    return linear(hidden, checkpoint.tensor("model.embed_tokens.weight" if tied else "lm_head.weight"))


def _row_blocks(tensor: TensorRows) -> Iterator[tuple[int, int]]:
    rows, width = tensor.shape
    return _blocks(rows, max(1, BLOCK_BYTES // (4 * width)))


def _blocks(length: int, step: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + step, length)) for start in range(0, length, step))
