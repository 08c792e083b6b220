"""How fast a bundle answers, measured through the runtime that users embed.

A prompt of random ids (fixed seed) is read into an empty context, then tokens are generated greedily one by one.
*Prefill* is prompt tokens over the time until the first new token, *decode* is the later tokens over the time they
took, each the median of the repeats after one unmeasured warm-up. Peak memory is the process's (ru_maxrss), so measure
in a process of its own.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np

from edgeforge.errors import UsageError
from edgeforge.runtime.requirements import Device
from edgeforge.runtime.stream import Chunk

SCHEMA_VERSION = 1
SEED = 20_240_731
Progress = Callable[[str, int, int], None]


class Generates(Protocol):
    """The part of `edgeforge.runtime.Model` that is measured."""

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        repetition_penalty: float,
        ignore_eos: bool,
    ) -> Iterator[Chunk]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One repeat."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """Medians over `runs`. `roofline_decode_tokens_per_s` is the plan's bound for the target, not for this machine."""

    edgeforge_version: str
    manifest_sha256: str
    target: str
    prompt_tokens: int
    new_tokens: int
    load_seconds: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    peak_memory_bytes: int
    roofline_decode_tokens_per_s: float | None
    runs: tuple[Run, ...]


def bench(
    bundle: Path,
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    repeats: int = 5,
    threads: int | None = None,
    device: Device | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Load the bundle, warm up once, measure `repeats` times.

    Raises UsageError when prompt and answer do not fit the bundle's context, and the runtime's own errors on loading.
    """
    from edgeforge import __version__, runtime

    started = time.perf_counter()
    model = runtime.load(bundle, threads=threads, device=device)
    manifest = model.manifest
    room = manifest.model.context_length
    if prompt_tokens + new_tokens >= room:
        asked = f"{prompt_tokens} prompt and {new_tokens} new tokens"
        raise UsageError(f"{asked} do not fit the bundle's context of {room}", hint="ask for fewer tokens")
    model.warm_up()
    load_seconds = time.perf_counter() - started
    prompts = [random_ids(prompt_tokens, manifest.model.vocab_size, repeat) for repeat in range(repeats + 1)]
    runs = measure(model, prompts, new_tokens=new_tokens, progress=progress)
    return BenchReport(
        edgeforge_version=__version__,
        manifest_sha256=hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest(),
        target=str(manifest.target["name"]),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        load_seconds=load_seconds,
        prefill_tokens_per_s=median(run.prefill_tokens_per_s for run in runs),
        decode_tokens_per_s=median(run.decode_tokens_per_s for run in runs),
        peak_memory_bytes=peak_memory_bytes(),
        roofline_decode_tokens_per_s=roofline(manifest.plan),
        runs=runs,
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
        chunks = model.generate(
            prompt, max_new_tokens=new_tokens + 1, temperature=0.0, repetition_penalty=1.0, ignore_eos=True
        )
        *_, last = chunks
        assert last.timings is not None, "the runtime ends every generation with its timings"
        runs.append(
            Run(
                prefill_tokens_per_s=last.timings.prefill_tokens_per_s,
                decode_tokens_per_s=last.timings.decode_tokens_per_s,
            )
        )
        if progress is not None:
            progress("measure", done, len(prompts))
    return tuple(runs[1:])


def peak_memory_bytes() -> int:
    """The most memory this process ever had resident; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def roofline(plan: Mapping[str, object]) -> float | None:
    """The plan's decode bound, bandwidth / bytes per token, where the manifest carries one."""
    value = plan.get("decode_tokens_per_s")
    return float(value) if isinstance(value, (int, float)) and value > 0 else None


def report_to_json(report: BenchReport) -> dict[str, object]:
    return {"schema_version": SCHEMA_VERSION, **asdict(report)}


def write_bench(report: BenchReport, bundle: Path) -> Path:
    """Write BUNDLE/reports/bench.json; the bundle must be sealed again afterwards."""
    path = bundle / "reports" / "bench.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report_to_json(report), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path
