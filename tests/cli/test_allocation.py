"""`--scheme auto` in `plan` and `build --dry-run`: what was chosen and why, in a table and as JSON."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgeforge.cli.build import build
from edgeforge.cli.plan import plan
from edgeforge.errors import DoesNotFit, UnusableInput, UsageError

pytest.importorskip("torch")

MAX_BYTES = 240_000


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One weighing for all tests, and not in the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("EDGEFORGE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def text(test_data: Path) -> list[str]:
    return ["--calibration", str(test_data / "calibration" / "tiny.txt.gz")]


def planned(model: Path, *arguments: str) -> Result:
    return CliRunner().invoke(plan, ["-t", "cpu", "-m", str(model), "--scheme", "auto", *arguments])


def done(result: Result) -> Result:
    assert result.exit_code == 0, result.exception
    return result


@pytest.fixture(scope="module")
def as_json(stories: Path, text: list[str], cache: Path) -> dict[str, dict[str, Any]]:
    result = done(planned(stories, "--max-bytes", str(MAX_BYTES), "--json", *text))
    assert result.stderr == ""
    found: dict[str, dict[str, Any]] = json.loads(result.stdout)
    return found


def test_a_plan_shows_what_was_chosen_and_why(
    stories: Path, text: list[str], as_json: dict[str, dict[str, Any]]
) -> None:
    shown = done(planned(stories, "--max-bytes", str(MAX_BYTES), *text)).stdout
    told = as_json["allocation"]
    lines = shown.splitlines()
    assert "  budget     at most 240,000 bytes" in lines
    assert f"  weights    {told['weights_bytes']:,} bytes" in lines
    assert "nats per token; none within the budget has less than 0.0" in shown
    start = next(number for number, line in enumerate(lines) if line.startswith("  Chosen"))
    table = lines[start + 1 : lines.index("", start)]
    chosen = told["chosen"]
    assert isinstance(chosen, list)
    assert len(table) == len(chosen)
    assert table[0].startswith("  embedding and output head  w8a16, groups of ")
    assert sum("query, key, value" in line for line in table) == 1  # a block's further schemes stand under it
    assert len({line.index("groups of") for line in table}) == 1
    assert "  Weights" not in shown  # the table of a plan with one scheme
    assert "  Memory" in lines


def test_json_tells_every_block_and_what_the_next_smaller_way_would_cost(
    as_json: dict[str, dict[str, Any]],
) -> None:
    told = as_json["allocation"]
    blocks = told["blocks"]
    assert isinstance(blocks, list)
    assert told["max_bytes"] == MAX_BYTES
    assert told["predicted_divergence"] == pytest.approx(sum(each["predicted_loss"] for each in blocks))
    assert told["predicted_divergence_bound"] == pytest.approx(told["predicted_divergence"], rel=1e-3)
    assert [each["block"] for each in blocks[:5]] == ["embedding", "qkv", "o", "gate_up", "down"]
    assert [each["layer"] for each in blocks[:6]] == [None, 0, 0, 0, 0, 1]
    assert blocks[1]["tensors"] == [f"model.layers.0.self_attn.{role}_proj.weight" for role in "qkv"]
    for each in blocks:
        smaller = each["next_smaller"]
        assert smaller is None or (
            smaller["bytes"] < each["bytes"] and smaller["predicted_loss"] > each["predicted_loss"]
        )
    assert any(each["next_smaller"] for each in blocks)
    assert as_json["fits"]


def test_verbose_shows_every_block(stories: Path, text: list[str]) -> None:
    shown = done(planned(stories, "--max-divergence", "0.05", "-v", *text)).stdout
    assert "  budget     a divergence of at most 0.05" in shown
    assert "none within the budget takes less than 2" in shown
    lines = shown.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("  Block "))
    assert len(lines[start + 1 :]) == 1 + 4 * 5
    assert [line.split("  ")[1].strip() for line in lines[start + 1 : start + 4]] == [
        "embedding and output head",
        "query, key, value",
        "output",
    ]


def test_a_dry_run_of_the_build_chooses_the_same_and_writes_nothing(
    stories: Path, text: list[str], as_json: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    arguments = ["-t", "cpu", "-m", str(stories), "-o", str(tmp_path / "bundle"), "--scheme", "auto", "--dry-run"]
    limit = ["--max-bytes", str(MAX_BYTES)]
    told = json.loads(done(CliRunner().invoke(build, [*arguments, *limit, *text, "--json"])).stdout)
    assert told["allocation"] == as_json["allocation"]
    shown = done(CliRunner().invoke(build, [*arguments, *limit, *text])).stdout
    assert "  Chosen " in shown
    assert shown.endswith("Nothing was written. `edgeforge plan` shows the whole plan.\n")
    assert not list(tmp_path.iterdir())


def test_shapes_alone_are_refused(stories: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_bytes((stories / "config.json").read_bytes())
    limit = ["--scheme", "auto", "--max-bytes", str(MAX_BYTES)]
    result = CliRunner().invoke(plan, ["-t", "cpu", "--config", str(config), *limit])
    assert isinstance(result.exception, UsageError)
    assert "which a config.json does not have" in result.exception.message
    result = CliRunner().invoke(plan, ["-t", "cpu", "-m", str(tmp_path), *limit])
    assert isinstance(result.exception, UnusableInput)
    assert "only the config.json" in result.exception.message
    assert result.exception.hint is not None


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["--scheme", "auto"], UsageError, "needs a limit"),
        (["--scheme", "auto", "--max-bytes", "1000"], DoesNotFit, "1,000 bytes are too few"),
        (["--max-bytes", "1000"], UsageError, "are for --scheme auto"),
        (["--calibration", "text.txt"], UsageError, "only to choose schemes"),
    ],
)
def test_what_does_not_go_together_is_refused(
    stories: Path, arguments: list[str], error: type[Exception], says: str
) -> None:
    result = CliRunner().invoke(plan, ["-t", "cpu", "-m", str(stories), *arguments])
    assert isinstance(result.exception, error)
    assert says in str(result.exception)
    assert result.stdout == ""
