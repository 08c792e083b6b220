"""Sequences that are computed together, join, leave, wait, or give their slot up are each as if they were alone."""

import asyncio
import gc
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_generate import collect, greedy_reference, ids_of
from tiny_bundle import Shape, make_bundle

from edgeforge import runtime
from edgeforge.runtime import batch, request, sampling
from edgeforge.runtime.engine import OnnxEngine
from edgeforge.runtime.errors import UnusableBundle
from edgeforge.runtime.graph import open_graph
from edgeforge.runtime.model import Model
from edgeforge.runtime.slots import Caches, Slots
from edgeforge.runtime.stream import Stream

PROMPTS = [[10, 200, 31, 4, 55], [1], [7, 8, 9], [10, 200, 31, 77, 78, 79, 80, 81], list(range(40, 60)), [3] * 12]


def caches(model: Model) -> Caches:
    assert isinstance(model._engine, OnnxEngine)
    return model._engine.batch._caches


def ask(model: Model, prompt: Sequence[int], count: int = 12) -> Stream:
    return model.generate(prompt, max_new_tokens=count, ignore_eos=True)


def read_in_turns(streams: Sequence[Stream]) -> list[list[int]]:
    """One chunk of each, round after round."""
    found: list[list[int]] = [[] for _ in streams]
    live = dict(enumerate(streams))
    while live:
        for number, stream in list(live.items()):
            chunk = next(stream, None)
            if chunk is None:
                del live[number]
            else:
                found[number] += chunk.token_ids
    return found


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_sequences_computed_together_are_each_as_alone(tiny: Path, size: int, exact: bool) -> None:
    model = runtime.load(tiny, threads=1, batch=size, exact=exact)
    found = read_in_turns([ask(model, prompt, 5 + 3 * at) for at, prompt in enumerate(PROMPTS)])
    assert found == [greedy_reference(prompt, 5 + 3 * at) for at, prompt in enumerate(PROMPTS)]


def test_one_run_computes_a_token_for_every_sequence(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = runtime.load(tiny, threads=1, batch=4)
    model.warm_up()
    rows: list[int] = []
    feed = Slots.feed
    monkeypatch.setattr(
        Slots, "feed", lambda self, first, fed, *a, **k: rows.append(len(fed)) or feed(self, first, fed, *a, **k)
    )
    read_in_turns([ask(model, prompt, 40) for prompt in PROMPTS[:4]])
    assert rows.count(4) >= 20
    assert len(rows) < 2 * 40


def test_who_leaves_makes_room_for_who_waits(tiny: Path) -> None:
    model = runtime.load(tiny, threads=1, batch=2)
    first, second = ask(model, PROMPTS[0], 3), ask(model, PROMPTS[2], 20)
    third = ask(model, PROMPTS[3], 20)
    assert read_in_turns([first, second, third]) == [
        greedy_reference(PROMPTS[0], 3),
        greedy_reference(PROMPTS[2], 20),
        greedy_reference(PROMPTS[3], 20),
    ]
    assert [bool(ids) for ids in caches(model).ids] == [True, True]


def test_a_slot_in_the_middle_is_filled_so_that_one_run_does(tiny: Path) -> None:
    model = runtime.load(tiny, threads=1, batch=4, prefix_cache_bytes=0)
    streams = [ask(model, prompt, count) for prompt, count in zip(PROMPTS, (40, 4, 40, 4), strict=False)]
    assert read_in_turns(streams) == [
        greedy_reference(prompt, count) for prompt, count in zip(PROMPTS, (40, 4, 40, 4), strict=False)
    ]
    assert [len(ids) > 40 for ids in caches(model).ids] == [True, True, False, False]


def test_a_reader_who_is_far_behind_gives_its_slot_to_who_waits(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "AHEAD", 4)
    model = runtime.load(tiny, threads=1, batch=1)
    slow = ask(model, PROMPTS[0], 30)
    begun = [next(slow)]
    other, _ = collect(ask(model, PROMPTS[2], 30))
    assert other == greedy_reference(PROMPTS[2], 30)
    assert ids_of([*begun, *slow]) == greedy_reference(PROMPTS[0], 30)


def test_nobody_is_computed_far_ahead_of_its_reader(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "AHEAD", 4)
    model = runtime.load(tiny, threads=1, batch=2)
    slow = ask(model, PROMPTS[0], 40)
    read = len(next(slow).token_ids)
    collect(ask(model, PROMPTS[2], 40))
    assert len(caches(model).ids[0]) <= len(PROMPTS[0]) + read + 4


def test_a_long_prompt_does_not_stall_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "SHARED_PREFILL_CHUNK", 8)
    shape = Shape(context=512)
    model = runtime.load(make_bundle(tmp_path / "long", shape), threads=1, batch=2)
    talking = model.generate(PROMPTS[0], max_new_tokens=100, ignore_eos=True)
    next(talking)
    long = model.generate([5] * 200, max_new_tokens=2, ignore_eos=True)
    thread = threading.Thread(target=lambda: list(long))
    thread.start()
    thread.join()
    # 200 tokens took 25 steps, in each of which the other one got a token
    assert len(talking._generation._unread) >= 20  # type: ignore[attr-defined]


def test_many_threads_each_get_their_own_answer(tiny: Path) -> None:
    model = runtime.load(tiny, threads=1, batch=4)
    found: dict[int, list[int]] = {}

    def work(number: int) -> None:
        found[number] = collect(ask(model, [number, *PROMPTS[number % 6]], 10))[0]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: greedy_reference([number, *PROMPTS[number % 6]], 10) for number in range(24)}


@pytest.mark.parametrize("exact", [False, True])
def test_a_crowd_that_comes_and_goes_mixes_nothing_up(tiny: Path, monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    """Ten threads speculate, cancel, time out, leave and dawdle, over three slots and a cache that is too small."""
    monkeypatch.setattr(request, "AHEAD", 5)
    model = runtime.load(tiny, threads=1, batch=3, prefix_cache_bytes=6000, exact=exact)
    expected = [greedy_reference(prompt, 30) for prompt in PROMPTS]
    wrong: list[tuple[int, list[int]]] = []

    def visit(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(12):
            which, count, mood = draw.randrange(len(PROMPTS)), draw.randrange(1, 31), draw.random()
            stream = model.generate(
                PROMPTS[which],
                max_new_tokens=count,
                ignore_eos=True,
                speculate=runtime.Speculation(tokens=draw.randrange(1, 8)) if draw.random() < 0.3 else None,
                timeout_s=0.01 if 0.2 < mood < 0.3 else None,
            )
            found: list[int] = []
            for number, chunk in enumerate(stream):
                found += chunk.token_ids
                if number == 1 and mood < 0.1:
                    stream.cancel()
                elif number == 1 and mood < 0.2:
                    stream.close()
                elif number == 0 and mood > 0.9:
                    time.sleep(0.01)
            if found != expected[which][: len(found)] or (mood > 0.3 and len(found) != count):
                wrong.append((which, found))

    threads = [threading.Thread(target=visit, args=(seed,)) for seed in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    collect(ask(model, PROMPTS[0]))
    assert isinstance(model._engine, OnnxEngine)
    assert model._engine.batch._running == []


def test_many_tasks_each_get_their_own_answer(tiny: Path) -> None:
    model = runtime.load(tiny, threads=1, batch=4)

    async def work(number: int) -> list[int]:
        return [token async for chunk in ask(model, [number, 5], 10) for token in chunk.token_ids]

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(work(number) for number in range(40)))

    assert asyncio.run(all_of_them()) == [greedy_reference([number, 5], 10) for number in range(40)]


def test_a_cancelled_task_frees_its_slot(tiny: Path) -> None:
    model = runtime.load(tiny, threads=1, batch=1)

    async def main() -> list[int]:
        async def endless() -> None:
            async for _ in ask(model, PROMPTS[0], 50):
                await asyncio.sleep(0)

        task = asyncio.create_task(endless())
        await asyncio.sleep(0.05)
        task.cancel()
        return [token async for chunk in ask(model, PROMPTS[2], 6) for token in chunk.token_ids]

    assert asyncio.run(main()) == greedy_reference(PROMPTS[2], 6)


@pytest.mark.parametrize("how", ["cancel", "close", "with", "forget"])
def test_a_stream_that_ends_early_frees_its_slot(tiny: Path, how: str) -> None:
    model = runtime.load(tiny, threads=1, batch=1)
    stream = ask(model, PROMPTS[0], 50)
    next(stream)
    if how == "cancel":
        stream.cancel()
        assert [chunk.finish_reason for chunk in stream] == ["cancelled"]
    elif how == "close":
        stream.close()
        assert list(stream) == []
    elif how == "with":
        with stream:
            next(stream)
        assert list(stream) == []
    else:
        del stream
        gc.collect()
    assert collect(ask(model, PROMPTS[2], 6))[0] == greedy_reference(PROMPTS[2], 6)
    assert isinstance(model._engine, OnnxEngine)
    assert model._engine.batch._running == []


def test_a_timeout_ends_the_answer_also_while_it_waits(tiny: Path) -> None:
    model = runtime.load(tiny, threads=1, batch=1)
    late = model.generate(PROMPTS[0], timeout_s=1e-6, ignore_eos=True)
    time.sleep(0.01)
    ids, last = collect(late)
    assert (ids, last.finish_reason) == ([], "timeout")
    slow = model.generate(PROMPTS[0], timeout_s=0.2, max_new_tokens=50, ignore_eos=True)
    begun = [next(slow)]
    time.sleep(0.25)
    rest, last = collect(slow)
    assert last.finish_reason == "timeout"
    found = [*ids_of(begun), *rest]
    assert found == greedy_reference(PROMPTS[0], len(found))


def test_what_goes_wrong_in_one_sequence_ends_that_one(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = runtime.load(tiny, threads=1, batch=2)
    fine = ask(model, PROMPTS[0], 10)
    started = [next(fine)]
    broken = model.generate(PROMPTS[2], max_new_tokens=10, ignore_eos=True, constraint=Refuses())
    with pytest.raises(UnusableBundle, match="allows no token"):
        list(broken)
    assert ids_of([*started, *fine]) == greedy_reference(PROMPTS[0], 10)


def test_when_memory_ends_everyone_in_the_run_is_told_and_the_model_stays_usable(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = runtime.load(tiny, threads=1, batch=2)
    streams = [ask(model, PROMPTS[0], 10), ask(model, PROMPTS[2], 10)]
    started = [next(stream) for stream in streams]
    assert started
    with monkeypatch.context() as broken:
        broken.setattr("edgeforge.runtime.slots.run", out_of_memory)
        for stream in streams:
            with pytest.raises(MemoryError, match="not enough"):
                list(stream)
    assert collect(ask(model, PROMPTS[0], 10))[0] == greedy_reference(PROMPTS[0], 10)


def test_memory_for_more_sequences_that_is_not_there_is_a_sentence(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = runtime.load(tiny, threads=1, batch=2)
    first = ask(model, PROMPTS[0], 10)
    started = [next(first)]
    with monkeypatch.context() as full:
        full.setattr("edgeforge.runtime.slots.mmap.mmap", out_of_memory)
        with pytest.raises(MemoryError, match="keys and values of 2 sequences of 64 tokens"):
            next(ask(model, PROMPTS[2], 10))
    assert ids_of([*started, *first]) == greedy_reference(PROMPTS[0], 10)


def test_caches_that_cannot_be_copied_stay_where_they_are(tiny: Path, model: Model) -> None:
    """As on a GPU: a hole between two sequences is computed along, and nothing of it is believed."""
    graph = open_graph(tiny / "model/runtime.onnx", device="cpu", threads=1)
    fixed = Slots(graph, model.manifest.model, "cpu", slots=3)
    fixed.copies = False
    alone = runtime.load(tiny, threads=1)
    assert isinstance(alone._engine, OnnxEngine)
    alone._engine._batch = batch.Batch(fixed, 0, exact=False)
    counts = (40, 5, 40, 9, 12)
    found = read_in_turns([ask(alone, prompt, count) for prompt, count in zip(PROMPTS, counts, strict=False)])
    assert found == [greedy_reference(prompt, count) for prompt, count in zip(PROMPTS, counts, strict=False)]
    again, last = collect(ask(alone, [*PROMPTS[2], *found[2], 1, 2], 6))
    assert again == greedy_reference([*PROMPTS[2], *found[2], 1, 2], 6)
    assert last.usage is not None
    assert last.usage.reused_tokens == len(PROMPTS[2]) + 39


def test_an_interrupted_step_can_be_taken_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = runtime.load(tiny, threads=1)
    stream = ask(model, PROMPTS[0], 10)
    started = [next(stream)]
    with monkeypatch.context() as broken:
        broken.setattr(sampling.Sampler, "choose", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    assert started
    assert collect(ask(model, PROMPTS[0], 10))[0] == greedy_reference(PROMPTS[0], 10)


@pytest.mark.parametrize("options", [{"batch": 0}, {"prefix_cache_bytes": -1}])
def test_a_size_out_of_range_is_refused(tiny: Path, options: dict[str, int]) -> None:
    with pytest.raises(UnusableBundle, match="at least"):
        runtime.load(tiny, **options)  # type: ignore[arg-type]


class Refuses:
    """A constraint that nothing satisfies."""

    finished = False

    def mask(self) -> sampling.Mask:
        import numpy as np

        return np.zeros(Shape().vocab, np.bool_)

    def accept(self, token: int) -> None: ...


def out_of_memory(*_: object) -> None:
    raise MemoryError("there is not enough memory")


def interrupt(*_: object) -> int:
    raise KeyboardInterrupt
