"""Which tensors a Hugging Face directory holds and which file each is in, known from the plan alone.

Shape letters: N out_features, K in_features, D hidden, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgeforge.model.architecture import Linear
from edgeforge.model.safetensors_header import ITEM_BYTES
from edgeforge.planning import EMBEDDING, BuildPlan

SHARD_BYTES = 5_000_000_000
"""transformers' own limit (save_pretrained, max_shard_size="5GB")."""
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FINAL_NORM = "model.norm.weight"
FLOAT_WORDS: Mapping[str, str] = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One stored tensor; `dtype` in safetensors' words. `optional`: it may be left out when the file is written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    optional: bool = False

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def float_word(plan: BuildPlan) -> str:
    """The safetensors type of everything that is not quantized."""
    return FLOAT_WORDS[plan.target.activations]


def norm_names(layer: int) -> tuple[str, str]:
    """The norms before attention and before the feed-forward part."""
    prefix = f"model.layers.{layer}."
    return f"{prefix}input_layernorm.weight", f"{prefix}post_attention_layernorm.weight"


def side(linear: Linear, name: str) -> str:
    """A tensor beside a linear's weight: `model.layers.0.mlp.up_proj.weight_scale`."""
    return f"{linear.name.removesuffix('weight')}{name}"


def model_tensors(
    plan: BuildPlan,
    of_linear: Callable[[Linear], Iterable[TensorSpec]],
    of_layer: Callable[[int], Iterable[TensorSpec]],
) -> Iterator[TensorSpec]:
    """Every tensor of the model, layer by layer. A tied output head is the embedding, stored once.

    `of_linear` says how a quantized linear is stored, `of_layer` what else a layer has.
    """
    a, word = plan.architecture, float_word(plan)

    def norm(name: str) -> TensorSpec:
        return TensorSpec(name=name, dtype=word, shape=(a.hidden_size,))

    yield TensorSpec(name=EMBEDDING, dtype=word, shape=(a.vocab_size, a.hidden_size))
    for linear in a.linears():
        if linear.layer is None:
            yield norm(FINAL_NORM)
        if plan.schemes[linear.name].is_float:
            yield TensorSpec(name=linear.name, dtype=word, shape=(linear.out_features, linear.in_features))
        else:
            yield from of_linear(linear)
        if linear.layer is not None and linear.role == "down":
            yield from of_layer(linear.layer)
            yield from map(norm, norm_names(linear.layer))
    if a.tie_word_embeddings:
        yield norm(FINAL_NORM)


def shards(tensors: Iterable[TensorSpec]) -> dict[str, Sequence[TensorSpec]]:
    """File name -> its tensors, as they lie in it. A file ends before the tensor that would take it past SHARD_BYTES.

    Within a file the widest types come first, as the safetensors package does it: every tensor is then aligned to its
    own type, which torch insists on.
    """
    groups: list[list[TensorSpec]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.size_bytes > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.size_bytes
    total = len(groups)
    names = [f"model-{i:05}-of-{total:05}.safetensors" for i in range(1, total + 1)] if total > 1 else [SINGLE_FILE]
    return {
        name: sorted(group, key=lambda tensor: -ITEM_BYTES[tensor.dtype])
        for name, group in zip(names, groups, strict=True)
    }
