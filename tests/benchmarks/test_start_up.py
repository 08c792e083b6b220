"""How long a user waits before anything happens."""

import re
import subprocess
import sys
from pathlib import Path
from statistics import median

from builds import EDGEFORGE
from processes import run_child
from pytest_benchmark.fixture import BenchmarkFixture
from report import Report

TITLE = "Start-up"
ROUNDS = 15
CONFIG = Path("configs") / "meta-llama--Meta-Llama-3.1-405B_config.json"


def test_import(benchmark: BenchmarkFixture, report: Report, tmp_path: Path) -> None:
    """`import edgeforge` over bare Python, taking turns with it; -X importtime's own figure beside it."""
    bare: list[float] = []
    ours: list[float] = []

    def run(code: str) -> float:
        return run_child([sys.executable, "-c", code], log=tmp_path / "log", threads=1).seconds * 1000

    run("import edgeforge")
    benchmark.pedantic(
        lambda: ours.append(run("import edgeforge")),
        setup=lambda: bare.append(run("pass")),
        rounds=ROUNDS,
        iterations=1,
    )
    over = median(ours) - median(bare)
    report.row(TITLE, _row("python -c 'pass'", median(bare)))
    report.row(TITLE, _row("python -c 'import edgeforge'", median(ours)))
    report.row(TITLE, _row("the same by -X importtime", _import_time("edgeforge")))
    report.at_most("import edgeforge over bare Python", over, 20, "ms")


def _import_time(module: str) -> float:
    """Milliseconds that `import module` takes, everything it imports included."""
    command = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    lines = subprocess.run(command, capture_output=True, check=True, text=True).stderr
    found = re.search(rf"\|\s*(\d+) \| +{module}$", lines, re.MULTILINE)
    assert found is not None, lines
    return int(found[1]) / 1000


def test_help(benchmark: BenchmarkFixture, report: Report, tmp_path: Path) -> None:
    _measure(benchmark, report, tmp_path, "edgeforge --help", ["--help"], limit_ms=200)


def test_plan(benchmark: BenchmarkFixture, report: Report, tmp_path: Path, test_data: Path) -> None:
    """405 billion weights, from config.json alone. One card is too small: exit code 4, and what would fit."""
    options = ["plan", "--target", "h100", "--config", str(test_data / CONFIG)]
    _measure(benchmark, report, tmp_path, "edgeforge plan, Llama 3.1 405B on h100", options, limit_ms=1000)


def _measure(
    benchmark: BenchmarkFixture, report: Report, folder: Path, name: str, options: list[str], *, limit_ms: float
) -> None:
    times: list[float] = []
    console_script = Path(sys.executable).with_name("edgeforge")
    program = [str(console_script)] if console_script.is_file() else EDGEFORGE

    def run() -> None:
        child = run_child([*program, *options], log=folder / "log", threads=1, exit_codes=(0, 4))
        times.append(child.seconds * 1000)

    benchmark.pedantic(run, rounds=ROUNDS, iterations=1, warmup_rounds=1)
    report.row(TITLE, _row(name, median(times)))
    report.at_most(name, median(times), limit_ms, "ms")


def _row(name: str, milliseconds: float) -> dict[str, str]:
    return {"what": name, f"milliseconds, median of {ROUNDS}": f"{milliseconds:.1f}"}
