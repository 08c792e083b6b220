"""The machine's facts come from files and metadata, and absent facts are no errors."""

import sys
from importlib import metadata
from pathlib import Path

import pytest

from edgeforge.cli.machine import (
    Requirement,
    Tool,
    at_least,
    cpu,
    disk_free_bytes,
    memory,
    parse_requirement,
    tegra_model,
    tool,
)


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_processor_is_read_from_proc(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: A Chip\nflags\t\t: fpu avx2 avx512_vnni\n")
    found = cpu(tmp_path)
    assert (found.name, found.features) == ("A Chip", ("avx2", "avx512_vnni"))
    assert found.usable_threads >= 1
    assert cpu(tmp_path / "absent").features == ()


def test_memory_respects_a_containers_limit(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", "MemTotal:       2000 kB\nMemFree: 1 kB\nMemAvailable:   1500 kB\n")
    assert (memory(tmp_path).total_bytes, memory(tmp_path).available_bytes) == (2_048_000, 1_536_000)
    write(tmp_path, "sys/fs/cgroup/memory.max", "1000000\n")
    write(tmp_path, "sys/fs/cgroup/memory.current", "400000\n")
    assert (memory(tmp_path).total_bytes, memory(tmp_path).available_bytes) == (1_000_000, 600_000)
    write(tmp_path, "sys/fs/cgroup/memory.max", "max\n")
    assert memory(tmp_path).total_bytes == 2_048_000


def test_a_programs_version_is_its_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """trtllm-build is not run for it: it would import what needs a GPU."""
    program = tmp_path / "trtllm-build"
    program.write_text(f"#!{sys.executable}\nraise SystemExit('it was run')\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tool("trtllm-build", "click") == Tool(
        name="trtllm-build", path=str(program), version=metadata.version("click")
    )
    assert tool("trtllm-build", "no-such-package") == Tool(name="trtllm-build", path=str(program), version=None)
    assert tool("llm_build", "click") is None


@pytest.mark.parametrize("content", [b"#!/bin/sh\n", b"\x7fELF\x00", b"", b"#!/no/such/python3\n"])
def test_a_program_that_names_no_python_has_no_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    program = tmp_path / "llm_build"
    program.write_bytes(content)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tool("llm_build", "click") == Tool(name="llm_build", path=str(program), version=None)


def test_a_jetson_tells_its_model(tmp_path: Path) -> None:
    assert tegra_model(tmp_path) is None
    write(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0")
    assert tegra_model(tmp_path) == "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    write(tmp_path, "proc/device-tree/model", "Raspberry Pi 5\0")
    assert tegra_model(tmp_path) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("numpy>=1.26", Requirement(name="numpy", minimum="1.26", extra=None)),
        ('onnxruntime>=1.23; extra == "cpu"', Requirement(name="onnxruntime", minimum="1.23", extra="cpu")),
        ("huggingface_hub", Requirement(name="huggingface_hub", minimum=None, extra=None)),
        ("", None),
    ],
)
def test_dependency_lines_are_read(line: str, expected: Requirement | None) -> None:
    assert parse_requirement(line) == expected


@pytest.mark.parametrize(
    ("found", "minimum", "expected"),
    [("1.26.0", "1.26", True), ("1.9", "1.26", False), ("2.13.0+cpu", "2.6", True), ("1.0", None, True)],
)
def test_versions_compare_as_numbers(found: str, minimum: str | None, expected: bool) -> None:
    assert at_least(found, minimum) is expected


def test_free_space_is_known_for_a_folder_to_be(tmp_path: Path) -> None:
    assert disk_free_bytes(tmp_path / "not" / "yet") > 0
