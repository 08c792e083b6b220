"""A GGUF file's metadata as a LlamaArchitecture; whatever would change the mathematics is refused by name.

Key names are those of llama.cpp's gguf-py/gguf/constants.py (`llama.*`, `tokenizer.ggml.*`, `general.sampling.*`).
"""

import math

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput
from edgeforge.model import fields
from edgeforge.model.architecture import LlamaArchitecture, Rotary
from edgeforge.model.checkpoint import GenerationDefaults
from edgeforge.model.gguf_header import Metadata, Value

WHERE = "the GGUF file"

# Metadata that changes what the network computes -> the values at which it does not.
_NEUTRAL: dict[str, tuple[Value, ...]] = {
    "llama.expert_count": (0,),
    "llama.attention.sliding_window": (0,),
    "llama.attention.max_alibi_bias": (0,),
    "llama.attention.clamp_kqv": (0,),
    "llama.attention.causal": (True,),
    "llama.attention.temperature_scale": (0,),
    "llama.use_parallel_residual": (False,),
    "llama.attn_logit_softcapping": (0,),
    "llama.final_logit_softcapping": (0,),
    "llama.logit_scale": (0, 1),
    "llama.residual_scale": (0, 1),
    "llama.embedding_scale": (0, 1),
    "llama.rope.scaling.attn_factor": (0, 1),
}

# Llama 3.1 Instruct ends its turns with any of these (its generation_config.json); a GGUF file names only the first
# or two.
_LLAMA3_INSTRUCT_EOS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")


def architecture_from_metadata(
    metadata: Metadata, *, vocab_size: int, tied: bool, rope_factors: NDArray[np.float32] | None
) -> LlamaArchitecture:
    """The architecture a `general.architecture = llama` file describes.

    `vocab_size` is the embedding's row count, `tied` whether the file lacks an output matrix, `rope_factors` the
    values of `rope_freqs.weight`. Raises UnusableInput that names the offending key.
    """
    heads = integer(metadata, "llama.attention.head_count", least=1)
    kv_heads = integer(metadata, "llama.attention.head_count_kv", least=1, default=heads)
    hidden_size = integer(metadata, "llama.embedding_length", least=1)
    if heads % kv_heads:
        raise UnusableInput(f"{WHERE}: llama.attention.head_count_kv {kv_heads} does not divide head_count {heads}")
    rope_dimensions = integer(metadata, "llama.rope.dimension_count", least=2, default=hidden_size // heads)
    head_dim = integer(metadata, "llama.attention.key_length", least=2, default=rope_dimensions)
    _refuse_other_mathematics(metadata, head_dim, rope_dimensions)
    return LlamaArchitecture(
        hidden_size=hidden_size,
        intermediate_size=integer(metadata, "llama.feed_forward_length", least=1),
        num_hidden_layers=integer(metadata, "llama.block_count", least=1),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        rms_norm_eps=real(metadata, "llama.attention.layer_norm_rms_epsilon"),
        rotary=_rotary(metadata, head_dim, rope_factors),
        max_position_embeddings=integer(metadata, "llama.context_length", least=1),
        tie_word_embeddings=tied,
        bos_token_id=_inside(special_id(metadata, "bos"), vocab_size),
        eos_token_ids=tuple(number for number in _eos_token_ids(metadata) if number < vocab_size),
    )


def refuse_other_architectures(metadata: Metadata) -> None:
    """Raises UnusableInput, by name, for whatever is not a Llama decoder in one whole file."""
    kind = text(metadata, "general.architecture", "")
    if kind != "llama":
        raise UnusableInput(
            f"{WHERE} holds a {kind or 'nameless'} model; EdgeForge builds Llama (general.architecture = llama)",
            hint="use a checkpoint of the Llama family",
        )
    if text(metadata, "general.type", "model") != "model":
        raise UnusableInput(f"{WHERE} holds a {metadata['general.type']}, not a whole model")
    if integer(metadata, "split.count", least=0, default=1) > 1:
        raise UnusableInput(
            f"{WHERE} is one part of a split model",
            hint="join the parts first: llama-gguf-split --merge FIRST_PART OUT",
        )


def generation_defaults(metadata: Metadata) -> GenerationDefaults:
    """The sampling fields that newer converters write; None where the file does not say."""
    where = "general.sampling."
    return GenerationDefaults(
        temperature=_optional_real(metadata, f"{where}temp"),
        top_k=integer(metadata, f"{where}top_k", least=0) if f"{where}top_k" in metadata else None,
        top_p=_optional_real(metadata, f"{where}top_p"),
        repetition_penalty=_optional_real(metadata, f"{where}penalty_repeat"),
    )


def integer(metadata: Metadata, key: str, *, least: int, default: int | None = None) -> int:
    """A whole number; a per-layer list is accepted where all layers agree."""
    value = metadata.get(key)
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        return fields.integer({key: value[0]}, key, WHERE, least=least)
    return fields.integer(metadata, key, WHERE, least=least, default=default)


def real(metadata: Metadata, key: str, default: float | None = None) -> float:
    """A float32 of the file as the shortest decimal that rounds to it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(fields.number(metadata, key, WHERE, default=default))))


def _optional_real(metadata: Metadata, key: str) -> float | None:
    if key not in metadata:
        return None
    return float(str(np.float32(fields.number(metadata, key, WHERE, zero=True))))


def text(metadata: Metadata, key: str, default: str) -> str:
    value = metadata.get(key, default)
    if not isinstance(value, str):
        raise fields.wrong(WHERE, key, value, "a text")
    return value


def special_id(metadata: Metadata, name: str) -> int | None:
    """The id of the special token `name` (bos, eos, eot, eom, unknown, padding), or None.

    SentencePiece files may leave out the three that Llama 1 fixed: <unk> 0, <s> 1, </s> 2.
    """
    key = f"tokenizer.ggml.{name}_token_id"
    implied = {"unknown": 0, "bos": 1, "eos": 2}.get(name) if metadata.get("tokenizer.ggml.model") == "llama" else None
    if key not in metadata:
        return implied
    value = integer(metadata, key, least=0)
    return value if value < 2**31 else None  # converters write -1 as 4294967295 for "none"


def _eos_token_ids(metadata: Metadata) -> tuple[int, ...]:
    declared = [special_id(metadata, name) for name in ("eos", "eot", "eom")]
    ids = [number for number in declared if number is not None]
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and any(number < len(tokens) and tokens[number] == "<|eot_id|>" for number in ids):
        ids += [number for number, token in enumerate(tokens) if token in _LLAMA3_INSTRUCT_EOS]
    return tuple(dict.fromkeys(ids))


def _inside(number: int | None, vocab_size: int) -> int | None:
    return number if number is not None and number < vocab_size else None


def _refuse_other_mathematics(metadata: Metadata, head_dim: int, rope_dimensions: int) -> None:
    for key, neutral in _NEUTRAL.items():
        if key in metadata and metadata[key] not in neutral:
            raise _not_built(f"{key} = {metadata[key]}")
    value_length = integer(metadata, "llama.attention.value_length", least=1, default=head_dim)
    if value_length != head_dim:
        raise _not_built(f"llama.attention.value_length = {value_length} beside key_length = {head_dim}")
    if rope_dimensions != head_dim or head_dim % 2:
        raise _not_built(f"llama.rope.dimension_count = {rope_dimensions} in heads of {head_dim}")
    scale = metadata.get("llama.attention.scale", 0.0)
    if scale and not (isinstance(scale, float) and math.isclose(scale, head_dim**-0.5, rel_tol=1e-5)):
        raise _not_built(f"llama.attention.scale = {scale}")


def _not_built(what: str) -> UnusableInput:
    return UnusableInput(f"{WHERE} says {what}, which EdgeForge does not build")


def _rotary(metadata: Metadata, head_dim: int, factors: NDArray[np.float32] | None) -> Rotary:
    theta = real(metadata, "llama.rope.freq_base", 10000.0)
    kind = text(metadata, "llama.rope.scaling.type", "linear")  # llama.cpp's default, harmless without a factor
    factor = real(metadata, "llama.rope.scaling.factor", real(metadata, "llama.rope.scale_linear", 1.0))
    if kind not in ("none", "linear"):
        raise _not_built(f"llama.rope.scaling.type = {kind}")
    linear = kind == "linear" and factor != 1
    if factors is None or np.all(factors == 1):
        return Rotary(theta=theta, kind="linear", factor=factor) if linear else Rotary(theta=theta)
    if linear:
        raise _not_built(f"both llama.rope.scaling.factor = {factor} and rope_freqs.weight")
    return _llama3_rotary(theta, head_dim, factors.astype(np.float64))


def _llama3_rotary(theta: float, head_dim: int, factors: NDArray[np.float64]) -> Rotary:
    """Recover Llama 3's scaling from the per-frequency divisors that `rope_freqs.weight` holds.

    Between its two wavelengths 1 / divisor = (1 - s) / factor + s, with s = (original / wavelength - low) / (high -
    low): a straight line in 1 / wavelength (transformers, `_compute_llama3_parameters`). Only the ratios of original,
    low and high matter, so low is taken as 1, as Meta does.
    """
    unusable = _not_built("a rope_freqs.weight that is not Llama 3's rotary scaling")
    inverse_wavelength = theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * np.pi)
    factor = float(str(np.float32(factors.max())))
    between = (factors > 1.0001) & (factors < factor * 0.9999)
    if factors.shape != inverse_wavelength.shape or factor <= 1 or np.count_nonzero(between) < 2:
        raise unusable
    s = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
    slope, intercept = np.polyfit(inverse_wavelength[between], s, 1)
    if intercept >= 0:
        raise unusable
    high = round(1 - 1 / intercept, 3)
    original = round(slope * (high - 1))
    smooth = np.clip((original * inverse_wavelength - 1) / (high - 1), 0, 1)
    if not np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=1e-4):
        raise unusable
    return Rotary(
        theta=theta,
        kind="llama3",
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=high,
        original_max_position_embeddings=original,
    )
