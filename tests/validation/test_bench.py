"""Bench: the figures are medians over repeats after a warm-up, of the work they claim, on prompts that never change."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeforge.validation.bench import (
    BenchReport,
    Run,
    measure,
    peak_memory_bytes,
    random_ids,
    report_to_json,
    roofline,
    write_bench,
)


class Clock:
    """Time that passes only while the decoder works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowDecoder:
    """Takes 10 ms a prompt token and 1 s a new token; the first run takes far longer, as first runs do."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.calls: list[list[int]] = []
        self.rewinds: list[int] = []

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        self.calls.append(list(ids))
        self.clock.now += 0.01 * len(ids) if len(ids) > 1 else 1.0
        if len(self.rewinds) == 1:
            self.clock.now += 100.0
        logits = np.zeros(50, np.float32)
        logits[len(self.calls) % 50] = 1.0
        return logits

    def rewind(self, length: int) -> None:
        self.rewinds.append(length)


def test_the_warm_up_is_not_counted() -> None:
    clock = Clock()
    runs = measure(SlowDecoder(clock), range(128), new_tokens=4, repeats=3, clock=clock)
    assert len(runs) == 3
    for run in runs:
        assert run.prefill_seconds == pytest.approx(1.28)
        assert run.decode_seconds == pytest.approx(4.0)


def test_each_repeat_starts_empty_and_decodes_greedily_token_by_token() -> None:
    clock = Clock()
    decoder = SlowDecoder(clock)
    measure(decoder, [7, 8, 9], new_tokens=2, repeats=1, clock=clock)
    assert decoder.rewinds == [0, 0]
    assert decoder.calls == [[7, 8, 9], [1], [2], [7, 8, 9], [4], [5]]


def test_progress_counts_the_warm_up_too() -> None:
    clock = Clock()
    seen: list[tuple[str, int, int]] = []
    measure(SlowDecoder(clock), [1, 2], new_tokens=1, repeats=2, clock=clock, progress=lambda *call: seen.append(call))
    assert seen == [("measure", 1, 3), ("measure", 2, 3), ("measure", 3, 3)]


def test_the_prompt_is_the_same_every_time_and_inside_the_vocabulary() -> None:
    ids = random_ids(1000, 300)
    assert ids == random_ids(1000, 300)
    assert min(ids) >= 0
    assert 200 < max(ids) < 300


def test_peak_memory_is_in_bytes() -> None:
    block = np.ones(50_000_000, np.uint8)
    assert block.nbytes < peak_memory_bytes() < 1 << 40


@pytest.mark.parametrize(
    ("plan", "expected"), [({"decode_tokens_per_s": 250}, 250.0), ({}, None), ({"decode_tokens_per_s": "fast"}, None)]
)
def test_the_roofline_is_the_plans_or_absent(plan: dict[str, object], expected: float | None) -> None:
    assert roofline(plan) == expected


def test_the_saved_report_carries_units_and_the_manifests_digest(tmp_path: Path) -> None:
    report = BenchReport(
        edgeforge_version="0.1.0",
        manifest_sha256="ab" * 32,
        target="cpu",
        prompt_tokens=128,
        new_tokens=64,
        load_seconds=0.5,
        prefill_tokens_per_s=700.0,
        decode_tokens_per_s=150.0,
        peak_memory_bytes=1 << 28,
        roofline_decode_tokens_per_s=None,
        runs=(Run(prefill_seconds=0.2, decode_seconds=0.4),),
    )
    document = json.loads(write_bench(report, tmp_path).read_text())
    assert document == json.loads(json.dumps(report_to_json(report)))
    assert document["schema_version"] == 1
    assert document["decode_tokens_per_s"] == 150.0
    assert document["manifest_sha256"] == "ab" * 32
    assert (tmp_path / "reports" / "bench.json").is_file()
