"""A TensorRT-LLM environment that behaves as the real one does toward whoever builds an engine with it.

Its Python is this one, with a site folder of its own: package metadata, and `tensorrt_llm.commands.build`, which takes
the options of 1.2.1 and no others, looks at the checkpoint, logs, and writes engines. FAKE_TRTLLM says how it fails.
"""

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

BUILD = """
import argparse, json, os, signal, subprocess, sys, time
from importlib.metadata import version

CHOICES = {"kv_cache_type": ["continuous", "paged", "disabled"], "log_level": ["info", "error", "verbose"],
           "gemm_plugin": ["auto", "float16", "float32", "bfloat16", "int32", "fp8", "nvfp4", "disable"]}
NUMBERS = ["max_batch_size", "max_seq_len", "max_input_len", "max_num_tokens", "workers"]

def say(text, who="TRT-LLM", level="I"):
    print(f"[11/23/2026-10:00:00] [{who}] [{level}] {text}", flush=True)

def main():
    parser = argparse.ArgumentParser("trtllm-build")
    parser.add_argument("--checkpoint_dir")
    parser.add_argument("--output_dir")
    for name in NUMBERS:
        parser.add_argument(f"--{name}", type=int)
    for name, words in CHOICES.items():
        parser.add_argument(f"--{name}", choices=words)
    print(f"[TensorRT-LLM] TensorRT-LLM version: {version('tensorrt-llm')}", flush=True)
    args = parser.parse_args()
    how = os.environ.get("FAKE_TRTLLM", "")
    os.makedirs(args.output_dir, exist_ok=True)
    with open(os.path.join(args.checkpoint_dir, "config.json")) as file:
        config = json.load(file)
    say("Total time of constructing network from module object 2.79 seconds")
    if how == "memory":
        say("[virtualMemoryBuffer.cpp::resizePhysical::140] Error Code 2: OutOfMemory", "TRT", "E")
        say("Engine building failed, please check the error log.", level="E")
        sys.exit(1)
    if how == "plugin":
        say("IPluginRegistry::getCreator: Error Code 4: API Usage Error (Cannot find plugin: GPTAttention)", "TRT", "E")
        raise AssertionError("assert plg_creator is not None")
    if how == "import":
        raise ImportError("libcuda.so.1: cannot open shared object file: No such file or directory")
    if how == "strange":
        say("Internal Error (Could not find any implementation for node PWN)", "TRT", "E")
        say("Engine building failed, please check the error log.", level="E")
        sys.exit(1)
    if how == "disk":
        raise OSError(28, "No space left on device")
    if how == "killed":
        say("Build TensorRT engine Unnamed Network 0")
        os.kill(os.getpid(), signal.SIGKILL)
    if how in ("hangs", "leaves a child"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        say(f"child {child.pid}")
        if how == "hangs":
            time.sleep(600)
    for rank in range(config["mapping"]["world_size"]):
        assert os.path.isfile(os.path.join(args.checkpoint_dir, f"rank{rank}.safetensors"))
        path = os.path.join(args.output_dir, f"rank{rank}.engine")
        say(f"Serializing engine to {path}...")
        if how != "nothing":
            with open(path, "wb") as file:
                file.write(json.dumps(vars(args)).encode())
    with open(os.path.join(args.output_dir, "config.json"), "w") as file:
        json.dump({"version": version("tensorrt-llm"), "pretrained_config": config}, file)
    say("Total time of building all engines: 00:00:03")

if __name__ == "__main__":
    main()
"""
NVIDIA_SMI = """#!/bin/sh
case "$*" in
    *--query-gpu=name*) echo "NVIDIA H100 80GB HBM3, {capability}, 81559, 580.65.06" ;;
    *--query-gpu=compute_cap*) echo "{capability}" ;;
    *) echo "| NVIDIA-SMI 580.65.06   Driver Version: 580.65.06   CUDA Version: 13.0 |" ;;
esac
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """`python` is its interpreter; `folder` is where trtllm-build is; `container` a prefix that runs commands in it."""

    folder: Path
    python: Path
    container: str


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def install(root: Path, version: str | None = "1.2.1") -> Environment:
    """The environment under `root`; `version` None leaves TensorRT-LLM out of it."""
    site, folder = root / "site", root / "bin"
    for package, number in {"tensorrt_llm": version, "tensorrt": "10.14.1.48"}.items():
        if number is not None:
            metadata = site / f"{package}-{number}.dist-info"
            metadata.mkdir(parents=True)
            metadata.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {number}\n")
    for module, text in {
        "torch/version": "cuda: str = '12.9'\n",
        "torch/__init__": "raise ImportError('no GPU')\n",
    }.items():
        site.joinpath("torch").mkdir(exist_ok=True)
        site.joinpath(f"{module}.py").write_text(text)
    commands = site / "tensorrt_llm" / "commands"
    commands.mkdir(parents=True)
    commands.joinpath("build.py").write_text(BUILD)
    folder.mkdir()
    python = executable(
        folder / "python3", f'#!/bin/sh\nPYTHONPATH={site} PYTHONWARNINGS=ignore exec {sys.executable} "$@"\n'
    )
    executable(folder / "trtllm-build", f"#!{python}\nfrom tensorrt_llm.commands.build import main\nmain()\n")
    executable(
        root / "docker",
        f'#!/bin/sh\nshift 2\necho "== TensorRT-LLM Release 1.2.1 =="\nPATH={folder}:$PATH exec "$@"\n',
    )
    return Environment(folder=folder, python=python, container=f"{root}/docker run IMAGE")


def put_on_path(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def gpu(monkeypatch: pytest.MonkeyPatch, root: Path, capability: str | None) -> None:
    """An nvidia-smi that knows one GPU, or (None) that finds no driver."""
    folder = root / "driver"
    folder.mkdir()
    executable(folder / "nvidia-smi", NVIDIA_SMI.format(capability=capability) if capability else "#!/bin/sh\nexit 9\n")
    put_on_path(monkeypatch, folder)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
