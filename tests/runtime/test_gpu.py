"""GPUs are what nvidia-smi says, less those that CUDA_VISIBLE_DEVICES hides."""

from pathlib import Path

import pytest

from edgeforge.runtime.gpu import Gpu, cuda_version, gpus, parse_gpus, visible

ADA = Gpu(name="NVIDIA GeForce RTX 4090", compute_capability="8.9", memory_bytes=24564 << 20, driver="570.10")
HOPPER = Gpu(name="NVIDIA H100", compute_capability="9.0", memory_bytes=81559 << 20, driver="570.10")


def test_gpus_are_parsed_from_nvidia_smi() -> None:
    text = "NVIDIA GeForce RTX 4090, 8.9, 24564, 570.10\nOrin (nvgpu), 8.7, [N/A], 540.4.0\nno such line\n"
    assert parse_gpus(text) == (
        ADA,
        Gpu(name="Orin (nvgpu)", compute_capability="8.7", memory_bytes=0, driver="540.4.0"),
    )


@pytest.mark.parametrize("body", ["#!/bin/sh\necho broken driver\nexit 9\n", "not a program"])
def test_a_missing_or_broken_nvidia_smi_means_no_gpu(tmp_path: Path, body: str) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(body)
    program.chmod(0o755)
    for executable in (str(program), str(tmp_path / "absent")):
        assert gpus(executable) == ()
        assert cuda_version(executable) is None


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, (ADA, HOPPER)),
        ("1", (HOPPER,)),
        ("1,0", (HOPPER, ADA)),
        (" 0 , 1 ", (ADA, HOPPER)),
        ("", ()),
        ("-1", ()),
        ("0,7,1", (ADA,)),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", (ADA, HOPPER)),
    ],
)
def test_cuda_visible_devices_leaves_those_it_lists(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, expected: tuple[Gpu, ...]
) -> None:
    if asked is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
    assert visible((ADA, HOPPER)) == expected


@pytest.mark.parametrize(
    "header",
    [
        "| NVIDIA-SMI 580.82.07   Driver Version: 580.82.07   CUDA Version: 13.0     |",
        "| NVIDIA-SMI 595.10   KMD Version: 595.10   CUDA UMD Version: 13.0    |",
    ],
)
def test_the_cuda_version_is_the_headers(tmp_path: Path, header: str) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{header}'\n")
    program.chmod(0o755)
    assert cuda_version(str(program)) == "13.0"
