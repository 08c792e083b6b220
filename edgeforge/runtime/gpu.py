"""NVIDIA GPUs, as nvidia-smi tells them. Needs no CUDA and imports nothing."""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

NVIDIA_SMI_SECONDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """`compute_capability` as NVIDIA writes it ("8.9"), `memory_bytes` 0 where the memory is the system's."""

    name: str
    compute_capability: str
    memory_bytes: int
    driver: str


def gpus(executable: str = "nvidia-smi") -> tuple[Gpu, ...]:
    """The GPUs by nvidia-smi, in its order; none where it is absent, fails or hangs."""
    query = ["--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader,nounits"]
    return parse_gpus(_output([executable, *query]))


def parse_gpus(csv: str) -> tuple[Gpu, ...]:
    """nvidia-smi's CSV lines; memory is in MiB there. Lines that are not such (an error text) are passed over."""
    found = []
    for line in csv.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 4:
            continue
        mib = int(cells[2]) if cells[2].isdigit() else 0  # unified memory answers [N/A]
        found.append(Gpu(name=cells[0], compute_capability=cells[1], memory_bytes=mib << 20, driver=cells[3]))
    return tuple(found)


def visible(found: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves to this process; all where it is not set, or names GPUs by UUID."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return tuple(found)
    numbers = [word.strip() for word in asked.split(",") if word.strip()]
    if any(not re.fullmatch(r"-?[0-9]+", number) for number in numbers):
        return tuple(found)
    kept = []
    for number in map(int, numbers):
        if not 0 <= number < len(found):  # CUDA takes the list up to the first number that is none
            break
        kept.append(found[number])
    return tuple(kept)


def cuda_version(executable: str = "nvidia-smi") -> str | None:
    """The newest CUDA that the driver runs ("13.0"), from nvidia-smi's header; None where there is no driver."""
    match = re.search(r"CUDA(?: UMD)? Version\s*:\s*([0-9]+\.[0-9]+)", _output([executable]))
    return match.group(1) if match else None


def _output(command: Sequence[str]) -> str:
    """What the command prints, or nothing where it cannot be run, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
