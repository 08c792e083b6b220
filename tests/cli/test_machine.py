"""The machine's facts come from files and metadata, and absent facts are no errors."""

from pathlib import Path

import pytest

from edgeforge.cli.machine import (
    Gpu,
    Requirement,
    at_least,
    cpu,
    disk_free_bytes,
    gpus,
    memory,
    parse_gpus,
    parse_requirement,
    tegra_model,
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


def test_gpus_are_parsed_from_nvidia_smi() -> None:
    text = "NVIDIA GeForce RTX 4090, 8.9, 24564, 570.10\nOrin (nvgpu), 8.7, [N/A], 540.4.0\nno such line\n"
    assert parse_gpus(text) == (
        Gpu(name="NVIDIA GeForce RTX 4090", compute_capability="8.9", memory_bytes=24564 << 20, driver="570.10"),
        Gpu(name="Orin (nvgpu)", compute_capability="8.7", memory_bytes=0, driver="540.4.0"),
    )


@pytest.mark.parametrize("body", ["#!/bin/sh\necho broken driver\nexit 9\n", "not a program"])
def test_a_missing_or_broken_nvidia_smi_means_no_gpu(tmp_path: Path, body: str) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(body)
    program.chmod(0o755)
    assert gpus(str(program)) == ()
    assert gpus(str(tmp_path / "absent")) == ()


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
