"""Start-up: importing EdgeForge is instant, help imports no command, commands import what they need and no more."""

import os
import subprocess
import sys
import time
from statistics import median

import pytest

HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "tokenizers", "huggingface_hub", "torch", "transformers", "gguf")


def python(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **(env or {})}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)


def modules_after(code: str) -> set[str]:
    """Top-level packages that are loaded after `code` ran."""
    report = "import sys; sys.stderr.write('\\n'.join({name.partition('.')[0] for name in sys.modules}))"
    return set(python("-c", f"{code}\n{report}").stderr.split())


def running(arguments: list[str]) -> str:
    return (
        "from edgeforge.cli.console import run_guarded\n"
        "from edgeforge.cli.group import edgeforge\n"
        f"assert run_guarded(edgeforge, {arguments!r}) == 0"
    )


def test_importing_edgeforge_costs_under_20_ms() -> None:
    def own_microseconds() -> int:
        lines = python("-X", "importtime", "-c", "import edgeforge").stderr.splitlines()
        line = next(line for line in lines if line.endswith("| edgeforge"))
        return int(line.split("|")[1])

    assert median(own_microseconds() for _ in range(5)) < 20_000


def test_help_answers_within_200_ms_of_bare_python_on_a_busy_machine() -> None:
    def seconds(*arguments: str) -> float:
        start = time.perf_counter()
        python(*arguments)
        return time.perf_counter() - start

    # The law is 200 ms wall; twice that is allowed here, because tests share the machine.
    assert median(seconds("-m", "edgeforge.cli", "--help") for _ in range(5)) < 0.4


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_no_heavy_package_and_no_command(arguments: list[str]) -> None:
    loaded = modules_after(running(arguments))
    assert loaded.isdisjoint(HEAVY)


def test_doctor_looks_at_metadata_and_imports_no_heavy_package() -> None:
    loaded = modules_after(running(["doctor", "--json"]))
    # numpy comes with edgeforge.quantization's types where a target is read; nothing else may.
    assert loaded.isdisjoint(set(HEAVY) - {"numpy"})


def test_targets_and_plans_need_no_graph_or_tokenizer_package() -> None:
    assert modules_after(running(["targets"])).isdisjoint(set(HEAVY) - {"numpy"})


def test_every_commands_help_answers_without_heavy_packages() -> None:
    from edgeforge.cli.group import COMMANDS

    code = "\n".join(running([name, "--help"]) for name in COMMANDS)
    assert modules_after(code).isdisjoint(set(HEAVY) - {"numpy"})
