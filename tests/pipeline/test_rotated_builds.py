"""A rotated build answers like the original, says what was done, and is refused where a rotation makes no sense."""

import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from built import quiet

from edgeforge.cli import main
from edgeforge.errors import UsageError
from edgeforge.hardware import Target, load_target, target_from_json, target_to_json
from edgeforge.model.checkpoint import StoredGrid, open_checkpoint
from edgeforge.model.forward import forward
from edgeforge.pipeline import BuildOptions, BuildResult, build, build_all
from edgeforge.planning import apply_overrides, draft_plan, make_plan, plan_from_json, plan_to_json
from edgeforge.validation.stored import open_stored
from tests.planning.shapes import LLAMA_8B, SMOLLM2


def rotating(target: str = "cpu", **changes: object) -> Target:
    return apply_overrides(load_target(target), rotate=True, **changes)  # type: ignore[arg-type]


def asked(stories: Path, out: Path, target: Target, **changes: object) -> BuildOptions:
    options = BuildOptions(target=target, model=str(stories), out=out, validate=False, chunks=4)
    return replace(options, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def eight_bits(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[BuildResult, list[str]]:
    """A validated build of 8 bits, and what was said meanwhile."""
    said: list[str] = []
    out = tmp_path_factory.mktemp("rotated") / "bundle"
    options = asked(stories, out, rotating(scheme="w8a16", group_size=32), validate=True)
    return build(options, progress=quiet, log=said.append), said


def test_the_bundle_answers_like_the_original(eight_bits: tuple[BuildResult, list[str]]) -> None:
    report = eight_bits[0].validation
    assert report is not None
    assert report.reference.is_source
    assert report.mean_kl_divergence < 0.005  # a mistake in one matrix costs whole nats


def test_the_manifest_names_the_original_and_how_it_was_rotated(
    eight_bits: tuple[BuildResult, list[str]], stories: Path
) -> None:
    manifest = json.loads((eight_bits[0].bundle / "manifest.json").read_text())
    assert manifest["source"]["fingerprint"] == open_checkpoint(str(stories)).fingerprint
    assert manifest["plan"]["rotation"] == {"kind": "randomized Hadamard", "seed": 0, "unties_lm_head": True}
    assert manifest["plan"]["target"]["rotate"] is True
    plan = plan_from_json(manifest["plan"])
    assert plan == eight_bits[0].plan
    assert not plan.architecture.tie_word_embeddings


def test_the_log_says_what_untying_costs(eight_bits: tuple[BuildResult, list[str]]) -> None:
    """512 x 64 weights of 8 bits in groups of 32, each with a float32 scale and a zero point."""
    said = [line for line in eight_bits[1] if "output head" in line]
    assert len(said) == 1
    assert f"{512 * 64 + 512 * 2 * (4 + 1):,} bytes more" in said[0]


def digest(bundle: Path) -> str:
    return hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()


def test_the_same_bytes_on_any_number_of_threads(stories: Path, tmp_path: Path) -> None:
    target = rotating(group_size=32)
    for threads in (1, 2, 5):
        build(asked(stories, tmp_path / str(threads), target, threads=threads), progress=quiet)
    assert digest(tmp_path / "1") == digest(tmp_path / "2") == digest(tmp_path / "5")


def test_a_build_without_it_says_nothing_of_it(stories: Path, tmp_path: Path) -> None:
    said: list[str] = []
    target = apply_overrides(load_target("cpu"), group_size=32)
    manifest = build(asked(stories, tmp_path / "bundle", target), progress=quiet, log=said.append).manifest
    assert "rotation" not in manifest.plan
    assert not said


@pytest.mark.parametrize(
    ("target", "changes"),
    [
        ("h100", {"backend": "modelopt", "scheme": "fp8"}),
        ("h100", {"backend": "compressed-tensors", "scheme": "fp8-dynamic"}),
        ("l40s", {"backend": "tensorrt-llm", "scheme": "fp8"}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["backend"],
)
def test_every_backend_stores_a_model_that_answers_alike(
    stories: Path, tmp_path: Path, target: str, changes: dict[str, object]
) -> None:
    """And whatever it reads from config.json says that the head is there."""
    original = open_checkpoint(str(stories))
    plain = build(asked(stories, tmp_path / "plain", apply_overrides(load_target(target), **changes)), progress=quiet)  # type: ignore[arg-type]
    turned = build(asked(stories, tmp_path / "turned", rotating(target, **changes)), progress=quiet)
    ids = np.random.default_rng(0).integers(3, 512, 128)
    want = forward(original, ids)
    errors = []
    for result in (plain, turned):
        weights, _ = open_stored(result.plan, result.bundle / "model")
        errors.append(float(np.square(forward(weights, ids) - want).mean() / np.square(want).mean()))
    assert errors[1] < 2 * errors[0] < 0.2
    config = tmp_path / "turned" / "model" / "config.json"
    if "tie_word_embeddings" in config.read_text():
        assert json.loads(config.read_text())["tie_word_embeddings"] is False


def test_codes_may_be_chosen_on_text(stories: Path, test_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    text = tmp_path / "text.txt"
    with gzip.open(test_data / "calibration" / "tiny.txt.gz", "rt", encoding="utf-8") as file:
        text.write_text(file.read()[:600_000])
    divergence = {}
    for algorithm in ("rtn", "gptq"):
        options = asked(stories, tmp_path / algorithm, rotating(group_size=32, algorithm=algorithm), validate=True)
        result = build(replace(options, calibration=text if algorithm == "gptq" else None), progress=quiet)
        assert result.validation is not None
        divergence[algorithm] = result.validation.mean_kl_divergence
    assert divergence["gptq"] < 0.8 * divergence["rtn"]


def test_a_head_that_was_tied_is_stored_as_the_embedding_is() -> None:
    assert SMOLLM2.tie_word_embeddings
    plan = make_plan(SMOLLM2, rotating())
    assert plan.schemes["lm_head.weight"] == plan.schemes["model.embed_tokens.weight"]
    assert draft_plan(plan.architecture, plan.target) == plan  # as budgets make it again
    assert plan_from_json(plan_to_json(plan)) == plan
    untied = make_plan(LLAMA_8B, rotating())
    assert untied.target.lm_head == load_target("cpu").lm_head
    assert untied.architecture == LLAMA_8B


def test_a_target_may_ask_for_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('extends = "cpu"\ndescription = "mine"\nrotate = true\n')
    target = load_target(str(file))
    assert target.rotate
    assert target_from_json(target_to_json(target)) == target
    assert not apply_overrides(target, rotate=False).rotate


def test_a_manifest_from_before_there_was_a_choice_is_read() -> None:
    document = target_to_json(load_target("cpu"))
    del document["rotate"]
    assert target_from_json(document).rotate is False


def test_integers_that_would_be_kept_are_not_rotated() -> None:
    q4 = StoredGrid(bits=4, group_size=32, offset=False)
    stored = {linear.name: q4 for linear in SMOLLM2.linears()}
    with pytest.raises(UsageError, match="which a rotation would round anew"):
        make_plan(SMOLLM2, rotating(), stored=stored)
    q8 = {name: StoredGrid(bits=8, group_size=32, offset=False) for name in stored}
    plan = make_plan(SMOLLM2, rotating(), stored=q8)  # more bits than asked for: rounded in any case
    assert plan == make_plan(SMOLLM2, rotating())


def test_one_pass_rotates_for_all_or_for_none(stories: Path, tmp_path: Path) -> None:
    targets = [rotating(group_size=32), load_target("h100")]
    with pytest.raises(UsageError, match="for all its targets or for none"):
        build_all([asked(stories, tmp_path / target.name, target) for target in targets], progress=quiet)


@pytest.mark.parametrize("scheme", ["f32", "f16"])
def test_the_command_line_refuses_what_is_not_rounded(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], scheme: str
) -> None:
    argv = ["build", "--target", "cpu", "--model", str(stories), "--out", str(tmp_path / "bundle")]
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--rotate", "--scheme", scheme])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"scheme {scheme} rounds none" in error
    assert "hint: " in error
    assert not (tmp_path / "bundle").exists()


def test_the_plan_shows_it(stories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag, shown in (("--rotate", True), ("--no-rotate", False)):
        with pytest.raises(SystemExit) as ended:
            main(["plan", "--target", "cpu", "--model", str(stories), "--group-size", "32", flag])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        assert ("rotation  residual stream" in text) is shown
        assert ("apart from the embedding, takes 37.9 kB" in text) is shown
