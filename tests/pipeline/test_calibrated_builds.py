"""A build measures what its plans need, once, says what it measured, and takes it from a file instead."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from built import quiet

from edgeforge.cli import main
from edgeforge.hardware import load_target
from edgeforge.model.checkpoint import open_checkpoint
from edgeforge.pipeline import BuildOptions, build, build_all, prepare, scales_file
from edgeforge.planning import apply_overrides, plan_from_json
from edgeforge.validation.stored import open_stored


def asked(stories: Path, out: Path, **changes: str) -> BuildOptions:
    target = apply_overrides(load_target("h100"), backend="modelopt", **changes)  # type: ignore[arg-type]
    return BuildOptions(target=target, model=str(stories), out=out, validate=False)


def model_digests(bundle: Path) -> dict[str, str]:
    files = [path for path in bundle.rglob("*") if path.is_file() and "reports" not in path.parts]
    return {str(path.relative_to(bundle)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_saved_scales_give_the_same_bundle(stories: Path, tmp_path: Path) -> None:
    scales = tmp_path / "scales.safetensors"
    first = replace(asked(stories, tmp_path / "one", scheme="fp8", kv_cache="fp8"), save_calibration=scales)
    again = replace(asked(stories, tmp_path / "two", scheme="fp8", kv_cache="fp8"), calibration=scales)
    stages: list[str] = []
    build(first, progress=lambda stage, done, total: stages.append(stage))
    assert "calibrate" in stages
    stages.clear()
    build(again, progress=lambda stage, done, total: stages.append(stage))
    assert "calibrate" not in stages
    assert model_digests(tmp_path / "one") == model_digests(tmp_path / "two")


def test_the_scales_in_the_files_are_those_of_the_calibration(stories: Path, tmp_path: Path) -> None:
    from edgeforge.backends import load_readable

    scales = tmp_path / "scales.safetensors"
    build(
        replace(asked(stories, tmp_path / "one", scheme="fp8", kv_cache="fp8"), save_calibration=scales), progress=quiet
    )
    found = scales_file.load(scales, open_checkpoint(str(stories)))
    plan = prepare(asked(stories, tmp_path / "two", scheme="fp8", kv_cache="fp8")).plan
    stored = load_readable("modelopt").read_inputs(plan, tmp_path / "one" / "model")
    assert stored.inputs == pytest.approx({name: amax / 448 for name, amax in found.inputs.items()})
    assert stored.keys == pytest.approx([amax / 448 for amax in found.keys])
    assert stored.values == pytest.approx([amax / 448 for amax in found.values])


def test_the_manifest_tells_what_was_measured_and_only_then(stories: Path, tmp_path: Path) -> None:
    options = (
        asked(stories, tmp_path / "static", scheme="fp8", kv_cache="bf16"),
        asked(stories, tmp_path / "dynamic", scheme="fp8-dynamic", kv_cache="bf16"),
        BuildOptions(target=load_target("cpu"), model=str(stories), out=tmp_path / "graph", validate=False),
    )
    build_all(options, progress=quiet)
    static, dynamic, graph = (json.loads((each.out / "manifest.json").read_text()) for each in options)
    assert static["plan"]["calibration"]["tokens"] == 2048
    assert len(static["plan"]["calibration"]["text_sha256"]) == 64
    assert "scales measured" in static["determinism"]["note"]
    assert plan_from_json(static["plan"]).calibrates
    for manifest in (dynamic, graph):
        assert "calibration" not in manifest["plan"]
        assert "scales" not in manifest["determinism"]["note"]


def test_a_bundle_is_the_same_whatever_is_built_beside_it(stories: Path, tmp_path: Path) -> None:
    alone = asked(stories, tmp_path / "alone", scheme="fp8-dynamic", kv_cache="bf16")
    beside = replace(alone, out=tmp_path / "beside")
    build(alone, progress=quiet)
    build_all((asked(stories, tmp_path / "static", scheme="fp8", kv_cache="fp8"), beside), progress=quiet)
    assert model_digests(alone.out) == model_digests(beside.out)


def test_scales_may_be_left_to_the_engine(stories: Path, tmp_path: Path) -> None:
    options = replace(asked(stories, tmp_path / "bundle", scheme="fp8", kv_cache="bf16"), calibration="none")
    plan = build(options, progress=quiet).plan
    weights, _ = open_stored(plan, tmp_path / "bundle" / "model")
    assert weights.architecture == plan.architecture
    assert b"input_scale" not in (tmp_path / "bundle" / "model" / "model.safetensors").read_bytes()[:20_000]


def run(*argv: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["build", *map(str, argv)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_line_refuses_before_the_work(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time.")
    fp8 = ("--target", "h100", "--scheme", "fp8", "--model", stories, "--out", tmp_path / "bundle")
    refusals: list[tuple[int, str, tuple[str | Path, ...]]] = [
        (3, "there is no calibration text", (*fp8, "--calibration", tmp_path / "absent.txt")),
        (3, "are needed", (*fp8, "--calibration", short)),
        (2, "needs measured scales", (*fp8, "--kv-cache", "fp8", "--calibration", "none")),
        (2, "cannot be a scales file", (*fp8, "--save-calibration", tmp_path / "scales.txt")),
        (2, "nothing is calibrated", ("--target", "cpu", "--scheme", "w8a16", *fp8[4:], "--calibration", short)),
    ]
    for code, says, argv in refusals:
        assert run(*argv) == code, says
        error = capsys.readouterr().err
        assert says in error
        assert "hint: " in error
        assert not (tmp_path / "bundle").exists()
