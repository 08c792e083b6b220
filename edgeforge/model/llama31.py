"""The shapes of Llama 3.1, from the config.json that Meta publishes with each: what tables of targets are made for."""

from collections.abc import Mapping

from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.model.rotary_config import Rotary

_ROTARY = Rotary(
    theta=500_000.0,
    kind="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
_SIZES = {
    # hidden, intermediate, layers, heads
    "8B": (4096, 14336, 32, 32),
    "70B": (8192, 28672, 80, 64),
    "405B": (16384, 53248, 126, 128),
}


def _architecture(hidden: int, intermediate: int, layers: int, heads: int) -> LlamaArchitecture:
    return LlamaArchitecture(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128_256,
        rms_norm_eps=1e-5,
        rotary=_ROTARY,
        max_position_embeddings=131_072,
        tie_word_embeddings=False,
        bos_token_id=128_000,
        eos_token_ids=(128_001, 128_008, 128_009),
    )


LLAMA_3_1: Mapping[str, LlamaArchitecture] = {name: _architecture(*sizes) for name, sizes in _SIZES.items()}
"""The Instruct models, by size."""
