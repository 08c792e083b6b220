"""Rotary figures are those of transformers, at every position a plan may ask for."""

import numpy as np
import pytest

from edgeforge.model.rotary import inverse_frequencies, rotary_tables
from edgeforge.model.rotary_config import Rotary, rope_scaling

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
modeling = pytest.importorskip("transformers.models.llama.modeling_llama")

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
CASES = [
    (Rotary(theta=1e4), 8),
    (Rotary(theta=1e5), 64),
    (Rotary(theta=5e5), 128),
    (Rotary(theta=1e4), 96),
    (Rotary(theta=1e4, kind="linear", factor=2.5), 64),
    (Rotary(theta=1e4, kind="dynamic", factor=4.0), 64),
    (Rotary(theta=5e5, kind="llama3", factor=8.0, **LLAMA3), 128),
    (Rotary(theta=5e5, kind="llama3", factor=32.0, **LLAMA3), 64),
]


def their_config(rotary: Rotary, head_dim: int) -> object:
    return transformers.LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_theta=rotary.theta,
        rope_scaling=rope_scaling(rotary),
    )


@pytest.mark.parametrize(("rotary", "head_dim"), CASES)
def test_inverse_frequencies_are_those_of_transformers(rotary: Rotary, head_dim: int) -> None:
    theirs, scale = rope_utils.ROPE_INIT_FUNCTIONS[rotary.kind](their_config(rotary, head_dim), "cpu")
    ours = inverse_frequencies(rotary, head_dim)
    assert scale == 1.0
    assert ours.dtype == np.float64
    assert ours.shape == (head_dim // 2,)
    # One unit in the last place of float32: torch's pow is not correctly rounded everywhere.
    np.testing.assert_allclose(ours, theirs.double().numpy(), rtol=2.0**-22, atol=0)


@pytest.mark.parametrize(("rotary", "head_dim"), CASES)
def test_tables_are_those_of_transformers(rotary: Rotary, head_dim: int) -> None:
    embedding = modeling.LlamaRotaryEmbedding(their_config(rotary, head_dim))
    positions = torch.tensor([[0, 1, 2, 100, 2047, 8191, 8192, 40_000, 131_071]])
    cos, sin = embedding(torch.zeros(1, dtype=torch.float32), positions)
    ours = rotary_tables(rotary, head_dim, 131_072)
    half = head_dim // 2
    for table, theirs in zip(ours, (cos, sin), strict=True):
        assert table.dtype == np.float32
        assert table.shape == (131_072, half)
        rows = table[positions[0].numpy()]
        # The angle's error is the frequency's (one unit in the last place) times the position.
        angle = positions[0].numpy()[:, None] * inverse_frequencies(rotary, head_dim) * 2.0**-22
        assert np.all(np.abs(rows - theirs[0, :, :half].numpy()) <= 1e-6 + angle)


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones() -> None:
    rotary = Rotary(theta=5e5, kind="llama3", factor=8.0, **LLAMA3)
    ratio = inverse_frequencies(Rotary(theta=5e5), 128) / inverse_frequencies(rotary, 128)
    assert ratio[0] == 1.0
    assert ratio[-1] == 8.0
    assert np.all(np.diff(ratio) > -1e-6)


def test_a_table_of_more_positions_begins_with_the_shorter_one() -> None:
    rotary = Rotary(theta=1e4)
    for short, long in zip(rotary_tables(rotary, 16, 100), rotary_tables(rotary, 16, 9000), strict=True):
        np.testing.assert_array_equal(short, long[:100])
