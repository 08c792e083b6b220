"""Bench: the figures are medians after a warm-up, of the work they claim, on prompts that never change."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgeforge.runtime.stream import Chunk, Timings, Usage
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


class FakeModel:
    """Answers with timings that tell the generations apart; the first is slow, as first ones are."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], int, float, float, bool]] = []

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        repetition_penalty: float,
        ignore_eos: bool,
    ) -> Iterator[Chunk]:
        self.calls.append((list(prompt), max_new_tokens, temperature, repetition_penalty, ignore_eos))
        speed = 1.0 if len(self.calls) == 1 else 100.0 * len(self.calls)
        yield Chunk(text="a", token_ids=(1,))
        yield Chunk(
            text="",
            token_ids=(),
            finish_reason="length",
            usage=Usage(prompt_tokens=len(prompt), reused_tokens=0, completion_tokens=max_new_tokens),
            timings=Timings(prefill_ms=1.0, decode_ms=1.0, prefill_tokens_per_s=speed * 5, decode_tokens_per_s=speed),
        )


def test_the_warm_up_is_not_counted() -> None:
    assert measure(FakeModel(), [[1], [2], [3]], new_tokens=4) == (
        Run(prefill_tokens_per_s=1000.0, decode_tokens_per_s=200.0),
        Run(prefill_tokens_per_s=1500.0, decode_tokens_per_s=300.0),
    )


def test_decoding_is_greedy_ignores_the_end_and_does_not_count_the_prefills_token() -> None:
    model = FakeModel()
    measure(model, [[1, 2], [3, 4]], new_tokens=8)
    assert model.calls == [([1, 2], 9, 0.0, 1.0, True), ([3, 4], 9, 0.0, 1.0, True)]


def test_progress_counts_the_warm_up_too() -> None:
    seen: list[tuple[str, int, int]] = []
    measure(FakeModel(), [[1], [2], [3]], new_tokens=1, progress=lambda *call: seen.append(call))
    assert seen == [("measure", 1, 3), ("measure", 2, 3), ("measure", 3, 3)]


def test_a_prompt_is_the_same_every_time_and_inside_the_vocabulary() -> None:
    ids = random_ids(1000, 300, 2)
    assert ids == random_ids(1000, 300, 2)
    assert len(ids) == 1000
    assert min(ids) >= 0
    assert 200 < max(ids) < 300


def test_no_two_prompts_share_a_beginning_that_the_cache_would_keep() -> None:
    assert len({random_ids(16, 49152, repeat)[0] for repeat in range(50)}) == 50


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
        runs=(Run(prefill_tokens_per_s=700.0, decode_tokens_per_s=150.0),),
    )
    document = json.loads(write_bench(report, tmp_path).read_text())
    assert document == json.loads(json.dumps(report_to_json(report)))
    assert document["schema_version"] == 1
    assert document["decode_tokens_per_s"] == 150.0
    assert document["manifest_sha256"] == "ab" * 32
    assert (tmp_path / "reports" / "bench.json").is_file()
