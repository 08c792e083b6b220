"""The shape of the network: a Llama decoder as a frozen value, its linears by role and its tensors by name.

Field names are config.json's own, and defaults of absent fields are those of transformers' LlamaConfig.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache

from edgeforge.errors import UnusableInput
from edgeforge.model import fields
from edgeforge.model.config_checks import WHERE, check_decoder, check_neutral
from edgeforge.model.rotary_config import Rotary, rope_scaling, rotary_from_config, rotary_from_json

__all__ = [
    "Linear",
    "LlamaArchitecture",
    "Rotary",
    "architecture_from_config",
    "architecture_from_json",
    "architecture_to_json",
    "hf_config",
]

MOST_LAYERS = 4096  # Llama 3.1 405B has 126


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A weight matrix [out_features, in_features] and its place: q, k, v, o, gate, up, down of a layer, or lm_head."""

    name: str
    role: str
    layer: int | None
    out_features: int
    in_features: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaArchitecture:
    """Everything about a Llama decoder but its weights; `architecture_from_config` has checked that the sizes agree."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rotary: Rotary
    max_position_embeddings: int
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    def linears(self) -> Iterator[Linear]:
        """Every linear, layer by layer in the order of use; lm_head last, and only when it is not the embedding."""
        return iter(_linears(self))

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every tensor that a checkpoint of this architecture must have; tied ones need no lm_head."""
        yield "model.embed_tokens.weight", (self.vocab_size, self.hidden_size)
        for layer in range(self.num_hidden_layers):
            yield f"model.layers.{layer}.input_layernorm.weight", (self.hidden_size,)
            yield f"model.layers.{layer}.post_attention_layernorm.weight", (self.hidden_size,)
        yield "model.norm.weight", (self.hidden_size,)
        for linear in self.linears():
            yield linear.name, (linear.out_features, linear.in_features)

    @property
    def parameter_count(self) -> int:
        """Weights in the model, a tied embedding counted once."""
        linears = sum(linear.out_features * linear.in_features for linear in self.linears())
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return linears + norms + self.vocab_size * self.hidden_size


@lru_cache(maxsize=8)  # planning walks them hundreds of times
def _linears(a: LlamaArchitecture) -> tuple[Linear, ...]:
    found = [linear for layer in range(a.num_hidden_layers) for linear in _layer_linears(a, layer)]
    if not a.tie_word_embeddings:
        found.append(
            Linear(
                name="lm_head.weight",
                role="lm_head",
                layer=None,
                out_features=a.vocab_size,
                in_features=a.hidden_size,
            )
        )
    return tuple(found)


def _layer_linears(a: LlamaArchitecture, layer: int) -> Iterator[Linear]:
    heads, kv_heads = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    rows = (
        ("q", "self_attn.q_proj", heads, a.hidden_size),
        ("k", "self_attn.k_proj", kv_heads, a.hidden_size),
        ("v", "self_attn.v_proj", kv_heads, a.hidden_size),
        ("o", "self_attn.o_proj", a.hidden_size, heads),
        ("gate", "mlp.gate_proj", a.intermediate_size, a.hidden_size),
        ("up", "mlp.up_proj", a.intermediate_size, a.hidden_size),
        ("down", "mlp.down_proj", a.hidden_size, a.intermediate_size),
    )
    for role, module, out_features, in_features in rows:
        name = f"model.layers.{layer}.{module}.weight"
        yield Linear(name=name, role=role, layer=layer, out_features=out_features, in_features=in_features)


def architecture_to_json(architecture: LlamaArchitecture) -> dict[str, object]:
    """A JSON object with the dataclass's own names, for the plan; `architecture_from_json` is its exact inverse."""
    result: dict[str, object] = asdict(architecture)
    result["eos_token_ids"] = list(architecture.eos_token_ids)
    return result


def architecture_from_json(value: Mapping[str, object]) -> LlamaArchitecture:
    """The inverse of `architecture_to_json`; UnusableInput by field name."""
    where = "architecture"
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    hidden, intermediate, layers, heads, kv_heads = (fields.integer(value, n, where, least=1) for n in sizes)
    bos = value.get("bos_token_id")
    _check_layers(layers)
    return LlamaArchitecture(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=fields.integer(value, "head_dim", where, least=1),
        vocab_size=fields.integer(value, "vocab_size", where, least=1),
        rms_norm_eps=fields.number(value, "rms_norm_eps", where),
        rotary=rotary_from_json(fields.table(value, "rotary", where) or {}),
        max_position_embeddings=fields.integer(value, "max_position_embeddings", where, least=1),
        tie_word_embeddings=fields.boolean(value, "tie_word_embeddings", where, default=False),
        bos_token_id=None if bos is None else fields.integer(value, "bos_token_id", where, least=0),
        eos_token_ids=token_ids(value.get("eos_token_ids"), f"{where}: eos_token_ids"),
    )


def token_ids(value: object, where: str) -> tuple[int, ...]:
    """One id, a list of ids, or null, as a tuple without repetitions."""
    if value is None:
        return ()
    ids = value if isinstance(value, list | tuple) else [value]
    for item in ids:
        if not isinstance(item, int) or isinstance(item, bool) or item < 0:
            raise UnusableInput(f"{where} is {value!r}, expected a token id or a list of token ids")
    return tuple(dict.fromkeys(ids))


def architecture_from_config(
    config: Mapping[str, object], generation_config: Mapping[str, object] | None = None
) -> LlamaArchitecture:
    """The architecture that `config` describes; token ids of `generation_config` win, as in transformers' generate().

    Raises UnusableInput, naming the field, for anything but a Llama decoder that EdgeForge reproduces exactly.
    """
    check_decoder(config)
    check_neutral(config)
    hidden, intermediate, layers, heads, vocab = (
        fields.integer(config, name, WHERE, least=1)
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    )
    _check_layers(layers)
    kv_heads = fields.integer(config, "num_key_value_heads", WHERE, least=1, default=heads)
    bos, eos = _special_tokens(config, generation_config or {}, vocab)
    return LlamaArchitecture(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=_checked_kv_heads(heads, kv_heads),
        head_dim=_head_dim(config, hidden, heads),
        vocab_size=vocab,
        rms_norm_eps=fields.number(config, "rms_norm_eps", WHERE, default=1e-6),
        rotary=rotary_from_config(config),
        max_position_embeddings=fields.integer(config, "max_position_embeddings", WHERE, least=1, default=2048),
        tie_word_embeddings=fields.boolean(config, "tie_word_embeddings", WHERE, default=False),
        bos_token_id=bos,
        eos_token_ids=eos,
    )


def _check_layers(layers: int) -> None:
    """Before every layer is listed: a damaged count may promise billions."""
    if layers > MOST_LAYERS:
        raise UnusableInput(f"{WHERE}: num_hidden_layers is {layers}, expected at most {MOST_LAYERS:,}")


def _checked_kv_heads(heads: int, kv_heads: int) -> int:
    if heads % kv_heads:
        raise UnusableInput(f"{WHERE}: num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    return kv_heads


def _head_dim(config: Mapping[str, object], hidden: int, heads: int) -> int:
    if config.get("head_dim") is None and hidden % heads:
        raise UnusableInput(
            f"{WHERE}: num_attention_heads {heads} does not divide hidden_size {hidden}, and there is no head_dim"
        )
    head_dim = fields.integer(config, "head_dim", WHERE, least=2, default=hidden // heads)
    if head_dim % 2:
        raise UnusableInput(f"{WHERE}: head_dim is {head_dim}; rotary embedding needs an even one")
    return head_dim


def _special_tokens(
    config: Mapping[str, object], generation: Mapping[str, object], vocab: int
) -> tuple[int | None, tuple[int, ...]]:
    """(bos, eos ids). LlamaConfig's defaults, 1 and 2, stand in only where a field is absent, not where it is null."""
    eos = token_ids(config.get("eos_token_id", 2), f"{WHERE}: eos_token_id")
    bos = token_ids(config.get("bos_token_id", 1), f"{WHERE}: bos_token_id")
    file = "generation_config.json"
    eos = token_ids(generation.get("eos_token_id"), f"{file}: eos_token_id") or eos
    bos = token_ids(generation.get("bos_token_id"), f"{file}: bos_token_id") or bos
    for name, ids in (("eos_token_id", eos), ("bos_token_id", bos)):
        if any(token >= vocab for token in ids):
            raise UnusableInput(f"{WHERE}: {name} {max(ids)} is outside the vocabulary of {vocab} tokens")
    if len(bos) > 1:
        raise UnusableInput(f"{WHERE}: bos_token_id is a list of {len(bos)} ids, expected one")
    return (bos[0] if bos else None), eos


def hf_config(architecture: LlamaArchitecture, *, dtype: str) -> dict[str, object]:
    """A config.json that transformers loads as this architecture; `dtype` is torch's: float32, float16 or bfloat16."""
    a = architecture
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": a.hidden_size,
        "intermediate_size": a.intermediate_size,
        "num_hidden_layers": a.num_hidden_layers,
        "num_attention_heads": a.num_attention_heads,
        "num_key_value_heads": a.num_key_value_heads,
        "head_dim": a.head_dim,
        "vocab_size": a.vocab_size,
        "max_position_embeddings": a.max_position_embeddings,
        "rms_norm_eps": a.rms_norm_eps,
        "rope_theta": a.rotary.theta,
        "rope_scaling": rope_scaling(a.rotary),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": a.tie_word_embeddings,
        "bos_token_id": a.bos_token_id,
        "eos_token_id": _one_or_list(a.eos_token_ids),
        "torch_dtype": dtype,
    }


def _one_or_list(ids: tuple[int, ...]) -> int | list[int] | None:
    if len(ids) > 1:
        return list(ids)
    return ids[0] if ids else None
