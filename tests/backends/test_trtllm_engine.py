"""trtllm-build is asked who it is before any work, and however it ends, one sentence says so and nothing is left."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from edgeforge.backends.trtllm_engine import Builder, build_arguments, build_engine, find_builder
from edgeforge.backends.trtllm_engine.process import Outcome, failure, run, telling_line
from edgeforge.errors import EdgeForgeError, MissingDependency, OutOfResources, UsageError
from edgeforge.hardware import Target, load_target
from edgeforge.planning import BuildPlan, apply_overrides, draft_plan
from tests.backends.fake_trtllm import Environment, executable, gpu, install, put_on_path
from tests.planning.shapes import LLAMA_8B, llama


def planned(**changes: object) -> BuildPlan:
    target = apply_overrides(load_target("h100"), backend="trtllm-engine", **changes)  # type: ignore[arg-type]
    return draft_plan(llama(64, 96, 2, 8), target)


TARGET: Target = planned().target


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """TensorRT-LLM 1.2.1 on a machine with an H100."""
    gpu(monkeypatch, tmp_path, "9.0")
    return install(tmp_path / "venv")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    folder.joinpath("config.json").write_text(json.dumps({"mapping": {"world_size": 2}}))
    for rank in range(2):
        folder.joinpath(f"rank{rank}.safetensors").write_bytes(b"")
    return folder


class Told:
    """What a build says."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.progress: list[tuple[int, int]] = []

    def log(self, line: str) -> None:
        self.lines.append(line)

    def count(self, done: int, total: int) -> None:
        self.progress.append((done, total))


def engine_of(environment: Environment, checkpoint: Path, tmp_path: Path, told: Told) -> Path:
    builder = find_builder(environment.python, None, TARGET, tmp_path)
    assert builder is not None
    plan = planned(tensor_parallel=2)
    build_engine(builder, plan, checkpoint, tmp_path / "engine", log=told.log, progress=told.count)
    return tmp_path / "engine"


@pytest.mark.parametrize("how", ["python", "container", "path"])
def test_a_builder_is_found_by_each_of_its_names(
    environment: Environment, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "path":
        put_on_path(monkeypatch, environment.folder)
    python = environment.python if how == "python" else None
    command = environment.container if how == "container" else None
    builder = find_builder(python, command, TARGET, tmp_path)
    assert builder is not None
    assert builder.compute_capability == "9.0"
    assert builder.versions == {
        "tensorrt_llm": "1.2.1",
        "tensorrt": "10.14.1.48",
        "cuda": "12.9",
        "driver": "580.65.06",
    }
    told = Told()
    plan = planned(tensor_parallel=2)
    record = build_engine(builder, plan, checkpoint, tmp_path / "engine", log=told.log, progress=told.count)
    assert (record.state, record.script, record.compute_capability) == ("ready", None, "9.0")
    assert record.versions == builder.versions
    assert sorted(path.name for path in (tmp_path / "engine").iterdir()) == [
        "config.json",
        "rank0.engine",
        "rank1.engine",
    ]


def test_lines_arrive_as_they_are_said_and_ranks_are_counted(
    environment: Environment, checkpoint: Path, tmp_path: Path
) -> None:
    told = Told()
    engine_of(environment, checkpoint, tmp_path, told)
    assert told.lines[0] == "[TensorRT-LLM] TensorRT-LLM version: 1.2.1"
    assert "Total time of building all engines" in told.lines[-1]
    assert told.progress == [(0, 2), (1, 2), (1, 2), (2, 2)]


def test_the_options_are_the_plans(environment: Environment, checkpoint: Path, tmp_path: Path) -> None:
    engine = engine_of(environment, checkpoint, tmp_path, Told())
    given = json.loads((engine / "rank0.engine").read_text())
    assert given["max_batch_size"] == TARGET.batch and given["max_seq_len"] == given["max_input_len"] == TARGET.context
    assert (given["gemm_plugin"], given["kv_cache_type"], given["workers"]) == ("disable", "paged", 2)


@pytest.mark.parametrize(
    ("scheme", "cache", "tokens"),
    [("fp8", "fp8", "8192"), ("w4a16", "fp8", "32768"), ("w4a16", "bf16", "8192"), ("bf16", "int8", "32768")],
)
def test_a_prompt_that_cannot_be_read_in_pieces_fits_in_one_pass(scheme: str, cache: str, tokens: str) -> None:
    target = apply_overrides(load_target("h100"), backend="trtllm-engine", scheme=scheme, kv_cache=cache, context=32768)
    options = build_arguments(draft_plan(LLAMA_8B, target))
    assert options[options.index("--max_num_tokens") + 1] == tokens


@pytest.mark.parametrize(
    ("how", "error", "sentence"),
    [
        ("memory", OutOfResources, r"ran out of GPU memory: .*Error Code 2: OutOfMemory"),
        ("disk", OutOfResources, r"ran out of disk: OSError: .*No space left on device"),
        ("killed", OutOfResources, r"was killed.*its last words: Build TensorRT engine"),
        ("plugin", MissingDependency, r"plugins are missing.*plg_creator"),
        ("import", MissingDependency, r"cannot be imported in that environment: ImportError: libcuda"),
        ("strange", MissingDependency, r"failed with exit code 1: Internal Error \(Could not find any implementation"),
        ("nothing", MissingDependency, r"ended well and left no rank0.engine"),
    ],
)
def test_each_failure_is_one_sentence_and_leaves_nothing(
    environment: Environment,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    error: type[EdgeForgeError],
    sentence: str,
) -> None:
    monkeypatch.setenv("FAKE_TRTLLM", how)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=sentence) as failed:
        engine_of(environment, checkpoint, tmp_path, Told())
    assert failed.value.hint and "\n" not in failed.value.message
    assert sorted(tmp_path.iterdir()) == before


def test_an_option_that_it_does_not_know_is_named(environment: Environment, tmp_path: Path) -> None:
    command = [str(environment.python), "-m", "tensorrt_llm.commands.build", "--context", "8192"]
    outcome = run(command, lambda line: None)
    assert outcome.exit_code == 2
    error = failure(outcome)
    assert re.search(r"does not know an option.*unrecognized arguments", error.message)
    assert error.hint == "use TensorRT-LLM 1.2.1"


def test_ctrl_c_ends_the_program_and_its_children(
    environment: Environment, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRTLLM", "hangs")
    children: list[int] = []

    class Interrupted(Told):
        def log(self, line: str) -> None:
            if match := re.search(r"child (\d+)", line):
                children.append(int(match.group(1)))
                threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        engine_of(environment, checkpoint, tmp_path, Interrupted())
    assert not (tmp_path / "engine").exists() and not list(tmp_path.glob(".engine*"))
    assert len(children) == 1 and gone(children[0])


def test_a_child_that_outlives_the_program_does_not_keep_us(
    environment: Environment, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRTLLM", "leaves a child")
    told = Told()
    engine_of(environment, checkpoint, tmp_path, told)
    (child,) = (int(match.group(1)) for line in told.lines if (match := re.search(r"child (\d+)", line)))
    assert gone(child)


def gone(process: int) -> bool:
    """Whether it ends within a few seconds; one that nobody waited for is a zombie, and ended."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("version", ["1.3.0rc15", "1.3.0", "2.0", "0.21.0"])
def test_another_version_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    gpu(monkeypatch, tmp_path, "9.0")
    environment = install(tmp_path / "venv", version)
    with pytest.raises(MissingDependency, match=rf"has TensorRT-LLM {version}; engines are built with 1.0 to 1.2.1"):
        find_builder(environment.python, None, TARGET, tmp_path)


@pytest.mark.parametrize(
    ("capability", "sentence"),
    [
        ("8.9", r"of h100 must be built on a GPU of compute capability 9.0, and this NVIDIA H100 80GB HBM3 has 8.9"),
        (None, "needs an NVIDIA GPU, and nvidia-smi finds none"),
    ],
)
def test_a_wrong_or_missing_gpu_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str | None, sentence: str
) -> None:
    gpu(monkeypatch, tmp_path, capability)
    environment = install(tmp_path / "venv")
    with pytest.raises(MissingDependency, match=sentence) as refused:
        find_builder(environment.python, None, TARGET, tmp_path)
    assert "the bundle then carries the checkpoint" in (refused.value.hint or "")


def test_what_was_named_and_is_not_there_is_refused(environment: Environment, tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match=r"nowhere/python cannot be run: No such file"):
        find_builder(Path("/nowhere/python"), None, TARGET, tmp_path)
    with pytest.raises(MissingDependency, match=r"docker run IMAGE python3 cannot write to /nowhere"):
        find_builder(None, environment.container, TARGET, Path("/nowhere"))
    broken = executable(tmp_path / "broken", "#!/bin/sh\necho something is wrong >&2\nexit 3\n")
    with pytest.raises(MissingDependency, match=r"does not work: something is wrong"):
        find_builder(broken, None, TARGET, tmp_path)
    empty = install(tmp_path / "empty", None)
    with pytest.raises(MissingDependency, match="has no tensorrt-llm"):
        find_builder(empty.python, None, TARGET, tmp_path)


def test_names_that_contradict_or_are_none_are_a_mistake_of_usage(environment: Environment, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name two environments"):
        find_builder(environment.python, environment.container, TARGET, tmp_path)
    for command in ("", "docker 'run"):
        with pytest.raises(UsageError, match="--trtllm-command"):
            find_builder(None, command, TARGET, tmp_path)


@pytest.mark.parametrize("lacks", ["a program", "its version", "its Python", "the GPU"])
def test_where_nothing_was_named_the_engine_is_left_to_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    gpu(monkeypatch, tmp_path, None if lacks == "the GPU" else "9.0")
    environment = install(tmp_path / "venv", "1.3.0" if lacks == "its version" else "1.2.1")
    if lacks == "its Python":
        executable(environment.folder / "trtllm-build", "#!/bin/sh\nexit 1\n")
    if lacks != "a program":
        put_on_path(monkeypatch, environment.folder)
    assert find_builder(None, None, TARGET, tmp_path) is None


def test_the_line_that_tells_is_the_error_not_the_lament() -> None:
    lines = (
        "[11/23/2026-10:00:00] [TRT] [I] Detected 49 inputs",
        "[11/23/2026-10:00:00] [TRT] [E] 2: [graph.cpp::build::12] Error Code 2: Internal Error",
        "[11/23/2026-10:00:00] [TRT-LLM] [E] Engine building failed, please check the error log.",
    )
    assert telling_line(lines) == "2: [graph.cpp::build::12] Error Code 2: Internal Error"
    assert telling_line((*lines, "RuntimeError: Required but not provided tensors:{'a'}")).startswith("RuntimeError")
    assert telling_line(()) == "it said nothing"
    assert "signal 11" in failure(Outcome(exit_code=-11, lines=lines)).message


def test_a_program_that_cannot_start_is_no_traceback(tmp_path: Path) -> None:
    builder = Builder(command=(str(tmp_path / "gone"),), compute_capability="9.0", versions={"tensorrt_llm": "1.2.1"})
    with pytest.raises(MissingDependency, match="cannot be run"):
        build_engine(
            builder, planned(), tmp_path, tmp_path / "engine", log=lambda line: None, progress=lambda done, total: None
        )
    assert not list(tmp_path.iterdir())
