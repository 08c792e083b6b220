"""A build gives the same bytes every time, and leaves a whole bundle or nothing."""

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from built import Build, build_once, quiet
from numpy.typing import NDArray

from edgeforge.errors import EdgeForgeError, OutOfResources, UnusableInput, UsageError
from edgeforge.hardware import load_target
from edgeforge.model.checkpoint import StoredCodes, StoredGrid
from edgeforge.model.safetensors import open_directory
from edgeforge.model.safetensors_writer import write_safetensors
from edgeforge.pipeline import BuildOptions, build, prepare, resolve_target
from edgeforge.pipeline.walk import Consumer, walk
from edgeforge.quantization import search
from edgeforge.quantization.rtn import quantize
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor, dequantize
from edgeforge.runtime import verify


def options(model: str | Path, out: Path, **changes: object) -> BuildOptions:
    asked = BuildOptions(target=load_target("cpu"), model=str(model), out=out, validate=False)
    return replace(asked, **changes)  # type: ignore[arg-type]


def digests(bundle: Path) -> dict[str, str]:
    """SHA-256 by path of everything but reports/, which holds timings."""
    files = (path for path in sorted(bundle.rglob("*")) if path.is_file() and "reports" not in path.parts)
    return {str(path.relative_to(bundle)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# the same bytes


@pytest.mark.parametrize("scheme", ["w4a16", "f32"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_two_builds_are_byte_identical_whatever_the_threads(
    stories: Path, stories_int4: Build, stories_f32: Build, tmp_path: Path, scheme: str, threads: int
) -> None:
    first = {"w4a16": stories_int4, "f32": stories_f32}[scheme]
    again = build_once(tmp_path, str(stories), scheme=scheme, group_size=32, threads=threads)
    if scheme == "w4a16":
        assert digests(again.bundle) == digests(first.bundle)
    else:  # built with the target's own group size, which the manifest tells
        assert digests(again.bundle / "model") == digests(first.bundle / "model")


@pytest.mark.slow
def test_two_builds_of_the_demo_are_byte_identical(demo_int4: Build, tmp_path: Path) -> None:
    assert digests(build_once(tmp_path, "demo", threads=1).bundle) == digests(demo_int4.bundle)


def test_validation_changes_nothing_that_the_manifest_lists(stories: Path, stories_int4: Build, tmp_path: Path) -> None:
    target = resolve_target(load_target("cpu"), group_size=32)
    asked = options(stories, tmp_path / "bundle", target=target, validate=True, chunks=2)
    result = build(asked, progress=quiet)
    assert result.validation is not None
    ours, theirs = digests(result.bundle), digests(stories_int4.bundle)
    for name in ("SHA256SUMS", "README.md", "sbom.cdx.json"):  # the first covers the report, the others tell of it
        assert ours.pop(name) != theirs.pop(name)
    assert ours == theirs
    verify(result.bundle, "full")


def test_the_path_of_the_checkpoint_is_nowhere_in_the_bundle(stories: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a-place-nobody-should-know"
    shutil.copytree(stories, copy)
    bundle = build_once(tmp_path, str(copy)).bundle
    for path in bundle.rglob("*"):
        if path.is_file():
            assert b"nobody-should-know" not in path.read_bytes(), path.name


def test_another_checkpoint_is_another_bundle(stories: Path, stories_int4: Build, tmp_path: Path) -> None:
    changed = changed_copy(stories, tmp_path / "changed", "model.layers.1.mlp.up_proj.weight", lambda w: w * 2)
    other = build_once(tmp_path, str(changed), group_size=32)
    differing = {path for path, sha in digests(other.bundle).items() if digests(stories_int4.bundle)[path] != sha}
    assert "model/model.onnx.data" in differing
    assert "manifest.json" in differing


# whole, or nothing


def everything_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def changed_copy(stories: Path, folder: Path, name: str, change) -> Path:  # type: ignore[no-untyped-def]
    """The checkpoint with one tensor changed by a function of its rows."""
    folder.mkdir()
    for path in stories.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    original = open_directory(stories)
    tensors = [original.tensor(tensor) for tensor in original.names]
    layout = [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]
    with write_safetensors(folder / "model.safetensors", layout, metadata={"format": "pt"}) as writer:
        for tensor in tensors:
            rows = tensor.rows(0, tensor.shape[0])
            writer.write(tensor.name, 0, change(rows) if tensor.name == name else rows)
    return folder


def poison(value: float):  # type: ignore[no-untyped-def]
    def change(rows: np.ndarray) -> np.ndarray:
        rows.reshape(-1)[rows.size // 2] = value
        return rows

    return change


TENSORS = [
    "model.embed_tokens.weight",
    "model.layers.2.mlp.down_proj.weight",
    "model.layers.4.self_attn.k_proj.weight",
    "model.layers.3.input_layernorm.weight",
    "model.norm.weight",
]


@pytest.mark.parametrize("scheme", ["w4a16", "f32", "f16"])
@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_checkpoint_with_nan_or_infinity_is_refused_by_name(
    stories: Path, tmp_path: Path, scheme: str, name: str, value: float
) -> None:
    model = changed_copy(stories, tmp_path / "model", name, poison(value))
    out = tmp_path / "out" / "bundle"
    target = resolve_target(load_target("cpu"), scheme=scheme)
    with pytest.raises(UnusableInput, match=name) as caught:
        build(options(model, out, target=target), progress=quiet)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert everything_in(out.parent) == []


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("scheme", ["w4a16", "f16"])
def test_a_weight_that_float16_cannot_hold_is_refused_by_name(
    stories: Path, tmp_path: Path, scheme: str, name: str
) -> None:
    model = changed_copy(stories, tmp_path / "model", name, poison(1e9))
    target = resolve_target(load_target("rtx4090"), scheme=scheme)
    with pytest.raises(UnusableInput, match=name):
        build(options(model, tmp_path / "out" / "bundle", target=target), progress=quiet)
    assert everything_in(tmp_path / "out") == []


def test_an_existing_destination_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(UsageError, match="exists"):
        build(options("no-such-model", tmp_path / "bundle"), progress=quiet)


def test_a_disk_too_small_is_told_before_the_work(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutOfResources, match="free") as caught:
        build(options(stories, tmp_path / "out" / "bundle"), progress=quiet)
    assert caught.value.exit_code == 8
    assert not (tmp_path / "out").exists()


def test_preparing_writes_nothing(stories: Path, tmp_path: Path) -> None:
    prepared = prepare(options(stories, tmp_path / "out" / "bundle"))
    assert prepared.plan.disk_bytes > 0
    assert everything_in(tmp_path) == []


def test_the_disk_was_predicted(stories_int4: Build, demo_int4: Build) -> None:
    """Enough for the bundle, and not much more."""
    for built, slack in ((stories_int4, 3_000_000), (demo_int4, 5_000_000)):
        size = sum(path.stat().st_size for path in built.bundle.rglob("*") if path.is_file())
        assert size <= built.plan.disk_bytes <= size + slack


# codes that the checkpoint already holds


@dataclass(frozen=True)
class Q4Tensor:
    """A matrix as a Q4_0 file holds it."""

    name: str
    weights: NDArray[np.float32]
    dtype: str = "Q4_0"
    grid: StoredGrid | None = StoredGrid(bits=4, group_size=32, offset=False)  # noqa: RUF009  (frozen)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weights.shape

    def _stored(self, start: int, stop: int) -> QuantizedTensor:
        return quantize(self.weights[start:stop], QuantizationScheme(name="w4a16", bits=4, group_size=32))

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return dequantize(self._stored(start, stop))

    def announce(self, start: int, stop: int) -> None:
        pass

    def stored_codes(self, start: int, stop: int) -> StoredCodes:
        stored = self._stored(start, stop)
        return StoredCodes(codes=stored.codes, scales=stored.scales, offsets=None)


@dataclass(frozen=True)
class OneTensor:
    held: Q4Tensor

    @property
    def names(self) -> tuple[str, ...]:
        return (self.held.name,)

    def tensor(self, name: str) -> Q4Tensor:
        return self.held


@pytest.mark.parametrize(
    ("scheme", "carried"),
    [
        (QuantizationScheme(name="w4a16", bits=4, group_size=32), True),
        (QuantizationScheme(name="w4a16", bits=4, group_size=32, scale_dtype="f16"), True),
        # As where a block mixes Q4_0 with something else, and the target's own scheme is asymmetric.
        (QuantizationScheme(name="w4a16", bits=4, group_size=32, symmetric=False), False),
        (QuantizationScheme(name="w4a16", bits=4, group_size=64), False),
        (QuantizationScheme(name="w8a16", bits=8, group_size=32), False),
    ],
)
@pytest.mark.parametrize("algorithm", ["rtn", "search"])
def test_stored_codes_are_carried_over_only_where_the_scheme_is_theirs(
    scheme: QuantizationScheme, carried: bool, algorithm: Literal["rtn", "search"]
) -> None:
    tensor = Q4Tensor("q", np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32))
    got: list[QuantizedTensor] = []
    walk(
        OneTensor(tensor),  # type: ignore[arg-type]
        [
            Consumer(
                schemes={"q": scheme},
                put=lambda name, start, rows: got.append(rows),  # type: ignore[arg-type]
                algorithm=algorithm,
            )
        ],
        threads=1,
        progress=lambda done, total: None,
    )
    (found,) = got
    assert found.scheme == scheme
    assert (found.zero_points is None) == scheme.symmetric
    if carried:
        np.testing.assert_array_equal(found.codes, tensor.stored_codes(0, 64).codes)
        np.testing.assert_array_equal(dequantize(found), tensor.rows(0, 64))
    else:
        expected = {"rtn": quantize, "search": search.quantize}[algorithm](tensor.rows(0, 64), scheme)
        np.testing.assert_array_equal(dequantize(found), dequantize(expected))


def test_bundles_of_one_pass_may_choose_their_codes_differently(stories: Path) -> None:
    """And those that agree share the work: the very same object is put."""
    scheme = QuantizationScheme(name="w4a16", bits=4, group_size=32)
    name = "model.layers.0.mlp.up_proj.weight"
    got: dict[int, object] = {}
    consumers = [
        Consumer(
            schemes={name: scheme},
            put=lambda found, start, rows, at=at: got.__setitem__(at, rows) if found == name else None,  # type: ignore[misc]
            algorithm=algorithm,
        )
        for at, algorithm in enumerate(("rtn", "search", "search"))
    ]
    walk(open_directory(stories), consumers, threads=1, progress=lambda done, total: None)  # type: ignore[arg-type]
    assert got[1] is got[2]
    rounded, searched = got[0], got[1]
    assert isinstance(rounded, QuantizedTensor) and isinstance(searched, QuantizedTensor)
    w = open_directory(stories).tensor(name).rows(0, 172)
    assert np.square(w - dequantize(searched)).sum() < 0.97 * np.square(w - dequantize(rounded)).sum()


def test_the_default_without_text_is_searched_scales_and_they_lose_less(stories: Path, tmp_path: Path) -> None:
    divergence = {}
    for algorithm in ("auto", "rtn"):
        target = resolve_target(load_target("cpu"), group_size=32, algorithm=algorithm)
        result = build(options(stories, tmp_path / algorithm, target=target, validate=True, chunks=4), progress=quiet)
        assert result.validation is not None
        divergence[algorithm] = result.validation.mean_kl_divergence
        manifest = json.loads((result.bundle / "manifest.json").read_text())
        assert manifest["plan"]["target"]["algorithm"] == ("search" if algorithm == "auto" else "rtn")
    assert divergence["auto"] < divergence["rtn"]


# what is in it


def test_the_manifest_tells_what_was_built(stories_int4: Build) -> None:
    manifest = json.loads((stories_int4.bundle / "manifest.json").read_text())
    checkpoint = stories_int4.checkpoint
    assert manifest["source"]["fingerprint"] == checkpoint.fingerprint
    assert manifest["source"]["precision"] == "F32"
    assert manifest["model"]["context_length"] == 512  # the model's own limit, below the target's
    assert manifest["model"]["eos_token_ids"] == [2]
    assert manifest["model"]["add_bos"] is True
    assert manifest["determinism"]["reproducible"] is True
    assert manifest["requirements"]["provider"] == "CPUExecutionProvider"
    outside = ("manifest.json", "SHA256SUMS", "README.md", "sbom.cdx.json")
    files = {path for path in digests(stories_int4.bundle) if path not in outside}
    assert set(manifest["files"]) == files


def test_progress_reaches_its_total_in_every_stage(stories: Path, tmp_path: Path) -> None:
    last: dict[str, tuple[int, int]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        before = last.get(stage, (0, total))
        assert before[1] == total
        last[stage] = max(before[0], done), total

    asked = options(stories, tmp_path / "bundle", validate=True, chunks=2)
    result = build(asked, progress=progress)
    assert {"quantize", "hash", "validate"} <= set(last)
    assert all(done == total > 0 for done, total in last.values())
    assert last["quantize"][1] == result.plan.architecture.parameter_count


def test_a_failed_gate_is_in_the_report_and_the_bundle_stays(stories: Path, tmp_path: Path) -> None:
    target = resolve_target(load_target("cpu"), scheme="w4a16", group_size=128)
    strict = replace(target, gate=replace(target.gate, max_mean_kl_divergence=1e-6))
    result = build(options(stories, tmp_path / "bundle", target=strict, validate=True, chunks=4), progress=quiet)
    assert result.validation is not None
    assert result.validation.verdict == "fail"
    verify(result.bundle, "full")


def test_errors_have_a_hint(tmp_path: Path) -> None:
    with pytest.raises(EdgeForgeError) as caught:
        build(options(tmp_path / "nothing-here", tmp_path / "bundle"), progress=quiet)
    assert caught.value.hint
