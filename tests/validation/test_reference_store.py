"""Stored answers change nothing but the time: the same report to the bit, gone on from, and made anew when damaged."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeforge.hardware import Gate
from edgeforge.model.checkpoint import Checkpoint, open_checkpoint
from edgeforge.model.forward import final_hidden
from edgeforge.validation import ValidationReport, reference_store, validate
from edgeforge.validation.protocol import make_chunks
from edgeforge.validation.statistics import compare_logits
from edgeforge.validation.top_k import keep

from .fakes import NoisyModel, answer_with, make_bundle

LIMITS = Gate(max_mean_kl_divergence=0.5, max_perplexity_ratio=2.0, confidence=0.95)
Bundle = tuple[Path, Checkpoint]


@pytest.fixture
def bundle(stories: Path, tmp_path: Path) -> Bundle:
    checkpoint = open_checkpoint(str(stories))
    return make_bundle(tmp_path, checkpoint), checkpoint


def report(bundle: Bundle, chunks: int = 3) -> ValidationReport:
    """Without its seconds, which alone may differ."""
    found = validate(bundle[0], bundle[1], gate=LIMITS, chunks=chunks, context=64)
    return replace(found, seconds=0.0)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many chunks each pass of the reference took."""
    passes: list[int] = []

    def counted(checkpoint, ids, **options):  # type: ignore[no-untyped-def]
        passes.append(len(ids))
        return final_hidden(checkpoint, ids, **options)

    monkeypatch.setattr("edgeforge.validation.compare.final_hidden", counted)
    return passes


def test_a_second_validation_is_the_same_to_the_bit_and_runs_no_model(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = answer_with(monkeypatch, NoisyModel(bundle[1], noise=0.1))
    passes = count_reads(monkeypatch)
    first = report(bundle)
    assert (model.calls, passes) == (3, [3])
    assert report(bundle) == first
    assert (model.calls, passes) == (3, [3])


def test_another_bundle_shares_the_reference_and_gets_what_it_would_alone(
    bundle: Bundle, own_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, NoisyModel(bundle[1], noise=0.1))
    passes = count_reads(monkeypatch)
    report(bundle)
    (tmp_path / "other").mkdir()
    other = make_bundle(tmp_path / "other", bundle[1], name="other"), bundle[1]
    model = answer_with(monkeypatch, NoisyModel(bundle[1], noise=0.2))
    shared = report(other)
    assert (model.calls, passes) == (3, [3])
    for path in own_store.rglob("*.bin"):
        path.unlink()
    assert report(other) == shared
    assert passes == [3, 3]


def test_an_interrupted_validation_goes_on_at_the_chunk_where_it_stopped(
    bundle: Bundle, own_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answer_with(monkeypatch, NoisyModel(bundle[1], noise=0.1))
    expected = report(bundle, chunks=5)
    assert whole.calls == 5
    for path in own_store.rglob("*.bin"):
        path.unlink()

    class Stopped(NoisyModel):
        def score(self, ids):  # type: ignore[no-untyped-def]
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().score(ids)

    answer_with(monkeypatch, Stopped(bundle[1], noise=0.1))
    with pytest.raises(KeyboardInterrupt):
        report(bundle, chunks=5)
    assert not list(own_store.rglob(".partial-*"))
    rest = answer_with(monkeypatch, NoisyModel(bundle[1], noise=0.1))
    passes = count_reads(monkeypatch)
    resumed = report(bundle, chunks=5)
    assert rest.calls == 3
    assert passes == [2]  # the third chunk's reference was done when its candidate stopped
    assert resumed.mean_kl_divergence == pytest.approx(expected.mean_kl_divergence, rel=1e-5)
    assert resumed.scored_tokens == expected.scored_tokens


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_entry_is_made_anew(
    bundle: Bundle, own_store: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    model = answer_with(monkeypatch, NoisyModel(bundle[1], noise=0.1))
    first = report(bundle)
    for path in own_store.rglob("*.bin"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes({"cut": bytes(content[:-200]), "flipped": bytes(content), "empty": b""}[damage])
    assert report(bundle) == first
    assert model.calls == 6


def test_a_folder_that_cannot_be_written_costs_only_time(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = answer_with(monkeypatch, NoisyModel(bundle[1], noise=0.1))
    stored = report(bundle)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(reference_store, "root", lambda: tmp_path / "file")
    assert report(bundle) == stored
    assert model.calls == 6


def test_keys_follow_from_everything_that_answers_follow_from() -> None:
    chunks = make_chunks(range(2000), protocol="llama.cpp", context=64, bos_token_id=None)
    shifted = make_chunks(range(1, 2001), protocol="llama.cpp", context=64, bos_token_id=None)
    windows = make_chunks(range(2000), protocol="windows", context=64, bos_token_id=None)
    keys = [
        reference_store.reference_key("sha256:a", chunks, 0),
        reference_store.reference_key("sha256:b", chunks, 0),
        reference_store.reference_key("sha256:a", chunks, 1),
        reference_store.reference_key("sha256:a", shifted, 0),
        reference_store.reference_key("sha256:a", windows, 0),
        reference_store.candidate_key("r", "m", "onnxruntime 1"),
        reference_store.candidate_key("r", "m", "onnxruntime 2"),
        reference_store.candidate_key("r", "n", "onnxruntime 1"),
    ]
    assert len(set(keys)) == len(keys)
    again = make_chunks(range(128, 2000), protocol="llama.cpp", context=64, bos_token_id=None)
    assert reference_store.reference_key("sha256:a", again, 0) == reference_store.reference_key("sha256:a", chunks, 2)


def test_what_is_stored_is_read_back_whole(own_store: Path) -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((30, 700)).astype(np.float32)
    targets = rng.integers(0, 700, 30)
    kept = keep(logits, targets)
    reference_store.write_reference("ab12", kept)
    read = reference_store.read_reference("ab12")
    assert read is not None and read.top_k == kept.top_k
    for name in ("ids", "logits", "log_sum", "tail", "nll", "top"):
        np.testing.assert_array_equal(getattr(read, name), getattr(kept, name))
    values = compare_logits(logits, logits, targets)
    reference_store.write_values("cd34", values)
    back = reference_store.read_values("cd34")
    assert back is not None
    np.testing.assert_array_equal(back.kl_divergence, values.kl_divergence)
    assert {path.parent.parent.name for path in own_store.rglob("*.bin")} == {"reference", "candidate"}
