"""Generation: greedy is the argmax of the reference, the cache is reused without changing the answer, and every ending
has its reason.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import Shape, make_bundle, reference_logits

from edgeforge import runtime
from edgeforge.runtime.errors import UnusableBundle
from edgeforge.runtime.manifest import GenerationRecord
from edgeforge.runtime.model import Model
from edgeforge.runtime.stream import Chunk

SHAPE = Shape()
PROMPT = [10, 200, 31, 4, 55]


def ids_of(chunks: list[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def collect(chunks: Iterator[Chunk]) -> tuple[list[int], Chunk]:
    found = list(chunks)
    assert all(chunk.finish_reason is None and chunk.usage is None for chunk in found[:-1])
    return ids_of(found), found[-1]


def greedy_reference(prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(reference_logits(SHAPE, ids)[-1].argmax()))
    return ids[len(prompt) :]


def test_greedy_is_the_references_argmax(model: Model) -> None:
    ids, last = collect(model.generate(PROMPT, max_new_tokens=20, ignore_eos=True))
    assert ids == greedy_reference(PROMPT, 20)
    assert last.finish_reason == "length"


def test_the_text_is_the_decoded_ids(model: Model) -> None:
    chunks = list(model.generate("Héllo", max_new_tokens=30, temperature=1.0, seed=4, ignore_eos=True))
    assert "".join(chunk.text for chunk in chunks) == model.decode(ids_of(chunks))


def test_reusing_the_cache_does_not_change_the_answer(model: Model, tiny: Path) -> None:
    prompt = [77, *PROMPT]
    first, _ = collect(model.generate(prompt, max_new_tokens=10, ignore_eos=True))
    longer = [*prompt, *first, 7, 8, 9]
    reused, last = collect(model.generate(longer, max_new_tokens=10, ignore_eos=True))
    fresh, _ = collect(runtime.load(tiny, threads=1).generate(longer, max_new_tokens=10, ignore_eos=True))
    assert reused == fresh
    assert last.usage is not None
    # the last generated id was never fed
    assert last.usage.reused_tokens == len(prompt) + len(first) - 1


def test_a_prompt_that_turns_off_reuses_what_is_shared(model: Model, tiny: Path) -> None:
    collect(model.generate([1, 2, 3, 4, 5, 6], max_new_tokens=5, ignore_eos=True))
    ids, last = collect(model.generate([1, 2, 3, 9], max_new_tokens=8, ignore_eos=True))
    assert ids == greedy_reference([1, 2, 3, 9], 8)
    assert last.usage is not None
    assert last.usage.reused_tokens == 2
    again, last = collect(model.generate([1, 2, 3, 9], max_new_tokens=8, ignore_eos=True))
    assert again == ids
    assert last.usage is not None
    assert last.usage.reused_tokens == 2  # the last token's logits are needed, and it is not computed alone


def test_usage_and_timings_add_up(tiny: Path) -> None:
    model = runtime.load(tiny, threads=1)
    ids, last = collect(model.generate(PROMPT, max_new_tokens=12, ignore_eos=True))
    usage, timings = last.usage, last.timings
    assert usage is not None
    assert timings is not None
    assert (usage.prompt_tokens, usage.reused_tokens, usage.completion_tokens) == (5, 0, 12)
    assert len(ids) == 12
    assert timings.prefill_tokens_per_s == pytest.approx(5 / timings.prefill_ms * 1000)
    assert timings.decode_tokens_per_s == pytest.approx(11 / timings.decode_ms * 1000)


def test_every_id_of_the_eos_list_ends_the_text_and_is_not_shown(tmp_path: Path) -> None:
    expected = greedy_reference(PROMPT, 12)
    stop_at = next(at for at in range(1, 12) if expected[at] not in expected[:at])
    for eos in ((expected[stop_at],), (259, expected[stop_at])):
        bundle = make_bundle(tmp_path / f"eos{len(eos)}", eos=eos)
        ids, last = collect(runtime.load(bundle, threads=1).generate(PROMPT, max_new_tokens=12))
        assert (ids, last.finish_reason) == (expected[:stop_at], "stop")
        assert last.usage is not None
        assert last.usage.completion_tokens == stop_at


def test_the_context_ends_the_text(model: Model) -> None:
    prompt = [int(id) for id in np.random.default_rng(0).integers(0, 256, 60)]
    ids, last = collect(model.generate(prompt, ignore_eos=True))
    assert (len(ids), last.finish_reason) == (SHAPE.context - 60, "length")


def test_a_prompt_that_fills_the_context_leaves_no_room(model: Model) -> None:
    ids, last = collect(model.generate([1] * SHAPE.context, ignore_eos=True))
    assert (ids, last.finish_reason) == ([], "length")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1] * 65, "65 tokens, more than the bundle's context of 64"),
        ([], "the prompt is empty"),
        ([260], "outside the vocabulary of 260"),
        ([-1], "outside the vocabulary"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_refused_at_the_call(model: Model, prompt: list[int], message: str) -> None:
    with pytest.raises(UnusableBundle, match=message) as caught:
        model.generate(prompt)
    assert caught.value.exit_code == 3
    with pytest.raises(UnusableBundle, match=message):
        model.score(prompt)


@pytest.mark.parametrize("count", [0, -3])
def test_no_new_tokens_at_all_is_refused(model: Model, count: int) -> None:
    with pytest.raises(UnusableBundle, match="max_new_tokens"):
        model.generate(PROMPT, max_new_tokens=count)


def test_cancelling_from_another_thread_ends_the_text(model: Model) -> None:
    cancel = threading.Event()
    chunks = []
    for chunk in model.generate(PROMPT, ignore_eos=True, cancel=cancel):
        chunks.append(chunk)
        if len(chunks) == 3:
            setter = threading.Thread(target=cancel.set)
            setter.start()
            setter.join()
    assert chunks[-1].finish_reason == "cancelled"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(ids_of(chunks)) < 59


def test_a_stop_string_ends_the_text_before_it(model: Model) -> None:
    def text_with(stop: list[str]) -> tuple[str, Chunk]:
        chunks = list(model.generate("Hi", max_new_tokens=40, temperature=1.0, seed=11, stop=stop, ignore_eos=True))
        return "".join(chunk.text for chunk in chunks), chunks[-1]

    whole, _ = text_with([])
    stop = whole[10:12]
    shown, last = text_with(["never there", stop])
    assert shown == whole[: whole.index(stop)]
    assert last.finish_reason == "stop"


def test_a_seed_fixes_the_answer(model: Model) -> None:
    def answer(seed: int) -> list[int]:
        chunks = model.generate(PROMPT, max_new_tokens=20, temperature=2.0, top_k=50, top_p=0.95, seed=seed)
        return collect(chunks)[0]

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_the_authors_sampling_is_the_default_and_the_caller_overrides_it(tmp_path: Path) -> None:
    generation = GenerationRecord(do_sample=True, temperature=3.0, top_k=40)
    sampling = runtime.load(make_bundle(tmp_path / "sampled", generation=generation), threads=1)
    draws = {tuple(collect(sampling.generate(PROMPT, max_new_tokens=8, seed=seed))[0]) for seed in range(5)}
    assert len(draws) > 1
    greedy, _ = collect(sampling.generate(PROMPT, max_new_tokens=8, temperature=0, ignore_eos=True))
    assert greedy == greedy_reference(PROMPT, 8)


def test_a_temperature_without_do_sample_stays_greedy_as_in_transformers(tmp_path: Path) -> None:
    quiet = runtime.load(make_bundle(tmp_path / "greedy", generation=GenerationRecord(temperature=3.0)), threads=1)
    assert collect(quiet.generate(PROMPT, max_new_tokens=8, ignore_eos=True))[0] == greedy_reference(PROMPT, 8)


def test_two_generations_read_in_turns_are_each_as_alone(model: Model) -> None:
    older = model.generate([1, 2, 3], max_new_tokens=6, ignore_eos=True)
    started = [next(older)]
    newer, _ = collect(model.generate(PROMPT, max_new_tokens=6, ignore_eos=True))
    assert newer == greedy_reference(PROMPT, 6)
    assert ids_of([*started, *older]) == greedy_reference([1, 2, 3], 6)


def test_a_generation_left_early_leaves_the_model_usable(model: Model) -> None:
    for _ in model.generate([1, 2, 3], ignore_eos=True):
        break
    assert collect(model.generate(PROMPT, max_new_tokens=6, ignore_eos=True))[0] == greedy_reference(PROMPT, 6)


def slid(ids: list[int]) -> list[int]:
    """The text as a sliding context of 64 tokens keeps it: the first 4 tokens and the newest 28."""
    return [*ids[:4], *ids[-28:]] if len(ids) >= SHAPE.context else ids


def test_a_sliding_context_goes_on_from_the_first_tokens_and_the_newer_half(model: Model) -> None:
    text = [*PROMPT, *range(100, 150)]
    expected = []
    while len(expected) < 100:
        text = slid(text)
        text.append(int(reference_logits(SHAPE, text)[-1].argmax()))
        expected.append(text[-1])
    options = {"max_new_tokens": 100, "ignore_eos": True, "overflow": "slide"}
    ids, last = collect(model.generate([*PROMPT, *range(100, 150)], **options))
    assert (ids, last.finish_reason) == (expected, "length")
    again, _ = collect(model.generate([*PROMPT, *range(100, 150)], **options, speculate=runtime.Speculation()))
    assert again == expected


def test_a_prompt_longer_than_a_sliding_context_slides_first(model: Model) -> None:
    prompt = [int(id) for id in np.random.default_rng(5).integers(0, 256, 200)]
    ids, last = collect(model.generate(prompt, max_new_tokens=8, ignore_eos=True, overflow="slide"))
    assert ids == greedy_reference([*prompt[:4], *prompt[-28:]], 8)
    assert last.usage is not None
    assert last.usage.prompt_tokens == 200


def test_log_probabilities_are_those_of_the_models_own_distribution(model: Model) -> None:
    chunks = list(model.generate(PROMPT, max_new_tokens=10, temperature=0.5, top_k=3, seed=1, logprobs=4, stop=["q"]))
    ids = [*PROMPT]
    for chunk in chunks:
        assert chunk.logprobs is not None
        assert tuple(known.token_id for known in chunk.logprobs) == chunk.token_ids
        for known in chunk.logprobs:
            logits = reference_logits(SHAPE, ids)[-1].astype(np.float64)
            expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
            assert known.logprob == pytest.approx(expected[known.token_id], abs=1e-4)
            assert [token for token, _ in known.alternatives] == list(np.argsort(-expected)[:4])
            assert [p for _, p in known.alternatives] == pytest.approx(np.sort(expected)[::-1][:4], abs=1e-4)
            ids.append(known.token_id)


def test_log_probabilities_come_only_where_asked_for(model: Model) -> None:
    assert all(chunk.logprobs is None for chunk in model.generate(PROMPT, max_new_tokens=3))
    known = [one for chunk in model.generate(PROMPT, max_new_tokens=3, logprobs=0) for one in chunk.logprobs or ()]
    assert len(known) == 3
    assert all(one.alternatives == () for one in known)


class Allows:
    """A constraint that allows the ids of `allowed`, and is finished after `count` tokens."""

    def __init__(self, allowed: range, count: int = 1000) -> None:
        self.accepted: list[int] = []
        self._allowed = allowed
        self._count = count

    def mask(self) -> np.ndarray:
        allowed = np.zeros(SHAPE.vocab, np.bool_)
        allowed[list(self._allowed)] = True
        return allowed

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    @property
    def finished(self) -> bool:
        return len(self.accepted) >= self._count


def test_a_constraint_that_allows_everything_changes_nothing(model: Model) -> None:
    everything = Allows(range(SHAPE.vocab))
    ids, _ = collect(model.generate(PROMPT, max_new_tokens=20, ignore_eos=True, constraint=everything))
    assert ids == greedy_reference(PROMPT, 20) == everything.accepted


@pytest.mark.parametrize("speculate", [None, runtime.Speculation()])
def test_a_constraint_masks_hears_and_ends(model: Model, speculate: "runtime.Speculation | None") -> None:
    constraint = Allows(range(50, 60), 6)
    ids, last = collect(model.generate(PROMPT, constraint=constraint, speculate=speculate))
    text, expected = [*PROMPT], []
    for _ in range(6):
        logits = reference_logits(SHAPE, text)[-1]
        expected.append(50 + int(logits[50:60].argmax()))
        text.append(expected[-1])
    assert (ids, last.finish_reason) == (expected, "stop")
    assert constraint.accepted == expected


@pytest.mark.parametrize(
    "options", [{"logprobs": -1}, {"timeout_s": 0.0}, {"timeout_s": float("nan")}, {"overflow": "wrap"}]
)
def test_an_option_out_of_range_is_refused_at_the_call(model: Model, options: dict) -> None:
    with pytest.raises(UnusableBundle, match=next(iter(options))):
        model.generate(PROMPT, **options)


def test_chat_answers_the_template(model: Model) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    expected = model.encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert model.chat_ids(messages) == expected
    ids, last = collect(model.chat(messages, max_new_tokens=5))
    assert last.usage is not None
    assert last.usage.prompt_tokens == len(expected)
    assert ids == collect(model.generate(expected, max_new_tokens=5))[0]


def test_chat_without_a_template_is_refused(tmp_path: Path) -> None:
    plain = runtime.load(make_bundle(tmp_path / "plain", chat=False), threads=1)
    with pytest.raises(UnusableBundle, match="no chat template"):
        plain.chat([{"role": "user", "content": "Hi"}])
