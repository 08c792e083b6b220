"""build-on-device.sh, run by real shells with made-up tools: refuses before it starts, builds beside the bundle, and
does nothing twice.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgeforge.backends import on_device
from edgeforge.hardware import load_target
from edgeforge.planning import BuildPlan, apply_overrides, draft_plan
from tests.backends.fake_trtllm import NVIDIA_SMI, executable, install
from tests.planning.shapes import LLAMA_8B

SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)]
EXPORT = """#!/bin/sh
echo "export $*" >>"$CALLS"
[ -z "${EXPORT_FAILS:-}" ] || exit "$EXPORT_FAILS"
mkdir -p "$2/llm" && echo onnx >"$2/llm/model.onnx"
"""
LLM_BUILD = """#!/bin/sh
echo "llm_build $*" >>"$CALLS"
echo "plugin ${EDGELLM_PLUGIN_PATH:-none}" >>"$CALLS"
[ -f "$2/model.onnx" ] || exit 1
mkdir -p "$4" && echo part >"$4/config.json"
[ -z "${BUILD_FAILS:-}" ] || exit "$BUILD_FAILS"
echo engine >"$4/llm.engine"
"""


def orin() -> BuildPlan:
    return draft_plan(LLAMA_8B, load_target("jetson-agx-orin-64gb"))


def h100x2() -> BuildPlan:
    return draft_plan(LLAMA_8B, apply_overrides(load_target("h100x2"), backend="trtllm-engine"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A machine with a bundle on it."""

    root: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def bundle(self) -> Path:
        return self.root / "my bundle"

    @property
    def engine(self) -> Path:
        return self.root / "my bundle-engine" / "engine"

    @property
    def calls(self) -> list[str]:
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def run(self, *arguments: str, shell: str = "sh", **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PATH": f"{self.root / 'bin'}{os.pathsep}{elsewhere()}",
            "CALLS": str(self.root / "calls"),
            "EDGEFORGE_MEMINFO": str(self.root / "meminfo"),
            "EDGEFORGE_DEVICE_TREE": str(self.root / "compatible"),
            **self.variables,
            **variables,
        }
        command = [shell, str(self.bundle / on_device.SCRIPT), *arguments]
        return subprocess.run(command, env=environment, cwd=self.root, capture_output=True, text=True, check=False)


def elsewhere() -> str:
    """The PATH without the folder of this Python, which may have the real tools beside it."""
    own = {str(Path(sys.executable).parent), str(Path(sys.prefix) / "bin")}
    return os.pathsep.join(folder for folder in os.environ["PATH"].split(os.pathsep) if folder not in own)


def bundled(root: Path, plan: BuildPlan, files: Mapping[str, str]) -> Device:
    device = Device(root=root)
    text = on_device.script(plan)
    assert text is not None
    content = {**files, on_device.SCRIPT: text, "manifest.json": "{}"}
    for name, value in content.items():
        device.bundle.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        device.bundle.joinpath(name).write_text(value)
    sums = "".join(f"{hashlib.sha256(value.encode()).hexdigest()}  {name}\n" for name, value in content.items())
    device.bundle.joinpath("SHA256SUMS").write_text(sums)
    root.joinpath("bin").mkdir()
    return device


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def jetson(tmp_path: Path) -> Device:
    """An AGX Orin with TensorRT Edge-LLM 0.11 and 58 GB free, and no nvidia-smi."""
    device = bundled(tmp_path, orin(), {"model/config.json": "{}", "model/model.safetensors": "weights"})
    tmp_path.joinpath("meminfo").write_text("MemTotal:       64000000 kB\nMemAvailable:   58000000 kB\n")
    tmp_path.joinpath("compatible").write_bytes(b"nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0")
    folder = tmp_path / "bin"
    executable(folder / "nvidia-smi", "#!/bin/sh\necho '[N/A]'\n")
    executable(folder / "tensorrt-edgellm-export", EXPORT)
    executable(folder / "llm_build", LLM_BUILD)
    edge_llm(device, "0.11.0")
    return device


def edge_llm(device: Device, version: str) -> None:
    """The Python package, in the environment beside its program."""
    site = device.root / f"site-{version}"
    metadata = site / f"tensorrt_edgellm-{version}.dist-info"
    metadata.mkdir(parents=True)
    metadata.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt-edgellm\nVersion: {version}\n")
    executable(device.root / "bin/python3", f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} "$@"\n')


@pytest.fixture
def server(tmp_path: Path) -> Device:
    """Two H100 and TensorRT-LLM 1.2.1."""
    ranks = {f"model/rank{rank}.safetensors": "weights" for rank in range(2)}
    device = bundled(tmp_path, h100x2(), {"model/config.json": '{"mapping": {"world_size": 2}}', **ranks})
    executable(tmp_path / "bin/nvidia-smi", NVIDIA_SMI.format(capability="9.0"))
    return device


def with_trtllm(device: Device, version: str = "1.2.1") -> Device:
    folder = install(device.root / f"venv-{version}", version).folder
    path = f"{folder}{os.pathsep}{device.root / 'bin'}{os.pathsep}{elsewhere()}"
    return Device(root=device.root, variables={"PATH": path})


@pytest.mark.parametrize("shell", ["sh", *SHELLS])
@pytest.mark.parametrize("plan", [orin, h100x2])
def test_the_script_is_sound_in_every_shell(tmp_path: Path, shell: str, plan: object) -> None:
    text = on_device.script(orin() if plan is orin else h100x2())
    assert text is not None and text.startswith("#!/bin/sh\n")
    done = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    checker = shutil.which("shellcheck")
    if checker:
        subprocess.run([checker, "-s", "sh", "-"], input=text, text=True, check=True)


def test_engines_that_load_the_files_as_they_are_need_no_script() -> None:
    for name in ("cpu-x86-64", "h100", "jetson-orin-nano-8gb"):
        assert on_device.script(draft_plan(LLAMA_8B, load_target(name))) is None


@pytest.mark.parametrize("shell", SHELLS)
def test_a_jetson_exports_and_builds_beside_the_bundle(jetson: Device, shell: str) -> None:
    before = snapshot(jetson.bundle)
    done = jetson.run(shell=shell)
    assert done.returncode == 0, done.stderr
    out = jetson.root / "my bundle-engine"
    assert done.stdout == f"{out}/engine\n"
    assert jetson.calls == [
        f"export {jetson.bundle}/model {out}/onnx.partial --externalize-weights int4_ffn",
        f"llm_build --onnxDir {out}/onnx/llm --engineDir {out}/engine.partial --maxBatchSize 1 --maxInputLen 8192 "
        "--maxKVCacheCapacity 8192",
        "plugin none",
    ]
    assert sorted(path.name for path in out.iterdir()) == ["engine", "engine.of", "onnx", "onnx.of"]
    assert "llm_inference --engineDir" in done.stderr
    assert snapshot(jetson.bundle) == before


def test_what_was_built_is_not_built_again_unless_the_bundle_is_another(jetson: Device) -> None:
    jetson.run()
    again = jetson.run()
    assert again.returncode == 0 and "is there" in again.stderr and again.stdout.endswith("/engine\n")
    assert len(jetson.calls) == 3
    manifest = '{"other": true}'
    jetson.bundle.joinpath("manifest.json").write_text(manifest)
    sums = jetson.bundle / "SHA256SUMS"
    old, new = (hashlib.sha256(text.encode()).hexdigest() for text in ("{}", manifest))
    lines = [line.replace(old, new) if "manifest" in line else line for line in sums.read_text().splitlines()]
    sums.write_text("\n".join(lines) + "\n")
    assert jetson.run().returncode == 0
    assert [call.split()[0] for call in jetson.calls] == 2 * ["export", "llm_build", "plugin"]


def test_an_export_from_another_machine_is_taken(jetson: Device) -> None:
    jetson.root.joinpath("bin/tensorrt-edgellm-export").unlink()
    refused = jetson.run()
    assert refused.returncode == 7 and "tensorrt-edgellm-export is not here" in refused.stderr
    onnx = jetson.root / "my bundle-engine/onnx/llm"
    onnx.mkdir(parents=True)
    onnx.joinpath("model.onnx").write_text("onnx")
    assert jetson.run().returncode == 0
    assert [call.split()[0] for call in jetson.calls] == ["llm_build", "plugin"]


def test_the_programs_of_a_source_tree_are_found_with_their_plugin(jetson: Device) -> None:
    build = jetson.root / "TensorRT-Edge-LLM/build"
    build.joinpath("examples/llm").mkdir(parents=True)
    build.joinpath("libNvInfer_edgellm_plugin.so").write_text("")
    shutil.move(jetson.root / "bin/llm_build", build / "examples/llm/llm_build")
    refused = jetson.run()
    assert refused.returncode == 7 and "llm_build of TensorRT Edge-LLM 0.11 is not here" in refused.stderr
    done = jetson.run(TENSORRT_EDGELLM=str(build.parent))
    assert done.returncode == 0, done.stderr
    assert jetson.calls[-1] == f"plugin {build}/examples/llm/../../libNvInfer_edgellm_plugin.so"


def test_too_little_memory_is_refused_before_any_work(jetson: Device) -> None:
    jetson.root.joinpath("meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable: 20000000 kB\n")
    refused = jetson.run()
    assert refused.returncode == 8 and not jetson.calls
    assert "3 to 4 bytes of memory per parameter: 22974 to 30633 MiB for the 8.0 billion parameters" in refused.stderr
    assert "19531 MiB are available" in refused.stderr and "hint: close other programs" in refused.stderr
    assert jetson.run(EDGEFORGE_ANY_MEMORY="1").returncode == 0


def test_scarce_memory_is_warned_of(jetson: Device) -> None:
    jetson.root.joinpath("meminfo").write_text("MemAvailable: 26000000 kB\n")
    done = jetson.run()
    assert done.returncode == 0 and "Memory may run out" in done.stderr


@pytest.mark.parametrize(
    ("compatible", "told", "sentence"),
    [
        (b"nvidia,tegra264\0", "[N/A]", "whose GPU has compute capability 8.7, and this one has 11.0"),
        (b"nvidia,tegra234\0", "8.9", "whose GPU has compute capability 8.7, and this one has 8.9"),
        (b"raspberrypi,5\0", "", "there is no NVIDIA GPU here"),
    ],
)
def test_another_gpu_is_refused_before_any_work(jetson: Device, compatible: bytes, told: str, sentence: str) -> None:
    jetson.root.joinpath("compatible").write_bytes(compatible)
    executable(jetson.root / "bin/nvidia-smi", f"#!/bin/sh\necho '{told}'\n")
    refused = jetson.run()
    assert refused.returncode == 7 and sentence in refused.stderr and not jetson.calls
    assert not jetson.engine.parent.exists()


def test_an_older_exporter_is_refused(jetson: Device) -> None:
    edge_llm(jetson, "0.9.1")
    refused = jetson.run()
    assert refused.returncode == 7 and "tensorrt-edgellm 0.9.1 is older than 0.11" in refused.stderr
    edge_llm(jetson, "0.12.0")
    assert jetson.run().returncode == 0


def test_a_damaged_bundle_is_not_built(jetson: Device) -> None:
    jetson.bundle.joinpath("model/model.safetensors").write_text("weight5")
    refused = jetson.run()
    assert refused.returncode == 6 and "damaged" in refused.stderr and not jetson.calls


@pytest.mark.parametrize(
    ("variable", "code", "exit_code", "sentence"),
    [
        ("EXPORT_FAILS", "1", 7, "tensorrt-edgellm-export failed with exit code 1"),
        ("BUILD_FAILS", "1", 7, "llm_build failed with exit code 1"),
        ("BUILD_FAILS", "137", 8, "llm_build was killed, as the system does when memory runs out"),
    ],
)
def test_a_failed_step_says_so_and_leaves_nothing_half_made(
    jetson: Device, variable: str, code: str, exit_code: int, sentence: str
) -> None:
    failed = jetson.run(**{variable: code})
    assert failed.returncode == exit_code and sentence in failed.stderr
    assert not jetson.engine.exists() and not list(jetson.engine.parent.glob("*.partial"))
    assert jetson.run().returncode == 0  # and goes on from there


def test_the_folder_can_be_chosen_and_is_never_in_the_bundle(jetson: Device) -> None:
    inside = jetson.run(str(jetson.bundle / "engine"))
    assert inside.returncode == 2 and "inside the bundle" in inside.stderr
    assert jetson.run("nowhere/engine").returncode == 2
    elsewhere = jetson.run("elsewhere")
    assert elsewhere.returncode == 0 and elsewhere.stdout == f"{jetson.root}/elsewhere/engine\n"
    assert jetson.run("--help").returncode == 0 and jetson.run("--wrong").returncode == 2


def test_a_server_builds_the_engines_of_all_ranks(server: Device) -> None:
    machine = with_trtllm(server)
    before = snapshot(server.bundle)
    done = machine.run()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{machine.engine}\n" and "trtllm-serve" in done.stderr
    assert sorted(path.name for path in machine.engine.iterdir()) == ["config.json", "rank0.engine", "rank1.engine"]
    assert snapshot(server.bundle) == before


def test_a_container_can_build_them(server: Device) -> None:
    container = install(server.root / "image").container
    done = server.run(TRTLLM_BUILD=f"{container} trtllm-build")
    assert done.returncode == 0, done.stderr
    assert (server.engine / "rank1.engine").is_file()


@pytest.mark.parametrize("version", ["1.3.0rc15", "0.21.0"])
def test_another_version_of_tensorrt_llm_is_refused(server: Device, version: str) -> None:
    refused = with_trtllm(server, version).run()
    assert refused.returncode == 7
    assert f"this is TensorRT-LLM {version}, and engines are built with 1.0 to 1.2.1" in refused.stderr


def test_without_trtllm_build_it_says_where_to_get_it(server: Device) -> None:
    refused = server.run()
    assert refused.returncode == 7 and "trtllm-build is not here" in refused.stderr
    assert "nvidia/tensorrt-llm/release:1.2.1" in refused.stderr


def test_a_failed_engine_build_leaves_nothing(server: Device) -> None:
    failed = with_trtllm(server).run(FAKE_TRTLLM="memory")
    assert failed.returncode == 7 and "OutOfMemory" in failed.stderr and "exit code 1" in failed.stderr
    assert not list(server.engine.parent.iterdir())
