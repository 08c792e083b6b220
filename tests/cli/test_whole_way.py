"""From the demo checkpoint to an answer, as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def edgeforge(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeforge.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, check=False, timeout=300)


@pytest.fixture(scope="module")
def built(demo_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    out = tmp_path_factory.mktemp("whole") / "demo-cpu"
    done = edgeforge("build", "--target", "cpu", "--model", "demo", "--out", out, "--chunks", "1", "--json")
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def test_the_build_reports_what_it_measured(built: tuple[Path, dict[str, object]]) -> None:
    out, document = built
    report = document["validation"]
    assert isinstance(report, dict)
    assert document["verdict"] in ("pass", "undecided")
    assert report["mean_kl_divergence"] < 0.02
    assert report == json.loads((out / "reports" / "validation.json").read_text())
    assert "itself 4-bit" in " ".join(report["notes"])


def test_it_answers_as_the_bundle_does_by_itself_and_tells_its_speed(built: tuple[Path, dict[str, object]]) -> None:
    question = ("What is the capital of France?", "--max-new-tokens", "16")
    done = edgeforge("run", built[0], *question, "--timings")
    assert done.returncode == 0, done.stderr
    assert "prompt tokens at" in done.stderr
    alone = subprocess.run(
        [sys.executable, built[0], *question], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout == alone.stdout
    assert len(done.stdout) > 10


def test_a_seed_makes_sampling_repeatable(built: tuple[Path, dict[str, object]]) -> None:
    arguments = ("run", built[0], "Once upon a time", "--raw", "--temperature", "1", "--max-new-tokens", "8", "--json")
    first, again = (json.loads(edgeforge(*arguments, "--seed", "5").stdout)["text"] for _ in range(2))
    other = json.loads(edgeforge(*arguments, "--seed", "6").stdout)["text"]
    assert first == again
    assert first != other


def test_a_chat_from_a_pipe_answers_every_line(built: tuple[Path, dict[str, object]]) -> None:
    done = edgeforge("chat", built[0], "--max-new-tokens", "4", stdin="Hello\n/reset\nHello\n/exit\nnever read\n")
    assert done.returncode == 0, done.stderr
    # Not the same answer twice: the second reuses the cache, and int8 activations turn rounding into words.
    assert len([line for line in done.stdout.splitlines() if line.strip()]) == 2


def test_bench_saves_its_figures_and_the_bundle_stays_whole(built: tuple[Path, dict[str, object]]) -> None:
    bundle = built[0]
    done = edgeforge(
        "bench", bundle, "--prompt-tokens", "32", "--new-tokens", "4", "--repeats", "1", "--save", "--json"
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["prefill_tokens_per_s"] > document["decode_tokens_per_s"] > 0
    assert document["peak_memory_bytes"] > 100_000_000
    assert document["roofline_decode_tokens_per_s"] > 0
    assert document == json.loads((bundle / "reports" / "bench.json").read_text())
    verified = edgeforge("verify", bundle, "--json")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["verdict"] == "ok"


def test_more_tokens_than_the_context_are_a_usage_error(built: tuple[Path, dict[str, object]]) -> None:
    done = edgeforge("bench", built[0], "--prompt-tokens", "100000")
    assert done.returncode == 2
    assert "do not fit the bundle's context" in done.stderr


def test_the_bundle_can_be_inspected(built: tuple[Path, dict[str, object]]) -> None:
    bundle = built[0]
    document = json.loads(edgeforge("inspect", bundle, "--json", "--tensors").stdout)
    assert document["kind"] == "bundle"
    assert document["parameters"] == 134_515_008
    assert document["source"]["name"] == "demo"
    assert document["size_bytes"] == sum(file["size"] for file in document["files"].values())
    text = edgeforge("inspect", bundle).stdout
    assert "134,515,008" in text
    assert "weights" in text
