"""Tokens per second of our bundles and of the peers' models, in one run, taking turns.

Each has its model open in a process of its own and waits while the others measure. A measurement reads prompts of 128
and of 512 random ids into an empty context (prefill, up to the choice of the first new token) and generates 64 more
after the short one (decode).

The demo is built twice: as `build --model demo` does, which keeps the codes of its Q4_1 file with exact offsets (6 bits
a weight in float32), and from the floats that the peers get, at llama.cpp's own 4.5 bits.
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

PROMPT_TOKENS = (128, 512)
NEW_TOKENS = 64
HERE = Path(__file__).resolve().parent
OURS, EXACT = "EdgeForge", "EdgeForge, codes of the demo's own file"
GENAI, LLAMA_CPP = "onnxruntime-genai, its own graph", "llama.cpp Q4_0"
GENAI_AS_IT_COMES = "the same, thread count left to genai"
# Of Q4_0's 4.5 bits a weight: 4, and a float32 scale for 64.
AT_4_5_BITS = ("--scheme", "w4a16", "--group-size", "64", "--symmetric")
TARGETS = {
    "demo": {(LLAMA_CPP, "decode"): 1.0, (LLAMA_CPP, "prefill"): 1.0, (GENAI, "decode"): 2.0, (GENAI, "prefill"): 2.1},
    "big": {(LLAMA_CPP, "decode"): 1.2, (LLAMA_CPP, "prefill"): 1.15, (GENAI, "decode"): 2.0, (GENAI, "prefill"): 4.0},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens per second; `prefill` by the prompt's length. `peak_bytes` of the process that ran the model, None where
    it was not told.
    """

    prefill: Mapping[int, float]
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
        tools = _open(stack, model, source, vocabulary, bench)
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
    if model == "big" and bench.size != "full":
        return
    for (peer, figure), target in TARGETS[model].items():
        if peer not in speeds:
            continue
        for what, ratio in _ratios(speeds[OURS], speeds[peer], figure).items():
            report.at_least(f"{what} of {source.name}, against {peer}", ratio, target)
            benchmark.extra_info[f"{what} over {peer}"] = ratio


def _ratios(ours: Speed, peer: Speed, figure: str) -> dict[str, float]:
    if figure == "decode":
        return {"decode": ours.decode / peer.decode}
    return {f"prefill {length}": ours.prefill[length] / peer.prefill[length] for length in PROMPT_TOKENS}


def _open(stack: ExitStack, model: str, source: Path, vocabulary: int, bench: Bench) -> dict[str, Measure]:
    """Build what is not built yet, ours always afresh, and open it."""
    bundle, threads, logs = bench.scratch / "bundle", bench.threads, bench.logs
    edgeforge_build(source, bundle, threads=threads, logs=logs, recipe=AT_4_5_BITS if model == "demo" else ())
    commands: dict[str, list[str | Path]] = {
        OURS: [sys.executable, HERE / "speed_of_edgeforge.py", bundle, str(threads)]
    }
    if model == "demo":
        exact = bench.scratch / "exact"
        edgeforge_build("demo", exact, threads=threads, logs=logs)
        commands[EXACT] = [*commands[OURS][:2], exact, str(threads)]
    if bench.peers.python is not None:
        folder = bench.built / source.name / "genai-int4"
        if not (folder / "genai_config.json").is_file():
            genai_build(bench.peers, source, folder, threads=threads, logs=logs)
        commands[GENAI] = [bench.peers.python, HERE / "speed_of_genai.py", folder, str(threads)]
        commands[GENAI_AS_IT_COMES] = [*commands[GENAI][:-1], "0"]
    tools: dict[str, Measure] = {}
    for tool, command in commands.items():
        log = logs / f"{Path(str(command[1])).stem}-{Path(str(command[2])).name}-{command[-1]}-threads.log"
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
        answers = {}
        for length in PROMPT_TOKENS:
            ids = random.Random(f"{round_number} {length}").choices(range(3, vocabulary - 3), k=length)
            # A first token of its own: nobody may find the beginning of this prompt in the cache of another one.
            ids[0] = 3 + round_number * len(PROMPT_TOKENS) + PROMPT_TOKENS.index(length)
            new_tokens = NEW_TOKENS if length == PROMPT_TOKENS[0] else 1
            answers[length] = worker.ask({"prompt": ids, "new_tokens": new_tokens})
        return Speed(
            prefill={length: length / answer["prefill_seconds"] for length, answer in answers.items()},
            decode=NEW_TOKENS / answers[PROMPT_TOKENS[0]]["decode_seconds"],
            peak_bytes=max(int(answer["peak_bytes"]) for answer in answers.values()),
        )

    return measure


def _llama_bench(peers: Peers, file: Path, threads: int) -> Measure:
    """llama-bench opens the file each time, which it does not count, and warms itself up."""
    assert peers.llama_cpp is not None
    program = peers.llama_cpp / "build" / "bin" / "llama-bench"
    options = [
        "-p",
        ",".join(map(str, PROMPT_TOKENS)),
        "-n",
        str(NEW_TOKENS),
        "-t",
        str(threads),
        "-r",
        "1",
        "-o",
        "json",
    ]

    def measure(round_number: int) -> Speed:
        command = [str(program), "-m", str(file), *options]
        done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment(threads))
        rows = json.loads(done.stdout)
        speeds = {(row["n_prompt"], row["n_gen"]): float(row["avg_ts"]) for row in rows}
        return Speed(prefill={length: speeds[length, 0] for length in PROMPT_TOKENS}, decode=speeds[0, NEW_TOKENS])

    return measure


def _median(speeds: list[Speed]) -> Speed:
    peaks = [speed.peak_bytes for speed in speeds if speed.peak_bytes is not None]
    return Speed(
        prefill={length: median(speed.prefill[length] for speed in speeds) for length in PROMPT_TOKENS},
        decode=median(speed.decode for speed in speeds),
        peak_bytes=max(peaks) if peaks else None,
    )


def _tell(report: Report, title: str, speeds: Mapping[str, Speed]) -> None:
    ours = speeds[OURS]
    for tool, speed in speeds.items():
        cells = {"tool": tool}
        cells |= {f"prefill {length} tok/s": f"{speed.prefill[length]:,.0f}" for length in PROMPT_TOKENS}
        cells["decode tok/s"] = f"{speed.decode:,.1f}"
        for figure in ("prefill", "decode"):
            ratios = {} if speed is ours else _ratios(ours, speed, figure)
            cells[f"EdgeForge {figure}"] = ", ".join(f"{ratio:.2f}x" for ratio in ratios.values())
        cells["peak memory"] = "" if speed.peak_bytes is None else f"{speed.peak_bytes / 1e9:.2f} GB"
        report.row(title, cells)
