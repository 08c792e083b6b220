"""From safetensors to a 4-bit model on disk: seconds, peak memory, bytes; ours against each peer's own road."""

from collections.abc import Callable
from statistics import median

import big_model
import pytest
from builds import Built, edgeforge_build, genai_build, llama_cpp_build
from conftest import Bench
from processes import warm
from pytest_benchmark.fixture import BenchmarkFixture
from report import Report

TITLE = "Build"
PEAK_GB = 1.0
TARGETS = {"llama.cpp": 8.0, "onnxruntime-genai": 15.0}


@pytest.mark.timeout(3600)
def test_build(benchmark: BenchmarkFixture, bench: Bench, report: Report) -> None:
    """Before each of our rounds one peer has its turn; everybody finds the checkpoint in the page cache."""
    model, peers, logs = big_model.model_folder(bench.size), bench.peers, bench.logs
    folder = bench.built / model.name
    ours: list[Built] = []
    theirs: dict[str, Built] = {}

    def llama_cpp() -> None:
        if peers.llama_cpp is not None:
            file = folder / "llama.cpp-Q4_0.gguf"
            theirs["llama.cpp"] = llama_cpp_build(peers, model, file, threads=bench.threads, logs=logs)

    def genai() -> None:
        if peers.python is not None:
            out = folder / "genai-int4"
            theirs["onnxruntime-genai"] = genai_build(peers, model, out, threads=bench.threads, logs=logs)

    turns: list[Callable[[], None]] = [llama_cpp, genai]

    def peers_turn() -> None:
        if turns:
            warm(model)
            turns.pop(0)()
        warm(model)

    def our_turn() -> None:
        ours.append(edgeforge_build(model, bench.scratch / "bundle", threads=bench.threads, logs=logs))

    benchmark.pedantic(our_turn, setup=peers_turn, rounds=3, iterations=1)
    best = Built(
        seconds=median(built.seconds for built in ours),
        peak_bytes=max(built.peak_bytes for built in ours),
        output_bytes=ours[-1].output_bytes,
    )
    _tell(report, f"{TITLE}, {model.name}, {bench.threads} threads", best, theirs)
    if bench.size == "full":
        _compare_with_targets(report, best, theirs)
    benchmark.extra_info.update({tool: built.seconds / best.seconds for tool, built in theirs.items()})


def _tell(report: Report, title: str, ours: Built, theirs: dict[str, Built]) -> None:
    for tool, built in {"EdgeForge": ours, **theirs}.items():
        cells = {
            "tool": tool,
            "seconds": f"{built.seconds:.1f}",
            "peak memory": f"{built.peak_bytes / 1e9:.2f} GB",
            "output": f"{built.output_bytes / 1e9:.3f} GB",
            "EdgeForge is": "" if built is ours else f"{built.seconds / ours.seconds:.1f}x faster",
            "steps": built.steps,
        }
        report.row(title, cells)


def _compare_with_targets(report: Report, ours: Built, theirs: dict[str, Built]) -> None:
    for tool, built in theirs.items():
        report.at_least(f"build, against {tool}", built.seconds / ours.seconds, TARGETS[tool])
    report.at_most("build, peak memory", ours.peak_bytes / 1e9, PEAK_GB, "GB")
