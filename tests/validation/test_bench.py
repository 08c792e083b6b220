"""Bench: figures are medians after a warm-up, of the work they claim, on prompts that never change; doubts are said."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from planning.shapes import LLAMA_8B, SMOLLM2
from runtime.engine_fakes import install_gpus, install_tensorrt_llm, install_vllm
from tiny_bundle import Shape, make_bundle, make_engine_bundle

from edgeforge import runtime
from edgeforge.cli.bench import bench as bench_command
from edgeforge.errors import UsageError
from edgeforge.hardware import load_target
from edgeforge.planning import make_plan, plan_to_json
from edgeforge.runtime.records import FileRecord
from edgeforge.runtime.stream import Chunk, Timings, Usage
from edgeforge.validation.bench import Prompts, cases_of, measure, random_ids
from edgeforge.validation.benching import limits as limits_module
from edgeforge.validation.benching.doubts import doubts
from edgeforge.validation.benching.limits import MachineProbe, buffer_bytes, last_level_cache_bytes
from edgeforge.validation.benching.memory import peak_memory_bytes, resident_memory_bytes
from edgeforge.validation.benching.records import Case, Figures, MachineLimits, Spread, Surroundings
from edgeforge.validation.benching.stopwatch import Stopwatch, time_in_onnxruntime
from edgeforge.validation.benching.streams import Stream, summed_up
from edgeforge.validation.benching.surroundings import Moment, between, frequency_share
from edgeforge.validation.benching.traffic import Traffic, traffic_of

CASE = Case(batch=1, context_tokens=0, prompt_tokens=8)
QUIET = Surroundings(load_average=0.1, others_share=0.0, stolen_share=0.0, throttled=False, frequency_share=1.0)


class FakeModel:
    """Says by its reused tokens which call it answers."""

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
        yield Chunk(text="a", token_ids=(1,))
        yield Chunk(
            text="b",
            token_ids=(2, 3),
            finish_reason="length",
            usage=Usage(prompt_tokens=len(prompt), reused_tokens=len(self.calls), completion_tokens=3),
            timings=Timings(prefill_ms=1e-6, decode_ms=1.0, prefill_tokens_per_s=1.0, decode_tokens_per_s=1.0),
        )


def stream(began: float, first: float, chunks: Sequence[tuple[float, int]], *, reused: int = 0) -> Stream:
    return Stream(began=began, first_token=first, chunks=chunks, computed_tokens=100, reused_tokens=reused)


def one(value: float) -> Spread:
    return Spread.of([value])


def figures(*, decode: Spread, prefill: Spread | None = None, reused: int = 0) -> Figures:
    return Figures(
        case=CASE,
        prefill_tokens_per_s=prefill or one(100.0),
        decode_tokens_per_s=decode,
        time_to_first_token_ms=one(1.0),
        reused_tokens=reused,
        python_share=None,
        peak_memory_bytes=1,
        roofline_prefill_tokens_per_s=None,
        roofline_decode_tokens_per_s=None,
        target_roofline_decode_tokens_per_s=None,
    )


def test_the_warm_up_is_not_counted() -> None:
    runs = measure(FakeModel(), [[1, 2], [2, 3], [3, 4]], new_tokens=4)
    assert [run.reused_tokens for run in runs] == [2, 3]


def test_decoding_is_greedy_ignores_the_end_and_does_not_count_the_prefills_token() -> None:
    model = FakeModel()
    measure(model, [[1, 2], [3, 4]], new_tokens=8)
    assert model.calls == [([1, 2], 9, 0.0, 1.0, True), ([3, 4], 9, 0.0, 1.0, True)]


def test_progress_counts_the_warm_up_too() -> None:
    seen: list[tuple[str, int, int]] = []
    measure(FakeModel(), [[1], [2], [3]], new_tokens=1, progress=lambda *call: seen.append(call))
    assert seen == [("measure", 1, 3), ("measure", 2, 3), ("measure", 3, 3)]


def test_decode_counts_from_the_first_token_to_the_last() -> None:
    run = summed_up([stream(0.0, 2.0, [(2.1, 1), (3.0, 4), (4.0, 5)], reused=7)], None)
    assert run.prefill_tokens_per_s == 50.0
    assert run.decode_tokens_per_s == 2.0
    assert run.time_to_first_token_ms == 2000.0
    assert run.reused_tokens == 7
    assert run.python_share is None


def test_of_several_streams_only_the_time_counts_in_which_all_of_them_decode() -> None:
    early = stream(0.0, 1.0, [(1.0, 1), (2.0, 3), (3.0, 5), (4.0, 7)])
    late = stream(0.0, 2.0, [(2.0, 1), (3.0, 3), (4.0, 5), (6.0, 9)])
    run = summed_up([early, late], None)
    assert run.prefill_tokens_per_s == 100.0
    assert run.decode_tokens_per_s == (4 + 4) / 2.0
    assert run.time_to_first_token_ms == 1500.0


def test_streams_of_which_one_ended_before_another_began_tell_nothing() -> None:
    with pytest.raises(UsageError, match="ended before all of them had read"):
        summed_up([stream(0.0, 1.0, [(1.0, 1), (2.0, 2)]), stream(0.0, 3.0, [(3.0, 1), (4.0, 2)])], None)


def test_a_stream_ends_with_its_last_token_not_with_the_word_that_says_so() -> None:
    assert stream(0.0, 1.0, [(1.0, 1), (2.0, 5), (9.0, 5)]).ended == 2.0


def test_pythons_share_is_what_onnxruntime_leaves_of_the_decode_time() -> None:
    watch = Stopwatch(runs=[(0.0, 1.5), (1.5, 2.25), (2.5, 3.25)])
    assert watch.inside(1.0, 3.0) == pytest.approx(0.5 + 0.75 + 0.5)
    run = summed_up([stream(0.0, 1.0, [(3.0, 3)])], watch)
    assert run.python_share == pytest.approx(0.125)


def test_the_stopwatch_sees_every_run_of_a_graph_and_leaves_onnxruntime_as_it_was(tmp_path: Path) -> None:
    import onnxruntime

    before = onnxruntime.InferenceSession.run_with_iobinding
    model = runtime.load(make_bundle(tmp_path / "tiny"), threads=1)
    with time_in_onnxruntime() as watch:
        list(model.generate([1, 2, 3], max_new_tokens=4, temperature=0, ignore_eos=True))
    assert len(watch.runs) >= 4
    assert all(begin < end for begin, end in watch.runs)
    assert onnxruntime.InferenceSession.run_with_iobinding is before


def test_a_prompt_is_the_same_every_time_and_inside_the_vocabulary() -> None:
    ids = random_ids(1000, 300, 2)
    assert ids == random_ids(1000, 300, 2)
    assert len(ids) == 1000
    assert min(ids) >= 0
    assert 200 < max(ids) < 300


def test_no_two_prompts_share_a_beginning_that_the_cache_would_keep() -> None:
    assert len({random_ids(16, 49152, repeat)[0] for repeat in range(50)}) == 50


def test_a_spread_is_median_quartiles_and_extremes() -> None:
    spread = Spread.of([5.0, 1.0, 3.0, 2.0, 4.0])
    assert spread == Spread(median=3.0, lower_quartile=2.0, upper_quartile=4.0, least=1.0, most=5.0)
    assert spread.relative == pytest.approx(2 / 3)
    assert Spread.of([7.0]) == Spread(median=7.0, lower_quartile=7.0, upper_quartile=7.0, least=7.0, most=7.0)


def test_memory_is_in_bytes() -> None:
    before = resident_memory_bytes()
    block = np.ones(50_000_000, np.uint8)
    assert 0.9 * block.nbytes < resident_memory_bytes() - before < 1.5 * block.nbytes
    assert block.nbytes < resident_memory_bytes() < 1 << 40
    # Linux adds up what each thread counted only now and then.
    assert resident_memory_bytes() < 1.05 * peak_memory_bytes()


def test_a_decode_step_reads_all_weights_but_the_embedding_and_each_sequences_cache(tmp_path: Path) -> None:
    """The sum by hand, from Llama 3.1 8B's shapes: 6.98 billion weights of linears, 0.525 billion of the head."""
    target = load_target("cpu")
    manifest = runtime.read_manifest(make_bundle(tmp_path / "tiny", plan=plan_to_json(make_plan(LLAMA_8B, target))))
    assert traffic_of(manifest) is None, "weights of a few kB are not those of this plan"
    file = FileRecord(sha256="0" * 64, size=6_000_000_000, role="weights")
    model = replace(manifest.model, num_hidden_layers=32, num_key_value_heads=8, head_dim=128)
    traffic = traffic_of(replace(manifest, files={"model/model.onnx.data": file}, model=model))
    assert traffic is not None
    embedding = 128_256 * 4096 + 128_256 * (4096 // 128) * (4 + 1)  # int8; a group has an f32 scale and a zero point
    others = 4 * (65 * 4096 + 2 * 4096 * 64)  # norms, rotary tables
    assert traffic.weight_bytes_per_step == 6_000_000_000 - embedding - others
    assert traffic.kv_bytes_per_token == 2 * 32 * 8 * 128 * 4
    assert traffic.prompt_operations_per_token == 2 * 6_979_321_856
    case = Case(batch=4, context_tokens=100, prompt_tokens=20)
    step = traffic.weight_bytes_per_step + 4 * (120 + 32) * traffic.kv_bytes_per_token
    assert traffic.decode_tokens_per_s(case, new_tokens=64, bytes_per_s=1e9) == pytest.approx(4e9 / step)


def test_a_tied_embedding_is_read_at_every_step(tmp_path: Path) -> None:
    plan = plan_to_json(make_plan(SMOLLM2, load_target("cpu")))
    manifest = runtime.read_manifest(make_bundle(tmp_path / "tiny", plan=plan))
    file = FileRecord(sha256="0" * 64, size=100_000_000, role="weights")
    traffic = traffic_of(replace(manifest, files={"model/model.onnx.data": file}))
    assert traffic is not None
    assert traffic.weight_bytes_per_step > 98_000_000


def test_the_buffer_is_as_large_as_the_weights_and_larger_than_the_cache(tmp_path: Path) -> None:
    mib = 1 << 20
    assert buffer_bytes(500 * mib, 32 * mib) == 500 * mib
    assert buffer_bytes(10 * mib, 32 * mib) == 128 * mib
    assert buffer_bytes(9000 * mib, 32 * mib) == 1024 * mib
    for index, size in enumerate(("48K", "2048K", "32768K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert last_level_cache_bytes(tmp_path) == 32 * mib
    assert last_level_cache_bytes(tmp_path / "nowhere") == limits_module.UNKNOWN_CACHE_BYTES


@pytest.fixture
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that takes a moment: what it measures are then the caches."""
    monkeypatch.setattr(limits_module, "MATRIX_SIZE", 256)
    monkeypatch.setattr(limits_module, "MOST_BUFFER_BYTES", 1 << 22)


@pytest.mark.usefixtures("small_probe")
def test_the_probe_measures_what_a_machine_can_do() -> None:
    probe = MachineProbe(weight_bytes=1 << 20, threads=2)
    for _ in range(3):
        probe.sample()
    found = probe.limits()
    probe.close()
    assert found.threads == 2
    assert found.buffer_bytes == 1 << 22
    assert 1e8 < found.read_bytes_per_s.median < 1e13, "between a slow board and any cache there is"
    assert 1e8 < found.int8_operations_per_s.median < 1e15
    assert found.read_bytes_per_s.least < found.read_bytes_per_s.most


def test_what_others_took_is_what_was_busy_without_this_process() -> None:
    before = Moment(
        all_seconds=100.0, busy_seconds=10.0, stolen_seconds=1.0, own_seconds=5.0, throttle_events=3, wall_seconds=0.0
    )
    after = Moment(
        all_seconds=120.0, busy_seconds=25.0, stolen_seconds=2.0, own_seconds=15.0, throttle_events=4, wall_seconds=1.0
    )
    found = between(before, after, 0.5)
    assert found.others_share == pytest.approx(0.25)
    assert found.stolen_share == pytest.approx(0.05)
    assert found.throttled is True
    assert found.load_average == 0.5
    untold = replace(before, all_seconds=None, throttle_events=None)
    assert between(untold, after, None).others_share is None
    assert between(untold, after, None).throttled is None


def test_this_machine_tells_its_moments() -> None:
    before = Moment.now()
    total = sum(range(300_000))
    after = Moment.now()
    assert total > 0 and after.own_seconds >= before.own_seconds
    share = between(before, after, None).others_share
    assert share is None or 0 <= share <= 1


def test_the_slowest_processors_frequency_counts(tmp_path: Path) -> None:
    assert frequency_share(tmp_path) is None
    for cpu, now in enumerate((3_000_000, 1_500_000)):
        folder = tmp_path / f"cpu{cpu}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{now}\n")
        (folder / "cpuinfo_max_freq").write_text("3000000\n")
    assert frequency_share(tmp_path) == 0.5


def test_no_prompt_is_given_twice_whatever_the_batches() -> None:
    prompts = Prompts(vocab_size=50_000)
    seen: list[int] = []
    for batch in (4, 1, 1, 4, 2, 1):
        contexts, whole = prompts.of(Case(batch=batch, context_tokens=3, prompt_tokens=5))
        assert [ids[:3] for ids in whole] == contexts == [random_ids(3, 50_000, number) for number in range(batch)]
        seen += [ids[3] for ids in whole]
    assert len(seen) == len(set(seen)) == 13


def found_doubts(*, decode: Spread, surroundings: Surroundings = QUIET, read: Spread | None = None) -> tuple[str, ...]:
    """A step of a million bytes at 1 GB/s: at most 1,000 tokens a second."""
    return doubts(
        [figures(decode=decode)],
        new_tokens=4,
        traffic=Traffic(weight_bytes_per_step=1_000_000, kv_bytes_per_token=0, prompt_operations_per_token=1),
        limits=MachineLimits(
            threads=2, buffer_bytes=1, read_bytes_per_s=read or one(1e9), int8_operations_per_s=one(1e9)
        ),
        surroundings=surroundings,
    )


def test_a_figure_above_the_physical_limit_is_warned_of() -> None:
    (warning,) = found_doubts(decode=one(1200.0))
    assert "1,200.0 tokens/s is above the 1,000.0" in warning
    assert found_doubts(decode=one(1000.0)) == ()


def test_a_cache_that_held_something_else_is_warned_of() -> None:
    def doubted(reused: int) -> tuple[str, ...]:
        found = [figures(decode=one(1.0), reused=reused)]
        return doubts(found, new_tokens=4, traffic=None, limits=None, surroundings=QUIET)

    assert doubted(0) == ()
    (warning,) = doubted(7)
    assert "the cache held 7 tokens (8 prompt tokens) where it should hold 0" in warning


def test_repeats_that_differ_are_warned_of_once_by_the_worst() -> None:
    (warning,) = found_doubts(decode=Spread.of([80.0, 100.0, 140.0]), read=Spread.of([9e8, 1e9, 1.3e9]))
    assert warning.startswith("the repeats differ: quartiles of decode (8 prompt tokens) lie 30% of the median apart")
    assert "one more figure does" in warning


@pytest.mark.parametrize(
    ("surroundings", "said"),
    [
        (replace(QUIET, others_share=0.43), "other processes took 43%"),
        (replace(QUIET, stolen_share=0.2), "the hypervisor gave 20%"),
        (replace(QUIET, others_share=None, load_average=99_999.0), "the load average was 99999.0"),
        (replace(QUIET, throttled=True), "throttled"),
        (replace(QUIET, frequency_share=0.5), "50% of their highest frequency"),
    ],
)
def test_a_noisy_machine_is_warned_of(surroundings: Surroundings, said: str) -> None:
    (warning,) = found_doubts(decode=one(500.0), surroundings=surroundings)
    assert said in warning


def test_what_ran_before_is_no_doubt_where_what_ran_meanwhile_is_known() -> None:
    assert found_doubts(decode=one(500.0), surroundings=replace(QUIET, load_average=99_999.0)) == ()


def test_what_the_system_does_not_tell_is_no_doubt() -> None:
    unknown = Surroundings(
        load_average=None, others_share=None, stolen_share=None, throttled=None, frequency_share=None
    )
    assert found_doubts(decode=one(500.0), surroundings=unknown) == ()


def test_cases_are_every_combination_once() -> None:
    found = cases_of(batches=(1, 2), contexts=(0, 4, 0), prompts=(8,))
    assert [(case.batch, case.context_tokens) for case in found] == [(1, 0), (1, 4), (2, 0), (2, 4)]


@pytest.fixture
def timed_bundle(tmp_path: Path) -> Path:
    """A bundle that may be changed, of steps long enough for several readers. It has no plan, and so no roofline."""
    return make_bundle(tmp_path / "tiny", Shape(layers=4, hidden=512, heads=8, kv_heads=4, head_dim=64, context=256))


@pytest.mark.usefixtures("small_probe")
def test_a_bundles_figures_are_printed_and_saved(timed_bundle: Path) -> None:
    asked = ["--prompt-tokens", "8", "--batch", "1,3", "--context", "0,32", "--new-tokens", "96"]
    asked += ["--repeats", "2", "--threads", "1"]
    folder = str(timed_bundle.parent)  # of one bundle: it is the one for this machine
    done = CliRunner().invoke(bench_command, [folder, *asked, "--save", "--json"], catch_exceptions=False)
    document = json.loads(done.stdout)
    assert document == json.loads((timed_bundle / "reports" / "bench.json").read_text())
    assert runtime.verify(timed_bundle, "full"), "sealed again"
    assert document["schema_version"] == 2
    cases = [(case["batch"], case["context_tokens"], case["prompt_tokens"]) for case in document["cases"]]
    assert cases == [(1, 0, 8), (1, 32, 8), (3, 0, 8), (3, 32, 8)]
    for case in document["cases"]:
        for name in ("prefill_tokens_per_s", "decode_tokens_per_s", "time_to_first_token_ms"):
            low, high = case[f"{name}_quartiles"]
            assert 0 < low <= case[name] <= high
        assert 0 < case["python_share"] < 1
        # Which slot a sequence gets, and with it what stays known, is up to the readers' threads.
        missing = case["batch"] * case["context_tokens"] - case["reused_tokens"]
        assert abs(missing) <= (case["batch"] - 1) * case["context_tokens"]
        assert case["peak_memory_bytes"] > 10_000_000
        assert case["roofline_decode_tokens_per_s"] is None, "the tiny bundle has no plan"
    assert document["decode_tokens_per_s"] == document["cases"][0]["decode_tokens_per_s"]
    assert document["limits"]["read_bytes_per_s"]["median"] > 0


@pytest.mark.parametrize("engine", ["vllm", "tensorrt-llm"])
def test_a_bundle_of_another_engine_is_measured_without_the_processors_limits(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_gpus(monkeypatch, tmp_path / "bin", "NVIDIA H100 80GB HBM3, 9.0, 81559, 580.82.07")
    if engine == "vllm":
        install_vllm(monkeypatch, tmp_path / "site", "0.33.0")
    else:
        install_tensorrt_llm(monkeypatch, tmp_path / "site", "1.3.0")
    bundle = make_engine_bundle(tmp_path / "bundle", engine=engine)
    asked = ["--prompt-tokens", "8", "--new-tokens", "4", "--repeats", "2", "--json"]
    done = CliRunner().invoke(bench_command, [str(bundle), *asked], catch_exceptions=False)
    document = json.loads(done.stdout)
    assert document["device"] == "cuda"
    assert document["decode_tokens_per_s"] > 0
    assert document["limits"] is document["python_share"] is document["roofline_decode_tokens_per_s"] is None


@pytest.mark.usefixtures("small_probe")
def test_a_table_has_a_row_for_each_case_and_warnings_go_to_stderr(
    timed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeforge.validation import bench as bench_module

    monkeypatch.setattr(bench_module, "doubts", lambda *_, **__: ("do not believe it",))
    asked = ["--prompt-tokens", "8", "--context", "0,16", "--new-tokens", "2", "--repeats", "1", "--threads", "1"]
    done = CliRunner().invoke(bench_command, [str(timed_bundle), *asked], catch_exceptions=False)
    headers, first, second, *_ = done.stdout.splitlines()
    assert headers.split()[:3] == ["batch", "context", "prompt"]
    assert (first.split()[:3], second.split()[:3]) == (["1", "0", "8"], ["1", "16", "8"])
    assert "1 thread read" in done.stdout and "of a decode step" in done.stdout
    assert done.stderr.endswith("warning: do not believe it\n")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--prompt-tokens", "8,x"], "'8,x' is not a list of whole numbers"),
        (["--prompt-tokens", "0"], "0 is less than 1"),
        (["--context", "8,-1"], "-1 is less than 0"),
    ],
)
def test_a_list_that_is_none_is_refused(asked: list[str], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(bench_command, [str(tmp_path), *asked])
    assert done.exit_code == 2
    assert said in done.stderr
