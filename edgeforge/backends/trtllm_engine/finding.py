"""Finds the trtllm-build that the user named, or the one on the PATH, and asks it who it is before any work.

TensorRT-LLM 1.2.1 shares an environment with no recent package (it pins numpy < 2 and its own torch), so it is always
another process. Versions are read from package metadata: importing it takes half a minute and needs a GPU.
"""

import json
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeforge.errors import MissingDependency, UsageError
from edgeforge.hardware import Target
from edgeforge.runtime.gpu import Gpu, cuda_version, gpus, visible
from edgeforge.runtime.requirements import numbers

NEWEST = "1.2.1"  # the last stable release with trtllm-build
OLDEST = "1.0"  # the oldest whose engines the bundle's runtime opens
PROBE_SECONDS = 600  # a container's image may have to be fetched first
MARK = "edgeforge-probe:"
PROBE = f"""
import json, os, re, sys
from importlib import metadata, util
def version(*names):
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
found = {{"tensorrt_llm": version("tensorrt-llm"),
         "tensorrt": version("tensorrt", "tensorrt-cu13", "tensorrt-cu12")}}
torch = util.find_spec("torch")
if torch is not None and torch.origin:
    with open(os.path.join(os.path.dirname(torch.origin), "version.py")) as file:
        match = re.search(r"^cuda.*['\\"]([0-9.]+)['\\"]", file.read(), re.MULTILINE)
    found["cuda"] = match and match.group(1)
found["folder"] = os.path.isdir(sys.argv[1]) and os.access(sys.argv[1], os.W_OK)
print({MARK!r} + json.dumps(found))
"""
INSTEAD = "leave it out: the bundle then carries the checkpoint and a script that builds the engine on the device"
IMAGE = "nvidia/tensorrt-llm/release:1.2.1"  # of NVIDIA's own registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """A trtllm-build that can build the target's engine here.

    command              what runs it, before its own options
    compute_capability   of the GPU that it will build on
    versions             of tensorrt_llm, tensorrt, cuda and driver, as far as they are known
    """

    command: tuple[str, ...]
    compute_capability: str
    versions: Mapping[str, str]


def find_builder(python: Path | None, command: str | None, target: Target, folder: Path) -> Builder | None:
    """The builder that was named: the Python of TensorRT-LLM's environment, or a container command such as
    `docker run --rm --gpus all -v /data:/data IMAGE`. None where nothing was named, and none on the PATH can build it.

    `folder`, where the engine is going to be, must exist; a container must have it at the same place. UsageError,
    MissingDependency: no such program, another version than 1.0 to 1.2.1, no GPU, another GPU than the target's.
    """
    if python is not None and command is not None:
        raise UsageError("--trtllm-python and --trtllm-command name two environments", hint="give one of them")
    found = visible(gpus())
    if python is not None:
        return _checked([str(python)], [str(python), "-m", "tensorrt_llm.commands.build"], target, folder, found)
    if command is not None:
        words = _words(command)
        return _checked([*words, "python3"], [*words, "trtllm-build"], target, folder, found)
    return _on_path(target, folder, found)


def _on_path(target: Target, folder: Path, found: Sequence[Gpu]) -> Builder | None:
    """Nobody asked for this one, so whatever it lacks is no error: the bundle says that its engine is to be built."""
    program = shutil.which("trtllm-build")
    python = program and interpreter_of(Path(program))
    if not program or not python:
        return None
    try:
        return _checked([python], [program], target, folder, found)
    except MissingDependency:
        return None


def interpreter_of(program: Path) -> str | None:
    """The Python in the first line of a console script; None where it is something else."""
    try:
        with program.open("rb") as file:
            line = file.readline(1000).decode(errors="replace")
    except OSError:
        return None
    words = line.removeprefix("#!").split()
    return words[0] if line.startswith("#!") and words and "python" in words[0] else None


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--trtllm-command is no command line: {error}", hint="check its quotes") from None
    if not words:
        raise UsageError("--trtllm-command is empty", hint=f"give a prefix such as 'docker run --gpus all {IMAGE}'")
    return words


def _checked(
    python: Sequence[str], command: Sequence[str], target: Target, folder: Path, found: Sequence[Gpu]
) -> Builder:
    gpu = _gpu(target, found)
    told = _probe(python, folder)
    version = told.get("tensorrt_llm")
    named = " ".join(python)
    if not isinstance(version, str):
        raise MissingDependency(
            f"{named} has no tensorrt-llm", hint=f"install tensorrt-llm=={NEWEST} there, or use the image {IMAGE}"
        )
    if not numbers(OLDEST) <= numbers(version) <= numbers(NEWEST):
        raise MissingDependency(
            f"{named} has TensorRT-LLM {version}; engines are built with {OLDEST} to {NEWEST}",
            hint=f"use an environment with tensorrt-llm=={NEWEST}, or --backend modelopt, which needs no engine",
        )
    if not told.get("folder"):
        raise MissingDependency(
            f"{named} cannot write to {folder}",
            hint=f"let the container have it at the same place: -v {folder}:{folder}",
        )
    known = {name: told.get(name) for name in ("tensorrt_llm", "tensorrt", "cuda")}
    known["cuda"] = known["cuda"] or cuda_version()
    known["driver"] = gpu.driver
    return Builder(
        command=tuple(command),
        compute_capability=gpu.compute_capability,
        versions={name: value for name, value in known.items() if isinstance(value, str)},
    )


def _gpu(target: Target, found: Sequence[Gpu]) -> Gpu:
    """The first GPU, on which trtllm-build works. One builds the engines of all ranks, one after another."""
    wanted = target.profile.compute_capability
    if not found:
        raise MissingDependency("trtllm-build needs an NVIDIA GPU, and nvidia-smi finds none", hint=INSTEAD)
    if found[0].compute_capability != wanted:
        raise MissingDependency(
            f"the engine of {target.name} must be built on a GPU of compute capability {wanted}, and this "
            f"{found[0].name} has {found[0].compute_capability}",
            hint=f"take a target for this GPU, set CUDA_VISIBLE_DEVICES, or {INSTEAD}",
        )
    return found[0]


def _probe(python: Sequence[str], folder: Path) -> Mapping[str, object]:
    """What the environment's own Python says of itself."""
    named = " ".join(python)
    try:
        done = subprocess.run(
            [*python, "-c", PROBE, str(folder)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except OSError as error:
        raise MissingDependency(f"{named} cannot be run: {error.strerror}", hint="check the path") from None
    except subprocess.TimeoutExpired:
        raise MissingDependency(f"{named} gave no answer in {PROBE_SECONDS} s", hint="run it by hand once") from None
    for line in reversed(done.stdout.splitlines()):  # a container's entry point may greet first
        if line.startswith(MARK):
            told: Mapping[str, object] = json.loads(line.removeprefix(MARK))
            return told
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit code {done.returncode}")
    raise MissingDependency(f"{named} does not work: {last.strip()[:300]}", hint="run it by hand to see why")
