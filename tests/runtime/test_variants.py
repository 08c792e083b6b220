"""The bundle for this machine is chosen by what would open it, and the others are refused by name and reason."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_bundle import Shape, make_bundle, make_engine_bundle

from edgeforge.runtime import MissingRequirement, UnusableBundle, load, variants
from edgeforge.runtime.gpu import Gpu
from edgeforge.runtime.manifest import Manifest, read_manifest
from edgeforge.runtime.variants import Machine, choose_variant, refusal

PACKAGES = {"numpy": "2.0", "tokenizers": "0.22", "onnxruntime": "1.23"}
H100 = Gpu(name="NVIDIA H100", compute_capability="9.0", memory_bytes=80 << 30, driver="570.10")
L4 = Gpu(name="NVIDIA L4", compute_capability="8.9", memory_bytes=23 << 30, driver="570.10")
A100 = Gpu(name="NVIDIA A100", compute_capability="8.0", memory_bytes=80 << 30, driver="570.10")


def machine(
    *gpus: Gpu, processor: str = "x86_64", memory_bytes: int = 16 << 30, packages: Mapping[str, str] = PACKAGES
) -> Machine:
    return Machine(installed=packages.get, gpus=gpus, processor=processor, memory_bytes=memory_bytes)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    """cpu, cuda (onnxruntime) and h100 (a checkpoint of fp8), as their manifests say."""
    folder = tmp_path_factory.mktemp("variants")
    made = {
        "cpu": make_bundle(folder / "cpu"),
        "cuda": make_bundle(folder / "cuda", provider="CUDAExecutionProvider"),
        "h100": make_engine_bundle(folder / "h100", engine="vllm"),
    }
    found = {name: read_manifest(path) for name, path in made.items()}
    found["cpu"] = replace(found["cpu"], profile={"name": "cpu-x86-64", "kind": "cpu"})
    found["cuda"] = replace(found["cuda"], profile={"name": "rtx4090", "kind": "gpu", "compute_capability": "8.9"})
    found["h100"] = replace(found["h100"], profile={"name": "h100", "kind": "gpu", "compute_capability": "9.0"})
    return found


def needing(manifest: Manifest, total_bytes: int) -> Manifest:
    return replace(manifest, plan={"memory": {"total_bytes": total_bytes}})


def test_a_plain_machine_gets_the_cpus_bundle_and_reasons(manifests: dict[str, Manifest]) -> None:
    chosen = choose_variant(manifests, machine())
    assert chosen.best == "cpu"
    assert chosen.refused["cuda"] == "the package onnxruntime-gpu is missing"
    assert "vLLM" in chosen.refused["h100"]


def test_a_gpu_is_used_where_there_is_one_and_its_own_bundle_first(manifests: dict[str, Manifest]) -> None:
    packages = {**PACKAGES, "onnxruntime-gpu": "1.23", "vllm": "0.16"}
    assert choose_variant(manifests, machine(H100, packages=packages)).best == "h100"
    on_l4 = choose_variant(manifests, machine(L4, packages=packages))
    assert on_l4.best == "cuda"
    assert on_l4.refused["h100"] == "cuda suits this machine better"
    del packages["vllm"]
    assert choose_variant(manifests, machine(H100, packages=packages)).best == "cuda"


def test_a_format_that_the_gpu_lacks_is_refused(manifests: dict[str, Manifest]) -> None:
    packages = {**PACKAGES, "vllm": "0.16"}
    reason = refusal(manifests["h100"], machine(A100, packages=packages))
    assert reason == "fp8 needs compute capability 8.9, and this NVIDIA A100 has 8.0"
    assert refusal(manifests["h100"], machine(L4, packages=packages)) is None


def test_versions_and_missing_gpus_are_refused_as_the_runtime_would(manifests: dict[str, Manifest]) -> None:
    old = {**PACKAGES, "onnxruntime": "1.22"}
    assert refusal(manifests["cpu"], machine(packages=old)) == "it needs onnxruntime >=1.23, found 1.22"
    packages = {**PACKAGES, "vllm": "0.16", "onnxruntime-gpu": "1.23"}
    assert "needs 1 NVIDIA GPU" in str(refusal(manifests["h100"], machine(packages=packages)))
    assert "nvidia-smi finds none" in str(refusal(manifests["cuda"], machine(packages=packages)))


def test_memory_and_processor_are_asked_too(manifests: dict[str, Manifest]) -> None:
    large = {"small": needing(manifests["cpu"], 1 << 30), "large": needing(manifests["cpu"], 8 << 30)}
    assert choose_variant(large, machine()).best == "large"
    small = choose_variant(large, machine(memory_bytes=4 << 30))
    assert small.best == "small"
    assert small.refused["large"] == "it needs 8.6 GB of memory, and here are 4.3 GB"
    assert "x86_64 processors" in str(refusal(manifests["cpu"], machine(processor="aarch64")))
    packages = {**PACKAGES, "onnxruntime-gpu": "1.23"}
    on_card = refusal(needing(manifests["cuda"], 30 << 30), machine(L4, packages=packages))
    assert on_card is not None and "GB of memory" in on_card
    shared = replace(L4, memory_bytes=0)  # as a board's, whose memory is the system's
    assert refusal(needing(manifests["cuda"], 10 << 30), machine(shared, packages=packages)) is None


def test_where_nothing_runs_every_reason_is_told(manifests: dict[str, Manifest]) -> None:
    with pytest.raises(MissingRequirement) as refused:
        choose_variant(manifests, machine(packages={}))
    for name in manifests:
        assert f"{name}: " in refused.value.message


def test_load_takes_the_bundle_for_this_machine_out_of_a_folder_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "cpu", Shape(layers=1))
    make_bundle(tmp_path / "cuda", provider="CUDAExecutionProvider")
    (tmp_path / "notes").mkdir()
    monkeypatch.setattr(variants, "this_machine", machine)
    assert load(tmp_path).manifest.model.num_hidden_layers == 1
    shutil.rmtree(tmp_path / "cpu")
    with pytest.raises(MissingRequirement, match="onnxruntime-gpu"):
        load(tmp_path)
    shutil.rmtree(tmp_path / "cuda")
    with pytest.raises(UnusableBundle, match="not a bundle"):
        load(tmp_path)
