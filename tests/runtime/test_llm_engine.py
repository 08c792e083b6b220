"""A bundle answers in TensorRT-LLM and in vLLM as it would in onnxruntime: same chunks, same endings, same refusals."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from engine_fakes import LLM, SHAPE, LLMEngine, install_gpus, install_tensorrt_llm, install_vllm
from tiny_bundle import make_engine_bundle, reference_logits

from edgeforge import runtime
from edgeforge.runtime.answer import main
from edgeforge.runtime.errors import MissingRequirement, UnusableBundle
from edgeforge.runtime.manifest import GenerationRecord
from edgeforge.runtime.model import Model
from edgeforge.runtime.stream import Chunk
from edgeforge.runtime.vllm_program import ENVIRONMENT

PROMPT = [10, 200, 31, 4, 55]
BUILT = {
    "backend": "trtllm-engine",
    "engine": "tensorrt",
    "compute_capability": "9.0",
    "versions": {"tensorrt_llm": "1.2.1"},
}


@dataclass(frozen=True)
class World:
    """A machine with an H100 and one of the programs."""

    name: str
    folder: Path
    opened: list[LLM] | list[LLMEngine]

    def load(self, **facts: object) -> Model:
        facts = {**(BUILT if self.name == "tensorrt" else {"engine": self.name}), **facts}
        return runtime.load(make_engine_bundle(self.folder / f"bundle{len(list(self.folder.iterdir()))}", **facts))

    @property
    def running(self) -> int:
        """How many requests the program still works on."""
        return len(self.opened[0].requests if self.name == "vllm" else self.opened[0].running)

    @property
    def asked(self) -> list:
        return self.opened[0].asked


@pytest.fixture(params=["tensorrt-llm", "tensorrt", "vllm"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(request.param, tmp_path, monkeypatch)


def make_world(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None = None) -> World:
    for variable in (*ENVIRONMENT, "TLLM_LOG_LEVEL"):
        monkeypatch.setenv(variable, "to be restored")
        monkeypatch.delenv(variable)
    install_gpus(monkeypatch, tmp_path / "bin", "NVIDIA H100 80GB HBM3, 9.0, 81559, 580.82.07")
    if name == "vllm":
        fake = install_vllm(monkeypatch, tmp_path / "site", version or "0.33.0")
    else:
        fake = install_tensorrt_llm(
            monkeypatch, tmp_path / "site", version or ("1.2.1" if name == "tensorrt" else "1.3.0")
        )
    return World(name, tmp_path, fake.opened)


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


def test_the_chunks_are_those_of_the_onnx_engine(world: World, tiny: Path) -> None:
    model = runtime.load(tiny, threads=1)
    theirs = list(world.load().generate(PROMPT, max_new_tokens=20, ignore_eos=True))
    ours = list(model.generate(PROMPT, max_new_tokens=20, ignore_eos=True))
    assert [(c.text, c.token_ids, c.finish_reason, c.usage) for c in theirs] == [
        (c.text, c.token_ids, c.finish_reason, c.usage) for c in ours
    ]
    timings = theirs[-1].timings
    assert timings is not None
    assert timings.prefill_tokens_per_s == pytest.approx(5 / timings.prefill_ms * 1000)
    assert timings.decode_tokens_per_s > 0


def test_chat_answers_the_template(world: World, model: Model) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    loaded = world.load()
    assert loaded.chat_ids(messages) == model.chat_ids(messages)
    assert loaded.decode(loaded.encode("Héllo")) == "Héllo"
    assert collect(loaded.chat(messages, max_new_tokens=5))[0] == collect(model.chat(messages, max_new_tokens=5))[0]


def test_every_id_of_the_eos_list_ends_the_text_and_is_not_shown(world: World) -> None:
    expected = greedy_reference(PROMPT, 12)
    stop_at = next(at for at in range(1, 12) if expected[at] not in expected[:at])
    for eos in ((expected[stop_at],), (259, expected[stop_at])):
        loaded = world.load(eos=eos)
        ids, last = collect(loaded.generate(PROMPT, max_new_tokens=12))
        assert (ids, last.finish_reason) == (expected[:stop_at], "stop")
        assert last.usage is not None
        assert last.usage.completion_tokens == stop_at
        assert collect(loaded.generate(PROMPT, max_new_tokens=12, ignore_eos=True))[0] == expected
    assert world.running == 0


def test_a_stop_string_ends_the_text_and_the_work(world: World) -> None:
    loaded = world.load()

    def text_with(stop: list[str]) -> tuple[str, Chunk]:
        chunks = list(loaded.generate("Hi", max_new_tokens=40, temperature=1.0, seed=11, stop=stop, ignore_eos=True))
        return "".join(chunk.text for chunk in chunks), chunks[-1]

    whole, _ = text_with([])
    stop = whole[10:12]
    shown, last = text_with(["never there", stop])
    assert shown == whole[: whole.index(stop)]
    assert last.finish_reason == "stop"
    assert world.running == 0


def test_cancelling_from_another_thread_ends_the_text_and_the_work(world: World) -> None:
    cancel = threading.Event()
    chunks = []
    for chunk in world.load().generate(PROMPT, ignore_eos=True, cancel=cancel):
        chunks.append(chunk)
        if len(chunks) == 3:
            setter = threading.Thread(target=cancel.set)
            setter.start()
            setter.join()
    assert chunks[-1].finish_reason == "cancelled"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(ids_of(chunks)) < 59
    assert world.running == 0


def test_what_is_cancelled_before_it_begins_is_not_begun(world: World) -> None:
    cancel = threading.Event()
    cancel.set()
    ids, last = collect(world.load().generate(PROMPT, cancel=cancel))
    assert (ids, last.finish_reason) == ([], "cancelled")
    assert not world.opened


def test_an_answer_left_early_is_aborted(world: World) -> None:
    loaded = world.load()
    for _ in loaded.generate([1, 2, 3], ignore_eos=True):
        break
    assert world.running == 0
    assert collect(loaded.generate(PROMPT, max_new_tokens=6, ignore_eos=True))[0] == greedy_reference(PROMPT, 6)


def test_an_older_generation_is_told_that_a_newer_one_took_its_turn(world: World) -> None:
    loaded = world.load()
    older = loaded.generate([1, 2, 3], ignore_eos=True)
    next(older)
    newer = loaded.generate(PROMPT, max_new_tokens=6, ignore_eos=True)
    started = [next(newer)]
    assert world.running == 1, "the program computes for nobody else"
    with pytest.raises(UnusableBundle, match="another generation"):
        next(older)
    assert ids_of([*started, *newer]) == greedy_reference(PROMPT, 6)


def test_the_context_ends_the_text(world: World) -> None:
    loaded = world.load()
    ids, last = collect(loaded.generate([7] * 60, ignore_eos=True))
    assert (len(ids), last.finish_reason) == (SHAPE.context - 60, "length")
    ids, last = collect(loaded.generate([1] * SHAPE.context, ignore_eos=True))
    assert (ids, last.finish_reason) == ([], "length")


def test_what_the_programs_cache_held_is_counted(world: World) -> None:
    loaded = world.load()
    ids, last = collect(loaded.generate(PROMPT, max_new_tokens=6, ignore_eos=True))
    assert last.usage is not None
    assert last.usage.reused_tokens == 0
    _, last = collect(loaded.generate([*PROMPT, *ids, 7], max_new_tokens=2, ignore_eos=True))
    assert last.usage is not None
    assert last.usage.reused_tokens == 8


def test_a_seed_fixes_the_answer_and_none_does_not(world: World) -> None:
    loaded = world.load()

    def answer(seed: int | None) -> list[int]:
        return collect(loaded.generate(PROMPT, max_new_tokens=12, temperature=2.0, seed=seed, ignore_eos=True))[0]

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)
    assert len({tuple(answer(None)) for _ in range(5)}) > 1


def test_temperature_zero_is_greedy_whatever_else_is_asked(world: World) -> None:
    loaded = world.load(generation=GenerationRecord(do_sample=True, temperature=1.5, top_k=40, top_p=0.9))
    ids, _ = collect(loaded.generate(PROMPT, max_new_tokens=8, temperature=0, ignore_eos=True))
    assert ids == greedy_reference(PROMPT, 8)


def test_the_authors_sampling_is_the_default(world: World) -> None:
    record = GenerationRecord(do_sample=True, temperature=0.6, top_k=40, top_p=0.9, repetition_penalty=1.1)
    collect(world.load(generation=record, eos=(5, 6, 7)).generate(PROMPT, max_new_tokens=3, min_p=0.05, seed=9))
    asked = world.asked[0]
    assert (asked.temperature, asked.top_k, asked.top_p, asked.min_p) == (0.6, 40, 0.9, 0.05)
    assert (asked.repetition_penalty, asked.seed, asked.max_tokens, asked.detokenize) == (1.1, 9, 3, False)


def test_neutral_values_switch_the_programs_samplers_off(world: World) -> None:
    collect(world.load().generate(PROMPT, max_new_tokens=3, temperature=0.7))
    asked = world.asked[0]
    assert (asked.temperature, asked.top_p) == (0.7, 1.0)
    assert asked.repetition_penalty == (1.0 if world.name == "vllm" else None)
    assert not asked.top_k
    assert not asked.min_p


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1] * 65, "65 tokens, more than the bundle's context of 64"),
        ([], "the prompt is empty"),
        ([260], "outside the vocabulary of 260"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_refused_at_the_call(world: World, prompt: list[int], message: str) -> None:
    with pytest.raises(UnusableBundle, match=message):
        world.load().generate(prompt)


def test_there_are_no_logits_to_score(world: World) -> None:
    loaded = world.load()
    with pytest.raises(UnusableBundle, match="no logits of a text's own") as caught:
        loaded.score(PROMPT)
    assert caught.value.exit_code == 3
    with pytest.raises(UnusableBundle, match="no graph"):
        _ = loaded.decoder


class Anything:
    """A constraint, which is not asked."""

    finished = False

    def mask(self) -> np.ndarray:
        raise AssertionError

    def accept(self, token: int) -> None: ...


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"logprobs": 0}, "log-probabilities"),
        ({"constraint": Anything()}, "a constrained answer"),
        ({"speculate": runtime.Speculation()}, "speculation"),
        ({"overflow": "slide"}, "a sliding context"),
    ],
)
def test_what_only_onnxruntime_has_here_is_refused_before_any_work(world: World, options: dict, named: str) -> None:
    with pytest.raises(UnusableBundle, match=f"has {named} in onnxruntime only"):
        world.load().generate(PROMPT, **options)
    assert not world.opened


def test_batching_is_not_there_either(tmp_path: Path) -> None:
    bundle = make_engine_bundle(tmp_path / "b")
    for options in ({"batch": 2}, {"prefix_cache_bytes": 0}, {"exact": True}):
        with pytest.raises(UnusableBundle, match="one answer at a time"):
            runtime.load(bundle, **options)  # type: ignore[arg-type]


def test_a_timeout_ends_the_text_and_the_work(world: World) -> None:
    chunks = world.load().generate(PROMPT, ignore_eos=True, timeout_s=0.2)
    next(chunks)
    time.sleep(0.25)
    assert collect(chunks)[1].finish_reason == "timeout"
    assert world.running == 0


def test_an_answer_is_read_by_tasks_too(world: World) -> None:
    async def ids() -> list[int]:
        chunks = world.load().generate(PROMPT, max_new_tokens=6, ignore_eos=True)
        return [token async for chunk in chunks for token in chunk.token_ids]

    assert asyncio.run(ids()) == greedy_reference(PROMPT, 6)


def test_loading_reads_nothing_and_warming_up_reads_once(world: World) -> None:
    loaded = world.load()
    assert not world.opened
    loaded.warm_up()
    loaded.warm_up()
    collect(loaded.generate(PROMPT, max_new_tokens=2))
    assert len(world.opened) == 1
    assert loaded.device == "cuda"


def test_python_bundle_answers_and_the_programs_greetings_are_not_part_of_it(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = world.load()
    expected = "".join(chunk.text for chunk in loaded.generate("Hi", max_new_tokens=9, temperature=0))
    capsys.readouterr()
    assert main(["Hi", "--raw", "--max-new-tokens", "9"], bundle=loaded.bundle) == 0
    output = capsys.readouterr()
    assert output.out == expected + "\n"
    assert "LLM" in output.err


def test_the_program_is_opened_for_what_the_manifest_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world("vllm", tmp_path, monkeypatch)
    loaded = world.load()
    loaded.warm_up()
    arguments = world.opened[0].arguments
    assert arguments.model == str(loaded.bundle / "model")
    assert (arguments.max_model_len, arguments.max_num_seqs, arguments.tensor_parallel_size) == (SHAPE.context, 1, 1)
    assert {name: os.environ[name] for name in ENVIRONMENT} == ENVIRONMENT
    world = make_world("tensorrt-llm", tmp_path / "2", monkeypatch)
    loaded = world.load()
    loaded.warm_up()
    assert world.opened[0].model == str(loaded.bundle / "model")
    assert world.opened[0].arguments == {
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "max_seq_len": SHAPE.context,
        "max_batch_size": 1,
        "enable_chunked_prefill": False,
    }
    world = make_world("tensorrt", tmp_path / "3", monkeypatch)
    loaded = world.load()
    loaded.warm_up()
    assert world.opened[0].model == str(loaded.bundle / "model" / "engine")


def test_what_the_user_set_in_the_environment_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world("vllm", tmp_path, monkeypatch)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    world.load().warm_up()
    assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"


@pytest.mark.parametrize(
    ("option", "value"), [("repetition_penalty", 1.1), ("min_p", 0.1), ("seed", 3)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("version", ["1.2.1", "1.3.0rc15"])
def test_an_option_that_an_older_tensorrt_llm_ignores_is_refused_at_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, option: str, value: float
) -> None:
    loaded = make_world("tensorrt-llm", tmp_path, monkeypatch, version=version).load()
    with pytest.raises(UnusableBundle, match=rf"TensorRT-LLM {version} ignores {option}"):
        loaded.generate(PROMPT, temperature=0.8, **{option: value})
    if option != "repetition_penalty":  # the others do not matter to a greedy answer
        collect(loaded.generate(PROMPT, temperature=0, max_new_tokens=2, **{option: value}))


def test_a_value_that_the_program_refuses_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make_world("vllm", tmp_path, monkeypatch).load()
    with pytest.raises(UnusableBundle, match=r"^vLLM stopped: temperature must be in \[0, 2\], got 3\.0\. \(para") as e:
        collect(loaded.generate(PROMPT, temperature=3.0))
    assert "\n" not in e.value.message


def fail(error: Exception) -> Callable[..., None]:
    def opening(*_: object, **__: object) -> None:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("Executor worker returned error") from cause

    return opening


@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        (ValueError("Unknown quantization\nmethod: xyz"), UnusableBundle, "Unknown quantization method: xyz"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError, "out of memory"),
        (ValueError("No available memory for the cache blocks."), MemoryError, "No available memory"),
        (ValueError("Free memory on device cuda:0 (1.1/79 GiB) is less than desired"), MemoryError, "Free memory"),
    ],
)
def test_what_goes_wrong_while_opening_is_its_root_cause(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception], said: str
) -> None:
    monkeypatch.setattr(LLM, "__init__", fail(error))
    monkeypatch.setattr(LLMEngine, "__init__", fail(error))
    loaded = world.load()
    with pytest.raises(expected, match=said):
        loaded.warm_up()


def test_a_package_that_cannot_be_imported_is_exit_7(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = world.load()
    monkeypatch.setitem(sys.modules, "vllm" if world.name == "vllm" else "tensorrt_llm", None)
    with pytest.raises(MissingRequirement, match="is installed and cannot be imported") as caught:
        loaded.warm_up()
    assert caught.value.exit_code == 7
    assert "nvidia-smi" in (caught.value.hint or "")


def test_an_engine_bundle_without_its_engine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world("tensorrt", tmp_path, monkeypatch)
    loaded = world.load()
    manifest = (loaded.bundle / "manifest.json").read_text()
    (loaded.bundle / "manifest.json").write_text(manifest.replace("rank0.engine", "rank0.plan"))
    (loaded.bundle / "model/engine/rank0.engine").rename(loaded.bundle / "model/engine/rank0.plan")
    from edgeforge.bundle import seal

    seal(loaded.bundle)
    with pytest.raises(UnusableBundle, match=r"no rank0\.engine"):
        runtime.load(loaded.bundle)
