"""How fast a bundle answers, measured through the runtime that users embed.

A prompt of random ids (fixed seed) is read behind a context that the cache holds, then tokens are generated greedily.
*Prefill* is prompt tokens over the time until the first new token, *decode* is the later tokens over the time they
took. Each figure is the median of repeats, which take turns with those of the other cases after an unmeasured run of
each, and with a measurement of what the machine's memory and arithmetic allow: the roofline. Memory is the process's,
so measure in a process of its own.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median, median_low
from typing import TYPE_CHECKING

import numpy as np

from edgeforge.errors import UsageError
from edgeforge.runtime.requirements import Device
from edgeforge.validation.benching.doubts import case_text, doubts
from edgeforge.validation.benching.limits import MachineProbe
from edgeforge.validation.benching.memory import peak_memory_bytes, resident_memory_bytes
from edgeforge.validation.benching.records import BenchReport, Case, Figures, MachineLimits, Run, Spread
from edgeforge.validation.benching.serial import report_to_json
from edgeforge.validation.benching.stopwatch import Stopwatch, time_in_onnxruntime
from edgeforge.validation.benching.streams import Generates, prime, run_once
from edgeforge.validation.benching.surroundings import Moment, between, load_average
from edgeforge.validation.benching.traffic import Traffic, traffic_of

if TYPE_CHECKING:
    from edgeforge.runtime.manifest import Manifest
    from edgeforge.runtime.model import Model

__all__ = ["BenchReport", "Case", "Run", "bench", "cases_of", "measure", "random_ids", "report_to_json", "write_bench"]

SEED = 20_240_731
# Prompts are numbered behind the contexts of any batch, so that none begins like another.
FIRST_PROMPT = 10_000
Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Measured:
    """A case's repeats so far."""

    case: Case
    runs: list[Run] = field(default_factory=list)
    peak_memory_bytes: int = 0


def cases_of(*, batches: Sequence[int], contexts: Sequence[int], prompts: Sequence[int]) -> tuple[Case, ...]:
    """Every combination, once, in the order asked for."""
    combinations = dict.fromkeys(product(batches, contexts, prompts))
    return tuple(Case(batch=b, context_tokens=c, prompt_tokens=p) for b, c, p in combinations)


def bench(
    bundle: Path,
    cases: Sequence[Case] = (Case(batch=1, context_tokens=0, prompt_tokens=128),),
    *,
    new_tokens: int = 64,
    repeats: int = 5,
    threads: int | None = None,
    device: Device | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Load the bundle, run every case once, then measure each `repeats` times.

    Raises UsageError when a case does not fit the bundle's context, and the runtime's own errors on loading.
    """
    from edgeforge import __version__

    load = load_average()
    started = time.perf_counter()
    model = _open(bundle, cases, new_tokens, threads, device)
    load_seconds = time.perf_counter() - started
    loaded_memory_bytes = resident_memory_bytes()
    manifest = model.manifest
    traffic = traffic_of(manifest)
    before = Moment.now()
    measured, limits = _measure_cases(model, cases, traffic, new_tokens, repeats, threads, progress)
    surroundings = between(before, Moment.now(), load)
    figures = tuple(_figures(found, manifest, traffic, limits, new_tokens) for found in measured)
    return BenchReport(
        edgeforge_version=__version__,
        manifest_sha256=hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest(),
        target=str(manifest.target["name"]),
        device=model.device,
        new_tokens=new_tokens,
        repeats=repeats,
        load_seconds=load_seconds,
        loaded_memory_bytes=loaded_memory_bytes,
        peak_memory_bytes=max(found.peak_memory_bytes for found in measured),
        weight_bytes_per_step=None if traffic is None else traffic.weight_bytes_per_step,
        kv_bytes_per_token=None if traffic is None else traffic.kv_bytes_per_token,
        limits=limits,
        surroundings=surroundings,
        cases=figures,
        warnings=doubts(figures, new_tokens=new_tokens, traffic=traffic, limits=limits, surroundings=surroundings),
    )


def random_ids(count: int, vocab_size: int, repeat: int) -> list[int]:
    """`count` ids below `vocab_size`, the same ones every time; no two repeats begin alike.

    The runtime keeps the cache of a prompt's beginning, so that a prompt measured twice would cost nothing.
    """
    ids: list[int] = np.random.default_rng((SEED, repeat)).integers(0, vocab_size, count).tolist()
    return [repeat % vocab_size, *ids[1:]]


def measure(
    model: Generates, prompts: Sequence[Sequence[int]], *, new_tokens: int, progress: Progress | None = None
) -> tuple[Run, ...]:
    """Generate `new_tokens` after the first one for each prompt; the first prompt is the warm-up and thrown away."""
    runs = []
    for done, prompt in enumerate(prompts, start=1):
        runs.append(run_once(model, [prompt], new_tokens=new_tokens, watch=None))
        if progress is not None:
            progress("measure", done, len(prompts))
    return tuple(runs[1:])


def write_bench(report: BenchReport, bundle: Path) -> Path:
    """Write BUNDLE/reports/bench.json; the bundle must be sealed again afterwards."""
    path = bundle / "reports" / "bench.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report_to_json(report), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _open(bundle: Path, cases: Sequence[Case], new_tokens: int, threads: int | None, device: Device | None) -> "Model":
    from edgeforge import runtime

    most = max(case.batch for case in cases)
    model = runtime.load(
        bundle,
        threads=threads,
        device=device,
        batch=None if most == 1 else most,  # for one sequence, what an app gets that says nothing
        prefix_cache_bytes=_prefix_cache_bytes(runtime.read_manifest(bundle), cases, new_tokens),
    )
    room = model.manifest.model.context_length
    for case in cases:
        if case.context_tokens + case.prompt_tokens + new_tokens >= room:
            asked = f"{case_text(case)} and {new_tokens} new tokens"
            raise UsageError(f"{asked} do not fit the bundle's context of {room}", hint="ask for fewer tokens")
    model.warm_up()
    return model


def _prefix_cache_bytes(manifest: "Manifest", cases: Sequence[Case], new_tokens: int) -> int | None:
    """Room for the contexts of all sequences, and what was read behind them meanwhile; None where what the runtime
    keeps anyway is enough, or another engine keeps it.
    """
    most = max(2 * case.batch * (case.context_tokens + case.prompt_tokens + new_tokens) for case in cases)
    context = manifest.model.context_length
    if manifest.engine is not None or most <= context or not any(case.context_tokens for case in cases):
        return None
    from edgeforge.runtime.slots import one_context_bytes

    return -(-most * one_context_bytes(manifest.model) // context)


def _measure_cases(
    model: "Model",
    cases: Sequence[Case],
    traffic: Traffic | None,
    new_tokens: int,
    repeats: int,
    threads: int | None,
    progress: Progress | None,
) -> tuple[list[Measured], MachineLimits | None]:
    """Small cases first, so that the memory after a case's first run is what that case takes."""
    measured = [Measured(case=case) for case in cases]
    prompts = Prompts(vocab_size=model.manifest.model.vocab_size)
    done, total = 0, len(cases) * (repeats + 1)

    def run(found: Measured, watch: Stopwatch | None) -> Run:
        nonlocal done
        contexts, ids = prompts.of(found.case)
        prime(model, contexts)
        result = run_once(model, ids, new_tokens=new_tokens, watch=watch)
        done += 1
        if progress is not None:
            progress("measure", done, total)
        return result

    for found in sorted(measured, key=lambda found: (found.case.batch, _tokens(found.case))):
        run(found, None)
        found.peak_memory_bytes = peak_memory_bytes()
    with _probe(model, traffic, threads) as probe, _watch(model) as watch:
        for _ in range(repeats):
            for found in measured:
                if probe is not None:
                    probe.sample()
                found.runs.append(run(found, watch))
        return measured, None if probe is None else probe.limits()


def _tokens(case: Case) -> int:
    return case.context_tokens + case.prompt_tokens


@dataclass(slots=True, kw_only=True)
class Prompts:
    """Contexts that stay, and prompts that are never the same twice."""

    vocab_size: int
    given: int = 0

    def of(self, case: Case) -> tuple[list[list[int]], list[list[int]]]:
        """For each sequence, what the cache should hold, and the whole prompt."""
        contexts = [self._ids(case.context_tokens, sequence) for sequence in range(case.batch)]
        first = FIRST_PROMPT + self.given
        self.given += case.batch
        new = [self._ids(case.prompt_tokens, first + sequence) for sequence in range(case.batch)]
        return contexts, [context + ids for context, ids in zip(contexts, new, strict=True)]

    def _ids(self, count: int, number: int) -> list[int]:
        return random_ids(count, self.vocab_size, number) if count else []


@contextmanager
def _probe(model: "Model", traffic: Traffic | None, threads: int | None) -> Iterator[MachineProbe | None]:
    """None where the processor's limits are not those of the device."""
    if model.device != "cpu":
        yield None
        return
    from edgeforge.runtime.graph import default_threads

    weights = 0 if traffic is None else traffic.weight_bytes_per_step
    probe = MachineProbe(weight_bytes=weights, threads=threads or default_threads())
    try:
        yield probe
    finally:
        probe.close()


@contextmanager
def _watch(model: "Model") -> Iterator[Stopwatch | None]:
    """None for bundles that other engines run."""
    if model.manifest.engine is not None:
        yield None
        return
    with time_in_onnxruntime() as watch:
        yield watch


def _figures(
    found: Measured, manifest: "Manifest", traffic: Traffic | None, limits: MachineLimits | None, new_tokens: int
) -> Figures:
    def decode_bound(bytes_per_s: object) -> float | None:
        if traffic is None or not isinstance(bytes_per_s, int | float):
            return None
        return traffic.decode_tokens_per_s(found.case, new_tokens=new_tokens, bytes_per_s=bytes_per_s)

    shares = [run.python_share for run in found.runs if run.python_share is not None]
    prefill_bound = None
    if traffic is not None and limits is not None:
        prefill_bound = limits.int8_operations_per_s.median / traffic.prompt_operations_per_token
    return Figures(
        case=found.case,
        prefill_tokens_per_s=Spread.of([run.prefill_tokens_per_s for run in found.runs]),
        decode_tokens_per_s=Spread.of([run.decode_tokens_per_s for run in found.runs]),
        time_to_first_token_ms=Spread.of([run.time_to_first_token_ms for run in found.runs]),
        reused_tokens=median_low(run.reused_tokens for run in found.runs),
        python_share=median(shares) if shares else None,
        peak_memory_bytes=found.peak_memory_bytes,
        roofline_prefill_tokens_per_s=prefill_bound,
        roofline_decode_tokens_per_s=decode_bound(limits and limits.read_bytes_per_s.median),
        target_roofline_decode_tokens_per_s=decode_bound(manifest.profile.get("bandwidth_bytes_per_s")),
    )
