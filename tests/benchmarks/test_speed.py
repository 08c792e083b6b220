"""Tokens per second of our bundle and of the peers' models, in one run, taking turns.

Each has its model open in a process of its own and waits while the others measure. A measurement reads a prompt of 128
random ids into an empty context (prefill, up to the choice of the first new token) and generates 64 more (decode).
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import big_model
import pytest
from builds import Peers, edgeforge_build, genai_build, llama_cpp_build
from conftest import Bench
from processes import Worker, environment
from pytest_benchmark.fixture import BenchmarkFixture
from report import Report

PROMPT_TOKENS = 128
NEW_TOKENS = 64
HERE = Path(__file__).resolve().parent
OURS, GENAI, LLAMA_CPP = "EdgeForge", "onnxruntime-genai, its own graph", "llama.cpp Q4_0"
GENAI_AS_IT_COMES = "the same, thread count left to genai"
TARGETS = {"demo": {"decode": 1.4, "prefill": 2.0}, "big": {"decode": 2.0, "prefill": 3.0}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens per second. `peak_bytes` of the process that ran the model, None where it was not told."""

    prefill: float
    decode: float
    peak_bytes: int | None = None


Measure = Callable[[int], Speed]
"""One measurement; the round's number chooses the prompt."""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("model", ["demo", "big"])
def test_speed(model: str, benchmark: BenchmarkFixture, bench: Bench, report: Report) -> None:
    """One round: the peers measure once each, then we do. One unmeasured round goes first."""
    size = "demo" if model == "demo" else bench.size
    source = big_model.model_folder(size)
    vocabulary = int(json.loads((source / "config.json").read_text())["vocab_size"])
    with ExitStack() as stack:
        tools = _open(stack, "demo" if model == "demo" else source, source, vocabulary, bench)
        _warm_up(tools, report)
        found: dict[str, list[Speed]] = {tool: [] for tool in tools}

        def peers_turn() -> None:
            for tool in tools:
                if tool != OURS:
                    found[tool].append(tools[tool](len(found[tool]) + 1))

        def our_turn() -> None:
            found[OURS].append(tools[OURS](len(found[OURS]) + 1))

        benchmark.pedantic(our_turn, setup=peers_turn, rounds=bench.rounds, iterations=1)
    speeds = {tool: _median(each) for tool, each in found.items()}
    _tell(report, f"Speed, {source.name}, {bench.threads} threads, medians of {bench.rounds}", speeds)
    if GENAI in speeds and (model == "demo" or bench.size == "full"):
        for figure, target in TARGETS[model].items():
            ratio = getattr(speeds[OURS], figure) / getattr(speeds[GENAI], figure)
            report.at_least(f"{figure} of {source.name}, against onnxruntime-genai", ratio, target)
            benchmark.extra_info[f"{figure}_over_genai"] = ratio


def _open(stack: ExitStack, reference: str | Path, source: Path, vocabulary: int, bench: Bench) -> dict[str, Measure]:
    """Build what is not built yet, ours always afresh, and open it. `reference`: what our build is asked for."""
    bundle, threads, logs = bench.scratch / "bundle", bench.threads, bench.logs
    edgeforge_build(reference, bundle, threads=threads, logs=logs)
    commands: dict[str, list[str | Path]] = {
        OURS: [sys.executable, HERE / "speed_of_edgeforge.py", bundle, str(threads)]
    }
    if bench.peers.python is not None:
        folder = bench.built / source.name / "genai-int4"
        if not (folder / "genai_config.json").is_file():
            genai_build(bench.peers, source, folder, threads=threads, logs=logs)
        commands[GENAI] = [bench.peers.python, HERE / "speed_of_genai.py", folder, str(threads)]
        commands[GENAI_AS_IT_COMES] = [*commands[GENAI][:-1], "0"]
    tools: dict[str, Measure] = {}
    for tool, command in commands.items():
        log = logs / f"{Path(str(command[1])).stem}-{command[-1]}-threads.log"
        worker = stack.enter_context(Worker(command, log=log, threads=threads))
        tools[tool] = _asking(worker, vocabulary)
    if bench.peers.llama_cpp is not None:
        file = bench.built / source.name / "llama.cpp-Q4_0.gguf"
        if not file.is_file():
            llama_cpp_build(bench.peers, source, file, threads=threads, logs=logs)
        tools[LLAMA_CPP] = _llama_bench(bench.peers, file, threads)
    return tools


def _warm_up(tools: dict[str, Measure], report: Report) -> None:
    """One unmeasured round. llama-bench, which opens its file only now, is left out where it cannot run."""
    for tool, measure in list(tools.items()):
        try:
            measure(0)
        except subprocess.CalledProcessError as error:
            del tools[tool]
            report.row("Not measured", {"peer": f"{tool}: llama-bench ended with {error.returncode}"})


def _asking(worker: Worker, vocabulary: int) -> Measure:
    def measure(round_number: int) -> Speed:
        ids = random.Random(round_number).choices(range(3, vocabulary - 3), k=PROMPT_TOKENS)
        # A first token of its own: nobody may find the beginning of this prompt in the cache of the last one.
        answer = worker.ask({"prompt": [3 + round_number, *ids[1:]], "new_tokens": NEW_TOKENS})
        return Speed(
            prefill=PROMPT_TOKENS / answer["prefill_seconds"],
            decode=NEW_TOKENS / answer["decode_seconds"],
            peak_bytes=int(answer["peak_bytes"]),
        )

    return measure


def _llama_bench(peers: Peers, file: Path, threads: int) -> Measure:
    """llama-bench opens the file each time, which it does not count, and warms itself up."""
    assert peers.llama_cpp is not None
    program = peers.llama_cpp / "build" / "bin" / "llama-bench"
    options = ["-p", str(PROMPT_TOKENS), "-n", str(NEW_TOKENS), "-t", str(threads), "-r", "1", "-o", "json"]

    def measure(round_number: int) -> Speed:
        command = [str(program), "-m", str(file), *options]
        done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment(threads))
        rows = json.loads(done.stdout)
        speeds = {"decode" if row["n_gen"] else "prefill": float(row["avg_ts"]) for row in rows}
        return Speed(prefill=speeds["prefill"], decode=speeds["decode"])

    return measure


def _median(speeds: list[Speed]) -> Speed:
    peaks = [speed.peak_bytes for speed in speeds if speed.peak_bytes is not None]
    return Speed(
        prefill=median(speed.prefill for speed in speeds),
        decode=median(speed.decode for speed in speeds),
        peak_bytes=max(peaks) if peaks else None,
    )


def _tell(report: Report, title: str, speeds: Mapping[str, Speed]) -> None:
    ours = speeds[OURS]
    for tool, speed in speeds.items():
        cells = {
            "tool": tool,
            f"prefill {PROMPT_TOKENS} tok/s": f"{speed.prefill:,.0f}",
            "decode tok/s": f"{speed.decode:,.1f}",
            "EdgeForge prefill": "" if speed is ours else f"{ours.prefill / speed.prefill:.2f}x",
            "EdgeForge decode": "" if speed is ours else f"{ours.decode / speed.decode:.2f}x",
            "peak memory": "" if speed.peak_bytes is None else f"{speed.peak_bytes / 1e9:.2f} GB",
        }
        report.row(title, cells)
