"""A budget of memory decides how much is under way at once, and nothing of the bytes."""

from pathlib import Path

import click
import pytest
from built import Build, quiet

from edgeforge.cli.sizes import Size
from edgeforge.errors import OutOfResources
from edgeforge.hardware import load_target
from edgeforge.pipeline import BuildOptions, build, prepare, resolve_target, walk
from edgeforge.pipeline.chunks import BASE_BYTES, PLAN_BYTES, READ_BYTES, share
from edgeforge.planning import BuildPlan, draft_plan
from tests.planning.shapes import LLAMA_405B


@pytest.fixture(scope="module")
def plan() -> BuildPlan:
    return draft_plan(LLAMA_405B, load_target("cpu"))


def test_a_budget_that_is_large_enough_changes_nothing(plan: BuildPlan) -> None:
    chunks = share(2_000_000_000, [plan], 8)
    assert (chunks.threads, chunks.elements) == (8, walk.PIECE_ELEMENTS)


@pytest.mark.parametrize("megabytes", [325, 350, 500, 1100])
@pytest.mark.parametrize("threads", [1, 4, 64])
@pytest.mark.parametrize("bundles", [1, 3])
def test_what_is_under_way_at_once_fits_the_budget(plan: BuildPlan, megabytes: int, threads: int, bundles: int) -> None:
    chunks = share(megabytes * 10**6, [plan] * bundles, threads)
    rows, width = next(walk.steps((1 << 20, 53248), chunks.elements))[1], 53248
    held = chunks.threads * rows * width * (READ_BYTES + bundles * PLAN_BYTES)
    assert BASE_BYTES + held <= megabytes * 10**6
    assert 1 <= chunks.threads <= threads


def test_too_little_is_refused_with_what_it_takes(plan: BuildPlan) -> None:
    with pytest.raises(OutOfResources, match="takes 314 MB of memory at least, and the build has 300 MB") as caught:
        share(300_000_000, [plan], 2)
    assert caught.value.exit_code == 8
    assert "--memory" in str(caught.value.hint)


def test_the_bytes_are_the_same_at_every_budget(stories: Path, stories_int4: Build, tmp_path: Path) -> None:
    target = resolve_target(load_target("cpu"), group_size=32)
    whole = (stories_int4.bundle / "model" / "model.onnx.data").read_bytes()
    for elements in (1 << 9, 1 << 13):
        memory = BASE_BYTES + 2 * elements * (READ_BYTES + PLAN_BYTES)
        asked = BuildOptions(
            target=target,
            model=str(stories),
            out=tmp_path / str(elements),
            validate=False,
            threads=2,
            memory_bytes=max(memory, BASE_BYTES + 8 * 172 * (READ_BYTES + PLAN_BYTES)),
        )
        assert (build(asked, progress=quiet).bundle / "model" / "model.onnx.data").read_bytes() == whole


def test_it_is_refused_before_the_work(stories: Path, tmp_path: Path) -> None:
    asked = BuildOptions(target=load_target("cpu"), model=str(stories), out=tmp_path / "out", memory_bytes=1000)
    with pytest.raises(OutOfResources):
        prepare(asked)


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("1.5 GiB", 3 << 29), ("500m", 5 * 10**8), ("77", 77), ("64kib", 1 << 16)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "GB", "2XB", "-1GB", "1e9", "two"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no size"):
        Size().convert(text, None, None)
