"""A bf16 checkpoint of Llama 3.1's real shapes to FP8 for TensorRT-LLM: bytes per second, peak memory, and two targets
in one pass against two builds. A plain copy of the same bytes on the same disk stands beside.
"""

import shutil
from pathlib import Path
from statistics import median

import big_model
import pytest
from builds import EDGEFORGE
from conftest import Bench
from processes import Child, run_child, size_bytes, warm
from pytest_benchmark.fixture import BenchmarkFixture
from report import Report

from edgeforge.model.checkpoint import open_checkpoint
from edgeforge.pipeline import scales_file
from edgeforge.quantization.calibration import Calibration

PEAK_GB = 1.5
LEAST_MB_PER_S = 500


def made_up_scales(model: Path, out: Path) -> Path:
    """Made-up activations: what is measured here is the walk over the weights."""
    checkpoint = open_checkpoint(str(model))
    layers = checkpoint.architecture.num_hidden_layers
    calibration = Calibration(
        inputs={linear.name: 10.0 for linear in checkpoint.architecture.linears()},
        keys=(20.0,) * layers,
        values=(5.0,) * layers,
        tokens=1,
    )
    scales_file.save(calibration, out, fingerprint=checkpoint.fingerprint)
    return out


def build(model: Path, targets: list[str], out: Path, bench: Bench, *options: str | Path) -> Child:
    shutil.rmtree(out, ignore_errors=True)
    names: list[str | Path] = [word for target in targets for word in ("--target", target)]
    command: list[str | Path] = [*EDGEFORGE, "build", *names, "--model", model, "--out", out, "--no-validate"]
    log = bench.logs / f"edgeforge-{'-'.join(targets)}.log"
    return run_child([*command, *options, "--threads", str(bench.threads)], log=log, threads=bench.threads)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", ["8b", "405b-layer"])
def test_fp8_checkpoint(benchmark: BenchmarkFixture, bench: Bench, report: Report, size: str) -> None:
    model = big_model.model_folder("small" if bench.size == "small" else size)
    read = size_bytes(model)
    scales = made_up_scales(model, bench.scratch / "scales.safetensors")
    out, children, copies = bench.scratch / "bundle", [], []

    def copy() -> None:
        target = bench.scratch / "copy"
        shutil.rmtree(target, ignore_errors=True)
        child = run_child(["cp", "-r", model, target], log=bench.logs / "cp.log", threads=1)
        shutil.rmtree(target)
        copies.append(child.seconds)

    def ours() -> None:
        children.append(build(model, ["h100"], out, bench, "--calibration", scales))

    benchmark.pedantic(ours, setup=copy, rounds=3, iterations=1)
    seconds, peak = median(child.seconds for child in children), max(child.peak_bytes for child in children)
    rate = read / 1e6 / seconds
    cells = {
        "model": model.name,
        "bf16 read": f"{read / 1e9:.1f} GB",
        "seconds": f"{seconds:.1f}",
        "MB/s of bf16": f"{rate:.0f}",
        "peak memory": f"{peak / 1e9:.2f} GB",
        "output": f"{size_bytes(out) / 1e9:.1f} GB",
        "cp -r of the input": f"{median(copies):.1f} s",
    }
    report.row("bf16 to FP8 (modelopt), everything included", cells)
    if bench.size != "small":
        report.at_least(f"{size}: MB/s of bf16", rate, LEAST_MB_PER_S)
        report.at_most(f"{size}: peak memory", peak / 1e9, PEAK_GB, "GB")
    shutil.rmtree(out)


@pytest.mark.timeout(3600)
def test_two_targets_in_one_pass(benchmark: BenchmarkFixture, bench: Bench, report: Report) -> None:
    model = big_model.model_folder(bench.size)
    scales = made_up_scales(model, bench.scratch / "scales.safetensors")
    out, together, apart = bench.scratch / "bundles", [], []

    def separate() -> None:
        warm(model)
        one = build(model, ["h100"], out, bench, "--calibration", scales)
        other = build(model, ["rtx4090"], out, bench)
        apart.append(one.seconds + other.seconds)
        shutil.rmtree(out)
        warm(model)

    def ours() -> None:
        together.append(build(model, ["h100", "rtx4090"], out, bench, "--calibration", scales).seconds)

    benchmark.pedantic(ours, setup=separate, rounds=3, iterations=1)
    cells = {
        "model": model.name,
        "two builds": f"{median(apart):.1f} s",
        "one pass": f"{median(together):.1f} s",
        "saved": f"{100 * (1 - median(together) / median(apart)):.0f} %",
    }
    report.row("h100 (FP8) and rtx4090 (INT4 ONNX)", cells)
    shutil.rmtree(out)
