"""A build that was stopped, by whatever, goes on where it was, and its bundle has the same bytes."""

import errno
import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgeforge import bundle as bundles
from edgeforge.errors import IntegrityError, UnusableInput, UsageError
from edgeforge.hardware import load_target
from edgeforge.model import positional
from edgeforge.model.placed_file import PlacedFile
from edgeforge.model.safetensors import open_directory
from edgeforge.pipeline import BuildOptions, build, build_all, checking, prepare, resolve_target, walk
from edgeforge.pipeline.calibrated import Learned
from edgeforge.pipeline.calibration_source import CalibrationTokens
from edgeforge.pipeline.chunks import Chunks
from edgeforge.pipeline.journal import Journal, read_entries
from edgeforge.pipeline.scales_file import load, save
from edgeforge.pipeline.weights import Filling, fill
from edgeforge.quantization.calibration import EMPTY, Calibration
from edgeforge.quantization.rtn import quantize
from edgeforge.runtime import verify

PROGRAM = (sys.executable, "-m", "edgeforge.cli")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A backend and what it is asked for; together they put codes, scales, zero points, single numbers and shards."""

    target: str
    scheme: str
    backend: str = "onnx"
    group_size: int | None = None
    tensor_parallel: int | None = None
    scales: bool = False

    def options(self, stories: Path, out: Path) -> BuildOptions:
        target = resolve_target(
            load_target(self.target),
            backend=self.backend,
            scheme=self.scheme,
            group_size=self.group_size,
            tensor_parallel=self.tensor_parallel,
            kv_cache=None if self.backend == "onnx" else "bf16",
        )
        scales = made_up_scales(stories, out.parent.parent / "scales.safetensors") if self.scales else None
        return BuildOptions(target=target, model=str(stories), out=out, validate=False, calibration=scales)


KINDS = {
    "onnx": Kind(target="cpu", scheme="w4a16", group_size=32),
    "modelopt": Kind(target="h100", scheme="fp8", backend="modelopt", scales=True),
    "compressed-tensors": Kind(target="l40s", scheme="fp8-dynamic", backend="compressed-tensors"),
    "tensorrt-llm": Kind(target="h100", scheme="fp8", backend="tensorrt-llm", tensor_parallel=2, scales=True),
}


def made_up_scales(stories: Path, path: Path) -> Path:
    """Measured ones take a forward pass."""
    if not path.exists():
        checkpoint = open_directory(stories)
        architecture = checkpoint.architecture
        inputs = {linear.name: 1.0 + number for number, linear in enumerate(architecture.linears())}
        caches = tuple(4.0 for _ in range(architecture.num_hidden_layers))
        save(Calibration(inputs=inputs, keys=caches, values=caches), path, fingerprint=checkpoint.fingerprint)
    return path


def asked(stories: Path, out: Path, kind: str = "onnx", **changes: object) -> BuildOptions:
    return replace(KINDS[kind].options(stories, out), **changes)  # type: ignore[arg-type]


def digests(bundle: Path) -> dict[str, str]:
    files = (path for path in sorted(bundle.rglob("*")) if path.is_file())
    return {str(path.relative_to(bundle)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors of stories260k are smaller than a piece; here they come in several."""
    monkeypatch.setattr(walk, "PIECE_ELEMENTS", 4096)


@pytest.fixture(scope="module")
def whole(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """The hashes of an uninterrupted build."""
    known: dict[str, dict[str, str]] = {}

    def of(kind: str) -> dict[str, str]:
        if kind not in known:
            out = tmp_path_factory.mktemp("whole") / "bundle"
            build(asked(stories, out, kind), progress=quiet)
            known[kind] = digests(out)
        return known[kind]

    return of


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


class Stop:
    """Progress that raises after `pieces` pieces, and counts them. What is only measured tells no progress."""

    def __init__(self, pieces: int, error: type[BaseException] | BaseException = KeyboardInterrupt) -> None:
        self.pieces, self.error, self.told = pieces, error, set[int]()

    @property
    def seen(self) -> int:
        return len(self.told)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == "quantize" and done not in self.told:
            self.told.add(done)
            if self.seen >= self.pieces:
                raise self.error


def stopped(options: BuildOptions, pieces: int = 40, error: type[BaseException] = KeyboardInterrupt) -> BaseException:
    with pytest.raises(error) as caught:
        build(options, progress=Stop(pieces, error))
    return caught.value


def workplace(out: Path) -> Path:
    return out.parent / f".{out.name}.partial"


def finished(out: Path) -> int:
    return sum(1 for _ in read_entries(workplace(out) / "journal"))


# it goes on


@pytest.mark.parametrize("threads", [1, 3])
def test_a_build_stopped_three_times_has_the_bytes_of_one_that_was_not(
    stories: Path, tmp_path: Path, kind: str, threads: int, whole: Callable[[str], dict[str, str]]
) -> None:
    out, done = tmp_path / "bundle", 0
    for threads_now in (threads, 2, threads):
        stopped(asked(stories, out, kind, threads=threads_now), pieces=15)
        assert not out.exists()
        assert finished(out) >= done + 13  # one may be only measured, one is under way
        done = finished(out)
    again = Stop(10_000)
    build(asked(stories, out, kind, threads=threads), progress=again)
    assert digests(out) == whole(kind)
    assert again.seen <= sum(1 for _ in pieces_of(stories)) - done + 1
    assert os.listdir(tmp_path) == ["bundle"]


def pieces_of(stories: Path) -> Iterator[tuple[int, int]]:
    checkpoint = open_directory(stories)
    for name in checkpoint.names:
        yield from walk.steps(checkpoint.tensor(name).shape)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_whatever_stops_a_build_it_says_how_to_go_on(stories: Path, tmp_path: Path, error: type[BaseException]) -> None:
    found = stopped(asked(stories, tmp_path / "out"), error=error)
    (told,) = found.__notes__
    assert told.endswith(" of 35 linears are done: run the same command to go on; --fresh starts again")
    assert 0 < int(told.split(maxsplit=1)[0]) < 35


def test_where_nothing_was_finished_nothing_is_left(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*asked: object, **told: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeforge.pipeline.fill", stop)
    with pytest.raises(KeyboardInterrupt) as caught:
        build(asked(stories, tmp_path / "out"), progress=quiet)
    assert not hasattr(caught.value, "__notes__")
    assert os.listdir(tmp_path) == []


def test_scales_are_measured_once(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = load(made_up_scales(stories, tmp_path / "scales.safetensors"), open_directory(stories))
    runs = []

    def measure(checkpoint: object, tokens: CalibrationTokens, *, progress: object) -> Calibration:
        runs.append(tokens)
        return replace(measured, text_sha256=tokens.text_sha256)

    monkeypatch.setattr("edgeforge.pipeline.calibration.measure", measure)
    (tmp_path / "place").mkdir()
    options = asked(stories, tmp_path / "place" / "out", "modelopt", calibration=None)
    stopped(options)
    build(options, progress=quiet)
    assert len(runs) == 1
    build(replace(options, replace=True), progress=quiet)
    assert len(runs) == 2  # nothing of the first is left


def test_what_was_packaged_before_the_stop_is_packaged_again(
    stories: Path, tmp_path: Path, whole: Callable[[str], dict[str, str]]
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "hash" and done == total:
            raise KeyboardInterrupt

    out, again = tmp_path / "bundle", Stop(1)
    with pytest.raises(KeyboardInterrupt):
        build(asked(stories, out), progress=stop)
    (workplace(out) / "bundle" / ".README.md.partial").write_text("half")
    (workplace(out) / "bundle" / "engine").mkdir()
    build(asked(stories, out), progress=again)
    assert again.seen == 0  # no weight was read
    assert digests(out) == whole("onnx")


def test_several_bundles_of_one_pass_go_on_each_by_its_own_journal(
    stories: Path, tmp_path: Path, whole: Callable[[str], dict[str, str]]
) -> None:
    options = [asked(stories, tmp_path / kind, kind, threads=1) for kind in ("onnx", "compressed-tensors")]
    with pytest.raises(KeyboardInterrupt):
        build_all(options, progress=Stop(30))
    shutil.rmtree(workplace(tmp_path / "onnx"))
    build_all(options, progress=quiet)
    for kind in ("onnx", "compressed-tensors"):
        assert digests(tmp_path / kind) == whole(kind)


def test_an_older_bundle_stays_until_the_new_one_is_whole(
    stories: Path, tmp_path: Path, whole: Callable[[str], dict[str, str]]
) -> None:
    out = tmp_path / "bundle"
    build(asked(stories, out, "modelopt"), progress=quiet)
    before = digests(out)
    options = asked(stories, out, replace=True)
    stopped(options)
    assert digests(out) == before
    build(options, progress=quiet)
    assert digests(out) == whole("onnx")
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_crash_between_two_renames_loses_no_bundle(stories: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    build(asked(stories, out), progress=quiet)
    workplace(out).mkdir()
    out.rename(workplace(out) / "replaced")
    with bundles.workplace(out):
        verify(out, "full")
    assert os.listdir(tmp_path) == ["bundle"]


def test_codes_that_were_chosen_on_text_are_put_again(stories: Path, tmp_path: Path) -> None:
    """They may be others, where the pass was made again on another processor."""
    checkpoint, plan = open_directory(stories), prepare(asked(stories, tmp_path / "out")).plan
    name = "model.layers.1.mlp.up_proj.weight"
    rows = checkpoint.tensor(name).rows(0, checkpoint.tensor(name).shape[0])

    def contents_after(scale: float, progress: Callable[[str, int, int], None], place: Path = tmp_path / "a") -> bytes:
        chosen = quantize(rows * np.float32(scale), plan.schemes[name])
        quantized = SimpleNamespace(names=(name,), tensor=lambda name: chosen)
        learned = Learned(quantized=quantized, samples=None, folder=place)  # type: ignore[arg-type]
        place.mkdir(exist_ok=True)
        with Journal(tmp_path / f"{place.name}.journal", place, {}) as journal:
            filling = Filling(plan=plan, calibration=EMPTY, learned=learned, folder=place, journal=journal)
            fill(checkpoint, [filling], chunks=Chunks(threads=1, elements=4096), progress=progress)
        return (place / "model.onnx.data").read_bytes()

    with pytest.raises(KeyboardInterrupt):
        contents_after(1, Stop(40))
    again = Stop(10_000)
    assert contents_after(2, again) == contents_after(2, quiet, tmp_path / "b")
    assert again.seen < 60


# what is believed


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_bytes_that_a_crash_tore_are_made_again(
    stories: Path, tmp_path: Path, kind: str, whole: Callable[[str], dict[str, str]]
) -> None:
    out, chance = tmp_path / "bundle", random.Random(7)
    stopped(asked(stories, out, kind), pieces=60)
    entries = list(read_entries(workplace(out) / "journal"))
    torn = chance.sample(entries, 5)
    for entry in torn:
        extent = chance.choice(entry.extents)
        damage(workplace(out) / "bundle" / "model" / extent.file, extent.offset + chance.randrange(extent.size))
    again = Stop(10_000)
    build(asked(stories, out, kind), progress=again)
    assert digests(out) == whole(kind)
    assert again.seen >= sum(1 for _ in pieces_of(stories)) - len(entries) + len(torn)


def test_a_journal_cut_anywhere_costs_no_more_than_its_last_line(
    stories: Path, tmp_path: Path, whole: Callable[[str], dict[str, str]]
) -> None:
    out, chance = tmp_path / "bundle", random.Random(8)
    stopped(asked(stories, out), pieces=30)
    journal = workplace(out) / "journal"
    content = journal.read_bytes()
    shutil.copytree(workplace(out), tmp_path / "copy")
    for cut in [0, 10, *(chance.randrange(len(content)) for _ in range(4))]:
        shutil.rmtree(workplace(out), ignore_errors=True)
        shutil.copytree(tmp_path / "copy", workplace(out))
        journal.write_bytes(content[:cut] + b"\0\xff")
        whole_lines = content[:cut].count(b"\n")
        again = Stop(10_000)
        build(asked(stories, out, replace=True), progress=again)
        assert again.seen == sum(1 for _ in pieces_of(stories)) - max(0, whole_lines - 1)
        assert digests(out) == whole("onnx")


def test_lost_weight_files_are_made_again(
    stories: Path, tmp_path: Path, kind: str, whole: Callable[[str], dict[str, str]]
) -> None:
    out = tmp_path / "bundle"
    stopped(asked(stories, out, kind))
    shutil.rmtree(workplace(out) / "bundle")
    build(asked(stories, out, kind), progress=quiet)
    assert digests(out) == whole(kind)


def test_of_a_damaged_checkpoint_nothing_is_kept(stories: Path, tmp_path: Path) -> None:
    """Its mended copy may have the same fingerprint, which samples it."""
    model = tmp_path / "model"
    shutil.copytree(stories, model)
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(np.full(8, np.nan, np.float32).tobytes())
    with pytest.raises(UnusableInput):
        build(asked(model, tmp_path / "out", threads=1), progress=quiet)
    assert os.listdir(tmp_path) == ["model"]


def test_a_file_that_changed_after_it_was_written_becomes_no_bundle(
    stories: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], dict[str, str]]
) -> None:
    out, check = tmp_path / "bundle", checking.checked_sha256
    options = asked(stories, out, kind)
    whole(kind)

    def damaged_first(path: Path, extents):  # type: ignore[no-untyped-def]
        damage(path, extents[len(extents) // 2].offset)
        return check(path, extents)

    with monkeypatch.context() as patch:
        patch.setattr("edgeforge.pipeline.completing.checked_sha256", damaged_first)
        with pytest.raises(IntegrityError, match="is not what was written there") as caught:
            build(options, progress=quiet)
    assert caught.value.exit_code == 6
    assert not out.exists()
    build(options, progress=quiet)
    assert digests(out) == whole(kind)


# what is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"context": 256}, "with context 512"),
        ({"group_size": 64}, "with group_size 32"),
        ({"algorithm": "rtn"}, "with algorithm search"),
    ],
)
def test_another_request_is_refused_and_fresh_starts_again(
    stories: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    out = tmp_path / "bundle"
    options = asked(stories, out)
    stopped(options)
    kept = finished(out)
    other = replace(options, target=resolve_target(options.target, **changes))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=f"an unfinished build of {out} was begun {said}") as caught:
        build(other, progress=quiet)
    assert "--fresh" in str(caught.value.hint)
    assert finished(out) == kept
    build(replace(other, fresh=True), progress=quiet)
    verify(out, "full")


def test_another_checkpoint_is_refused(stories: Path, tmp_path: Path) -> None:
    other = tmp_path / "model"
    shutil.copytree(stories, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 20_000.0}))
    stopped(asked(stories, tmp_path / "out"))
    with pytest.raises(UsageError, match="was begun of another checkpoint"):
        build(asked(other, tmp_path / "out"), progress=quiet)


def test_a_second_process_is_told_that_there_is_a_first(stories: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with (
        bundles.workplace(out),
        pytest.raises(UsageError, match=f"another process is building {out}") as caught,
    ):
        build(asked(stories, out), progress=quiet)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    build(asked(stories, out), progress=quiet)


# the disk


def test_a_write_error_at_any_point_leaves_something_to_go_on_with(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], dict[str, str]]
) -> None:
    out, write, count = tmp_path / "bundle", PlacedFile.write, 0
    options = asked(stories, out)

    def full(self: PlacedFile, array, offset: int):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        if count % 60 == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, array, offset)

    monkeypatch.setattr(PlacedFile, "write", full)
    failures = 0
    while not out.exists():
        try:
            build(options, progress=quiet)
        except OSError:
            failures += 1
            assert failures < 20
    assert failures >= 3
    assert digests(out) == whole("onnx")


def test_read_errors_and_short_reads_change_no_byte(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, whole: Callable[[str], dict[str, str]]
) -> None:
    out, read, count = tmp_path / "bundle", os.preadv, 0
    options = asked(stories, out, kind)
    whole(kind)

    def faulty(descriptor: int, buffers, offset: int) -> int:  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        if count % 97 == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        size = len(buffers[0])
        return read(descriptor, [buffers[0][: size if count % 5 else size // 2 + 1]], offset)

    monkeypatch.setattr(positional.os, "preadv", faulty)
    failures = 0
    while not out.exists():
        try:
            build(options, progress=quiet)
        except OSError:
            failures += 1
            assert failures < 20
    assert failures
    assert digests(out) == whole(kind)
