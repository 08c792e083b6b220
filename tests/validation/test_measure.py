"""The whole comparison on the true fp32 model, with a candidate whose distance from it is known."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeforge.errors import GateFailed, UnusableInput, UsageError
from edgeforge.hardware import Gate
from edgeforge.model.checkpoint import Checkpoint, Source, open_checkpoint
from edgeforge.model.forward import forward
from edgeforge.validation import compare, validate
from edgeforge.validation.compare import ForwardLogits
from edgeforge.validation.measure import make_report
from edgeforge.validation.protocol import make_chunks
from edgeforge.validation.report import Reference

from .fakes import NoisyModel, answer_with, make_bundle

LOOSE = Gate(max_mean_kl_divergence=0.5, max_perplexity_ratio=2.0, confidence=0.95)
STRICT = Gate(max_mean_kl_divergence=1e-6, max_perplexity_ratio=1.000001, confidence=0.95)


@pytest.fixture(scope="module")
def checkpoint(stories: Path) -> Checkpoint:
    return open_checkpoint(str(stories))


@pytest.fixture(scope="module")
def tale(test_data: Path) -> str:
    """The first 40,000 characters of tiny.txt, the text of the published figure."""
    return gzip.decompress((test_data / "calibration" / "tiny.txt.gz").read_bytes()).decode()[:40_000]


def test_the_published_perplexity_of_the_fp32_model(
    checkpoint: Checkpoint, tale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7.919 over 18,907 tokens, from data/README.md: one BOS, windows of 512, every token scored."""
    answer_with(monkeypatch, NoisyModel(checkpoint, noise=0.0))
    bundle = make_bundle(tmp_path, checkpoint)
    report = validate(bundle, checkpoint, gate=STRICT, texts=[tale], protocol="windows")
    assert report.scored_tokens == 18_907
    assert report.reference_perplexity == pytest.approx(7.919, abs=0.0005)
    assert report.perplexity == pytest.approx(7.919, abs=0.0005)
    assert report.mean_kl_divergence < 1e-9  # also by way of what is kept: log-probabilities are kept whole
    assert report.same_top_token == 1.0
    assert report.verdict == "pass"


def test_a_disturbed_candidate_loses_what_theory_says(
    checkpoint: Checkpoint, tale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Independent noise of variance s^2 on the logits costs about s^2 / 2 (1 - sum p^2) nats."""
    noise = 0.1
    answer_with(monkeypatch, NoisyModel(checkpoint, noise=noise))
    steps: list[tuple[int, int]] = []
    report = validate(
        make_bundle(tmp_path, checkpoint),
        checkpoint,
        gate=STRICT,
        texts=[tale],
        chunks=6,
        progress=lambda done, total: steps.append((done, total)),
    )
    chunks = make_chunks(
        checkpoint.tokenizer.load().encode(tale, add_special_tokens=False).ids,
        protocol="llama.cpp",
        context=512,
        bos_token_id=1,
        limit=6,
    )
    concentration = np.concatenate([squares(checkpoint, ids)[256:511] for ids in chunks.ids])
    assert report.scored_tokens == 6 * 255
    assert report.mean_kl_divergence == pytest.approx(noise**2 / 2 * (1 - concentration.mean()), rel=0.05)
    assert report.verdict == "fail"
    assert len(report.chunks) == 6
    assert np.mean([chunk.mean_kl_divergence for chunk in report.chunks]) == pytest.approx(report.mean_kl_divergence)
    assert sum(report.kl_divergence_histogram.counts) == report.scored_tokens
    layers = checkpoint.architecture.num_hidden_layers
    assert steps == [(step, layers + 6) for step in range(1, layers + 7)]


def squares(checkpoint: Checkpoint, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """sum_v p_v^2 at every position."""
    logits = forward(checkpoint, ids).astype(np.float64)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return np.square(p).sum(1)


def test_the_default_text_is_scored_to_its_end(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, NoisyModel(checkpoint, noise=0.01))
    report = validate(make_bundle(tmp_path, checkpoint), checkpoint, gate=LOOSE)
    assert report.text.name == "built-in text"
    assert len(report.chunks) == (report.text.tokens + 1) // 512
    assert report.verdict == "pass"
    assert report.reference.is_source
    assert [note for note in report.notes if "64 likeliest" not in note] == []


def test_reading_the_weights_in_groups_changes_nothing(
    checkpoint: Checkpoint, tale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = checkpoint.tokenizer.load().encode(tale, add_special_tokens=False).ids
    chunks = make_chunks(ids, protocol="llama.cpp", context=64, bos_token_id=1, limit=5)

    def logits() -> tuple[int, list[NDArray[np.float32]], list[tuple[int, int]]]:
        steps: list[tuple[int, int]] = []
        reference = ForwardLogits(weights=checkpoint, chunks=chunks, progress=lambda a, b: steps.append((a, b)))
        return reference.groups, [reference(chunk) for chunk in range(5)], steps

    groups, whole, _ = logits()
    assert groups == 1
    monkeypatch.setattr(compare, "WORKING_BYTES", 2 * 4 * (4 * 64 + 2 * 172) * 64)  # two chunks at once
    groups, parts, steps = logits()
    assert groups == 3
    assert steps == [(step, 15) for step in range(1, 16)]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    np.testing.assert_allclose(whole[2], forward(checkpoint, chunks.ids[2])[chunks.positions], atol=1e-4)


def test_logits_that_are_not_finite_fail_the_gate_by_name(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, NoisyModel(checkpoint, noise=float("nan")))
    with pytest.raises(GateFailed, match="not finite"):
        validate(make_bundle(tmp_path, checkpoint), checkpoint, gate=LOOSE, chunks=2)


def test_everything_is_refused_before_a_model_computes(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = answer_with(monkeypatch, NoisyModel(checkpoint, noise=0.0))
    monkeypatch.setattr(
        "edgeforge.validation.compare.final_hidden", lambda *_, **__: pytest.fail("the reference computed")
    )
    bundle = make_bundle(tmp_path, checkpoint, context_length=256)
    with pytest.raises(UsageError, match="512 tokens is longer than the bundle's 256"):
        validate(bundle, checkpoint, gate=LOOSE, context=512)
    with pytest.raises(UnusableInput, match="needs 512"):
        validate(bundle, checkpoint, gate=LOOSE, texts=["a short text"])
    vocabulary = json.loads((bundle / "model" / "tokenizer.json").read_text())
    vocabulary["pre_tokenizer"] = {"type": "Whitespace"}
    (bundle / "model" / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(UnusableInput, match="other tokens"):
        validate(bundle, checkpoint, gate=LOOSE)
    assert model.calls == 0


def test_a_short_bundle_is_scored_with_its_own_context(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, NoisyModel(checkpoint, noise=0.0))
    report = validate(make_bundle(tmp_path, checkpoint, context_length=128), checkpoint, gate=LOOSE, chunks=3)
    assert (report.context, report.scored_tokens) == (128, 3 * 63)


def test_too_few_tokens_are_told_how_many_would_do(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, NoisyModel(checkpoint, noise=0.1))
    report = validate(make_bundle(tmp_path, checkpoint), checkpoint, gate=LOOSE, chunks=1, context=64)
    assert report.verdict == "undecided"
    needed = max(check.items_needed or 0 for check in report.gate.checks)
    assert needed > 31
    assert f"About {needed:,} scored tokens would do" in " ".join(report.notes)


@pytest.mark.parametrize(
    ("precision", "says"),
    [("Q4_1", "itself 4-bit (Q4_1)"), ("Q4_0, F32", "itself 4-bit"), ("Q8_0", "itself quantized (Q8_0)"), ("BF16", "")],
)
def test_an_original_that_is_quantized_is_called_so(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, says: str
) -> None:
    answer_with(monkeypatch, NoisyModel(checkpoint, noise=0.0))
    report = validate(make_bundle(tmp_path, checkpoint), checkpoint, gate=LOOSE, chunks=2)
    assert report.reference.precision == Source(kind="directory", precision="F32").precision
    notes = " ".join(remade(precision, report.gate.verdict))
    assert says in notes
    assert bool(notes) == bool(says)


def remade(precision: str, verdict: str) -> tuple[str, ...]:
    """The notes of a report on an original of that precision."""
    from edgeforge.validation.gate import judge
    from edgeforge.validation.report import Text
    from edgeforge.validation.statistics import compare_logits

    chunks = make_chunks(range(1024), protocol="llama.cpp", context=512, bos_token_id=None)
    logits = np.random.default_rng(0).standard_normal((510, 1024)).astype(np.float32)
    values = compare_logits(logits, logits, np.arange(510))
    reference = Reference(name="demo", precision=precision, fingerprint="sha256:0", is_source=True)
    report = make_report(
        values,
        chunks,
        gate=judge(values, 255, LOOSE),
        target="cpu",
        manifest_sha256="0" * 64,
        reference=reference,
        text=Text(name="text", sha256="0" * 64, tokens=1024),
        seconds=1.0,
    )
    assert report.verdict == verdict
    return report.notes
