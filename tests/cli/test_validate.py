"""`edgeforge validate`: refused before work starts, told in two forms, sealed, and ended by the gate's exit code."""

import json
from pathlib import Path

import pytest
from validation.fakes import NoisyModel, answer_with, make_bundle

from edgeforge.cli import main
from edgeforge.model.checkpoint import Checkpoint, open_checkpoint
from edgeforge.runtime import verify
from edgeforge.validation import read_report


@pytest.fixture
def checkpoint(stories: Path) -> Checkpoint:
    return open_checkpoint(str(stories))


def run(*argv: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["validate", *map(str, argv)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_good_bundle_is_reported_sealed_and_passed(
    checkpoint: Checkpoint,
    stories: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer_with(monkeypatch, NoisyModel(checkpoint, noise=0.01))
    bundle = make_bundle(tmp_path, checkpoint)
    assert run(bundle, "--reference", stories, "--chunks", "3") == 0
    out = capsys.readouterr().out
    for word in ("perplexity", "KL divergence", "same top token", "passed", "validation.html"):
        assert word in out
    report = read_report(bundle)
    assert report is not None
    assert report.verdict == "pass"
    verify(bundle, "full")  # the new reports are in SHA256SUMS
    assert "reports/validation.json" in (bundle / "SHA256SUMS").read_text()


def test_json_is_one_object_on_stdout(
    checkpoint: Checkpoint,
    stories: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer_with(monkeypatch, NoisyModel(checkpoint, noise=0.01))
    assert run(make_bundle(tmp_path, checkpoint), "--reference", stories, "--chunks", "2", "--json") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["scored_tokens"] == 510
    assert document["verdict"] == "pass"
    assert captured.err == ""


def test_a_bad_bundle_ends_with_5_and_keeps_its_report(
    checkpoint: Checkpoint,
    stories: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer_with(monkeypatch, NoisyModel(checkpoint, noise=3.0))
    bundle = make_bundle(tmp_path, checkpoint)
    assert run(bundle, "--reference", stories, "--chunks", "2") == 5
    captured = capsys.readouterr()
    assert "FAILED" in captured.out
    assert "error: " in captured.err
    report = read_report(bundle)
    assert report is not None
    assert report.verdict == "fail"
    verify(bundle, "full")


def test_refusals_come_before_any_model_computes(
    checkpoint: Checkpoint,
    stories: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = answer_with(monkeypatch, NoisyModel(checkpoint, noise=0.0))
    bundle = make_bundle(tmp_path, checkpoint)
    refusals: list[tuple[int, str, tuple[str | Path, ...]]] = [
        (2, "local checkpoint", (bundle,)),
        (3, "no text at", (bundle, "--reference", stories, "--data", tmp_path / "absent.txt")),
        (3, "no model at", (bundle, "--reference", tmp_path / "absent")),
        (2, "longer than the bundle's 512", (bundle, "--reference", stories, "--context", "513")),
        (2, "--chunks", (bundle, "--reference", stories, "--chunks", "0")),
        (2, "--protocol", (bundle, "--reference", stories, "--protocol", "other")),
        (3, "not a bundle", (tmp_path / "nowhere", "--reference", stories)),
    ]
    for code, says, argv in refusals:
        assert run(*argv) == code
        error = capsys.readouterr().err
        assert says in error
        assert "Traceback" not in error
    (bundle / "model" / "scoring.onnx").write_bytes(b"other bytes.")
    assert run(bundle, "--reference", stories) == 6
    assert "scoring.onnx" in capsys.readouterr().err
    assert model.calls == 0


def test_another_checkpoint_is_refused_unless_allowed(
    checkpoint: Checkpoint,
    stories: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer_with(monkeypatch, NoisyModel(checkpoint, noise=0.0))
    bundle = make_bundle(tmp_path, checkpoint, fingerprint="sha256:" + "1" * 64)
    assert run(bundle, "--reference", stories) == 3
    assert "not the checkpoint that the bundle was built from" in capsys.readouterr().err
    assert run(bundle, "--reference", stories, "--allow-other-reference", "--chunks", "2") == 0
    assert "not the checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "name"), [("demo", "demo"), ("hub", "org/model")])
def test_a_public_source_is_its_own_reference(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    asked: list[str] = []

    def opened(reference: str, *, revision: str | None = None) -> Checkpoint:
        asked.append(reference)
        return checkpoint

    monkeypatch.setattr("edgeforge.pipeline.reference.open_checkpoint", opened)
    answer_with(monkeypatch, NoisyModel(checkpoint, noise=0.0))
    assert run(make_bundle(tmp_path, checkpoint, kind=kind, name=name), "--chunks", "2", "--quiet") == 0
    assert asked == [name]


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (("--limit", "5"), 2, "--limit is about tasks"),
        (("--tasks", "lambada_openai", "--limit", "five"), 2, "is no number of items"),
        (("--tasks", "lambada_openai", "--limit", "mmlu=5"), 2, "which is not asked"),
        (("--tasks", ","), 2, "the list of tasks is empty"),
        (("--tasks", "lambda_openai"), 2, "did you mean lambada_openai"),
        (("--tasks", "humaneval"), 2, "--allow-code-execution"),
        (("--probes", "neddle"), 3, "did you mean needle"),
        (("--page", "out.html"), 2, "--page goes with --compare"),
        (("--compare",), 2, "two bundles"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence_before_the_work(
    checkpoint: Checkpoint,
    stories: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    code: int,
    sentence: str,
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("no model is loaded")

    bundle = make_bundle(tmp_path, checkpoint)
    monkeypatch.setattr("edgeforge.runtime.load", load)
    assert run(bundle, "--reference", stories, *options) == code
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("error: ") == 1
