"""What is kept of the reference gives its divergence back: whole where it is whole, below 1 % off on real models."""

from pathlib import Path

import numpy as np
import pytest
from built import Build, tiny_stories
from numpy.typing import NDArray

from edgeforge.model.checkpoint import open_checkpoint
from edgeforge.model.forward import forward
from edgeforge.validation import top_k
from edgeforge.validation.statistics import NonFiniteLogitsError, compare_logits
from edgeforge.validation.top_k import compare_kept, keep, kept_note

Logits = NDArray[np.float32]


def pair(rows: int, vocabulary: int, *, noise: float, seed: int = 0) -> tuple[Logits, Logits, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    reference = (2 * rng.standard_normal((rows, vocabulary)) - 7).astype(np.float32)
    candidate = (reference + noise * rng.standard_normal((rows, vocabulary)) + 2).astype(np.float32)
    return reference, candidate, rng.integers(0, vocabulary, rows)


@pytest.mark.parametrize("noise", [0.0, 0.05, 1.0])
def test_a_vocabulary_that_fits_is_kept_whole(noise: float) -> None:
    reference, candidate, targets = pair(40, 60, noise=noise)
    kept = keep(reference, targets)
    values, exact = compare_kept(kept, candidate, targets), compare_logits(reference, candidate, targets)
    assert kept.top_k == kept.ids.shape[1] == 60
    np.testing.assert_allclose(values.kl_divergence, exact.kl_divergence, rtol=1e-9, atol=1e-13)


def test_likelihoods_and_agreement_are_exact_whatever_is_kept() -> None:
    reference, candidate, targets = pair(50, 3000, noise=0.7)
    values = compare_kept(keep(reference, targets, top_k=4, drawn=0), candidate, targets)
    exact = compare_logits(reference, candidate, targets)
    np.testing.assert_allclose(values.reference_nll, exact.reference_nll, rtol=1e-12)
    np.testing.assert_allclose(values.candidate_nll, exact.candidate_nll, rtol=1e-12)
    np.testing.assert_array_equal(values.same_top, exact.same_top)


@pytest.mark.parametrize("kept", [1, 8, 64, 512])
def test_top_and_tail_alone_are_a_lower_bound(kept: int) -> None:
    reference, candidate, targets = pair(200, 2000, noise=0.5)
    values = compare_kept(keep(reference, targets, top_k=kept, drawn=0), candidate, targets)
    exact = compare_logits(reference, candidate, targets)
    assert (values.kl_divergence <= exact.kl_divergence + 1e-12).all()
    assert values.kl_divergence.mean() < exact.kl_divergence.mean()


@pytest.mark.parametrize("noise", [0.05, 0.5, 1.5])
def test_drawn_tokens_are_right_on_average(noise: float) -> None:
    """Even where the top holds a tenth of the mass."""
    reference, candidate, targets = pair(3000, 1500, noise=noise)
    values = compare_kept(keep(reference, targets, top_k=4, drawn=32), candidate, targets)
    exact = compare_logits(reference, candidate, targets)
    off = values.kl_divergence - exact.kl_divergence
    assert abs(off.mean()) < 4 * off.std() / np.sqrt(len(off))
    assert abs(off.mean()) < 0.01 * exact.kl_divergence.mean()
    assert values.kl_divergence.min() >= 0


@pytest.mark.parametrize("noise", [1e-3, 0.05, 0.5])
def test_a_tokens_error_is_a_share_of_the_mean_however_small_that_is(noise: float) -> None:
    """So the error of a mean depends on the number of tokens alone, which is what reports say."""
    reference, candidate, targets = pair(600, 3000, noise=noise)
    exact = compare_logits(reference, candidate, targets).kl_divergence
    off = compare_kept(keep(reference, targets), candidate, targets).kl_divergence - exact
    assert 0.1 < off.std() / exact.mean() < 0.16  # of these wide distributions; real models' tails weigh less
    assert abs(off.mean()) < 4 * off.std() / np.sqrt(len(off))


def test_reports_say_how_far_drawing_moves_their_mean() -> None:
    assert "over 256 tokens by about 0.62 % of" in kept_note(49152, 256)
    assert "over 10,000 tokens by about 0.1 % of" in kept_note(49152, 10_000)
    assert kept_note(64, 256) == "Divergence was computed from whole distributions."


def test_a_model_does_not_diverge_from_itself() -> None:
    reference, _, targets = pair(20, 49152, noise=0.0)
    assert compare_kept(keep(reference, targets), reference.copy(), targets).kl_divergence.max() < 1e-12


def test_confident_models_that_disagree_stay_finite() -> None:
    reference = np.zeros((1, 200), np.float32)
    reference[0, 0] = 900
    candidate = np.zeros((1, 200), np.float32)
    candidate[0, 150] = 900
    values = compare_kept(keep(reference, np.array([7])), candidate, np.array([7]))
    assert values.kl_divergence[0] == pytest.approx(900, rel=1e-6)
    assert np.isfinite(compare_kept(keep(candidate, np.array([7])), reference, np.array([7])).kl_divergence).all()


def test_blocks_keep_what_one_piece_does(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, candidate, targets = pair(33, 257, noise=0.5)
    whole = compare_kept(keep(reference, targets), candidate, targets)
    monkeypatch.setattr(top_k, "BLOCK_ELEMENTS", 4 * 257)
    parts = compare_kept(keep(reference, targets), candidate, targets)
    np.testing.assert_array_equal(whole.kl_divergence, parts.kl_divergence)


@pytest.mark.parametrize("who", ["reference", "candidate"])
def test_logits_that_are_not_finite_are_named(who: str) -> None:
    reference, candidate, targets = pair(9, 500, noise=0.1)
    (reference if who == "reference" else candidate)[6, 13] = np.nan
    with pytest.raises(NonFiniteLogitsError) as caught:
        compare_kept(keep(reference, targets), candidate, targets)
    assert (caught.value.who, caught.value.row) == (who, 6)


def test_answers_to_other_tokens_are_refused() -> None:
    reference, candidate, targets = pair(9, 500, noise=0.1)
    with pytest.raises(ValueError, match="9 tokens"):
        compare_kept(keep(reference, targets), candidate[:8], targets[:8])


def test_a_token_takes_608_bytes_of_a_vocabulary_of_49152() -> None:
    reference, _, targets = pair(4, 49152, noise=0.1)
    assert keep(reference, targets).bytes_per_token == 96 * (2 + 4) + 4 * 8


def test_a_real_models_divergence_is_within_one_per_cent(stories_int4: Build, stories: Path, test_data: Path) -> None:
    """stories260k at 4 bits, of which little lies in the tail; other models' figures are in the module's docstring."""
    checkpoint = open_checkpoint(str(stories))
    ids = np.array(checkpoint.tokenizer.load().encode(tiny_stories(test_data)[:6000]).ids[:512], np.int64)
    reference, candidate = forward(checkpoint, ids)[:-1], stories_int4.load().score(ids.tolist())[:-1]
    exact = compare_logits(reference, candidate, ids[1:]).kl_divergence.mean()
    kept = compare_kept(keep(reference, ids[1:]), candidate, ids[1:]).kl_divergence.mean()
    assert exact > 1e-3
    assert kept == pytest.approx(exact, rel=0.01)
