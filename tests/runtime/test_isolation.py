"""The runtime stands alone: copied out as `runtime`, it imports numpy, onnxruntime, tokenizers and nothing else."""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
from tiny_bundle import make_bundle, make_engine_bundle

from edgeforge import __version__
from edgeforge.bundle import runtime_files
from edgeforge.runtime.integrity import verify

ALLOWED = {"numpy", "onnxruntime", "tokenizers", "runtime"}
# What those three import themselves, wherever it is installed.
THEIRS = {"google", "flatbuffers", "sympy", "mpmath", "coloredlogs", "humanfriendly", "packaging", "ml_dtypes"}
PROBE = """
import importlib.abc, json, sys
sys.path.insert(0, sys.argv[1])

class Watch(importlib.abc.MetaPathFinder):
    '''Records what the runtime's own modules import; what numpy and the others import is theirs.'''
    seen = set()
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while frame and ("importlib" in frame.f_code.co_filename):
            frame = frame.f_back
        if frame and "/runtime/" in frame.f_code.co_filename:
            self.seen.add(name.split(".")[0])
        return None

sys.meta_path.insert(0, Watch())
before = set(sys.modules)
import runtime
light = sorted({name.split(".")[0] for name in set(sys.modules) - before})
model = runtime.load(sys.argv[1], threads=1)
text = "".join(chunk.text for chunk in model.generate([1, 2, 3], max_new_tokens=3, ignore_eos=True))
model.score([1, 2, 3])
loaded = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps({"light": light, "seen": sorted(Watch.seen), "loaded": loaded, "file": runtime.__file__}))
"""


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd="/", env=kept | environment, check=False
    )


@pytest.fixture(scope="module")
def probe(tiny: Path) -> dict:
    result = run(["-I", "-B", "-c", PROBE, str(tiny)])
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_it_runs_from_the_bundle(probe: dict, tiny: Path) -> None:
    assert probe["file"] == str(tiny / "runtime/__init__.py")


def test_it_imports_only_what_is_allowed(probe: dict) -> None:
    outside = set(probe["seen"]) - set(sys.stdlib_module_names)
    assert outside == {"numpy", "onnxruntime", "tokenizers", "runtime"}
    assert not set(probe["loaded"]) & {"edgeforge", "onnx", "torch", "transformers", "jinja2", "click", "gguf"}


def test_importing_it_is_light(probe: dict) -> None:
    assert set(probe["light"]) - set(sys.stdlib_module_names) == {"runtime"}


def test_a_bundle_carries_the_runtime_verbatim_and_no_bytecode() -> None:
    files = runtime_files("onnx", {"numpy": ">=1.26"})
    assert list(files) == sorted(files)
    others = {name for name in files if not name.endswith(".py")}
    assert others == {"runtime/LICENSE", "runtime/py.typed", "runtime/pyproject.toml"}
    assert b"Apache License" in files["runtime/LICENSE"]


def test_a_bundle_with_a_graph_leaves_the_other_engines_adapters_out() -> None:
    every = set(runtime_files("modelopt", {}))
    programs = {f"runtime/{name}.py" for name in ("llm_engine", "tensorrt_llm_program", "vllm_program")}
    assert every - set(runtime_files("optimum", {})) == programs
    assert every - set(runtime_files("onnx", {})) == {*programs, "runtime/growing.py"}


def test_a_graphs_runtime_says_that_it_cannot_open_another_engines_bundle(tmp_path: Path, tiny: Path) -> None:
    bundle = make_engine_bundle(tmp_path / "b")
    tests = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    code = f"""
import sys, pathlib
sys.path[:0] = [{str(tiny)!r}]
import pytest
import runtime
sys.path += {tests!r}
monkeypatch = pytest.MonkeyPatch()
import engine_fakes
engine_fakes.install_vllm(monkeypatch, pathlib.Path({str(tmp_path / "site")!r}))
engine_fakes.install_gpus(monkeypatch, pathlib.Path({str(tmp_path / "bin")!r}), "NVIDIA L4, 8.9, 23034, 580.82")
with pytest.raises(runtime.MissingRequirement, match="no adapter to vLLM") as caught:
    runtime.load({str(bundle)!r})
assert {str(bundle)!r} in caught.value.hint
"""
    result = run(["-B", "-c", code])
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_what_a_bundle_carries_stays_small(tiny: Path) -> None:
    """Lines of code without comments, docstrings and blank lines."""
    assert sum(code_lines(path.read_text(encoding="utf-8")) for path in (tiny / "runtime").glob("*.py")) < 2900


def code_lines(source: str) -> int:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documentation = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, documented) and ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    nothing = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in nothing
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(code - documentation)


ANSWER = """
import sys
sys.path.insert(0, sys.argv[1])
from edgeforge_runtime import Speculation, load
from edgeforge_runtime.errors import UnusableBundle
model = load(sys.argv[2], threads=1)
answer = model.generate([1, 2, 3], max_new_tokens=3, ignore_eos=True, speculate=Speculation())
print([id for chunk in answer for id in chunk.token_ids], type(model).__module__)
"""


def test_it_has_its_installed_name_in_the_bundles_folder_too(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    for _ in range(2):  # the second time with the bytecode that the first left
        result = run(["-c", ANSWER, str(bundle), str(bundle)])
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.endswith("] edgeforge_runtime.model\n")


def test_pip_installs_it_and_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    offline = ["--no-build-isolation", "--no-deps", "--no-index", "--no-compile", "--quiet"]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        *offline,
        "--target",
        str(tmp_path / "site"),
        str(bundle / "runtime"),
    ]
    subprocess.run(pip, check=True, capture_output=True)
    verify(bundle, "full")
    assert {path.name for path in (tmp_path / "site").iterdir()} == {
        "edgeforge_runtime",
        f"edgeforge_runtime-{__version__}.dist-info",
    }
    installed = {path.name for path in (tmp_path / "site/edgeforge_runtime").iterdir()}
    carried = {path.name for path in (bundle / "runtime").iterdir()} - {"LICENSE", "pyproject.toml"}
    assert installed == carried
    result = run(["-I", "-B", "-c", ANSWER, str(tmp_path / "site"), str(bundle)])
    assert (result.returncode, result.stderr) == (0, "")
    metadata = (tmp_path / f"site/edgeforge_runtime-{__version__}.dist-info/METADATA").read_text(encoding="utf-8")
    assert "Requires-Dist: onnxruntime>=1.23" in metadata


def test_python_bundle_answers_and_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    for _ in range(2):
        result = run([str(bundle), "Hello", "--max-new-tokens", "4", "--verify", "full"])
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.endswith("\n")
        assert not list(bundle.rglob("__pycache__"))


def test_embedding_a_bundle_twice_works_though_python_leaves_bytecode(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import runtime; runtime.load(sys.argv[1])"
    for _ in range(2):
        result = run(["-c", code, str(bundle)])
        assert (result.returncode, result.stderr) == (0, "")
    assert list(bundle.rglob("*.pyc"))


def test_a_corrupted_bundle_says_so_and_exits_6(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    (bundle / "model/tokenizer.json").write_text("{}")
    result = run([str(bundle), "Hello"])
    assert result.returncode == 6
    assert "model/tokenizer.json" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("package", ["numpy", "onnxruntime", "tokenizers"])
def test_a_missing_package_exits_7_with_the_pip_command(tmp_path: Path, tiny: Path, package: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
    result = run([str(tiny), "Hello"], PYTHONPATH=str(tmp_path))
    assert result.returncode == 7
    assert f"hint: pip install '{package}'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_moved_bundle_still_runs(tmp_path: Path, tiny: Path) -> None:
    moved = shutil.copytree(tiny, tmp_path / "with space" / "é")
    assert run([str(moved), "Hello", "--max-new-tokens", "2"]).returncode == 0


def test_a_cuda_bundle_asks_for_the_cuda_edition(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", provider="CUDAExecutionProvider")
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['onnxruntime'] = None\n")
    result = run([str(bundle), "Hello"], PYTHONPATH=str(tmp_path))
    assert result.returncode == 7
    assert "hint: pip install 'onnxruntime-gpu" in result.stderr


def test_a_bundle_of_another_engine_needs_no_onnxruntime_and_says_what_it_does_need(tmp_path: Path) -> None:
    bundle = make_engine_bundle(tmp_path / "b")
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['onnxruntime'] = None\n")
    result = run([str(bundle), "Hello"], PYTHONPATH=str(tmp_path))
    assert result.returncode == 7
    assert result.stderr == (
        "error: this bundle needs TensorRT-LLM 1.0 or vLLM 0.16 or newer\nhint: pip install 'tensorrt-llm>=1.0'\n"
    )
    assert result.stdout == ""


def test_the_runtime_of_an_engine_bundle_answers_alone(tmp_path: Path) -> None:
    """With the tests' vLLM and GPU: the bundle's own copy of the runtime, and no EdgeForge."""
    bundle = make_engine_bundle(tmp_path / "b")
    tests = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    code = f"""
import sys, pathlib
sys.path[:0] = [{str(bundle)!r}]
import pytest
import runtime
sys.path += {tests!r}
monkeypatch = pytest.MonkeyPatch()
import engine_fakes
engine_fakes.install_vllm(monkeypatch, pathlib.Path({str(tmp_path / "site")!r}))
engine_fakes.install_gpus(monkeypatch, pathlib.Path({str(tmp_path / "bin")!r}), "NVIDIA L4, 8.9, 23034, 580.82")
model = runtime.load({str(bundle)!r})
assert type(model).__module__ == "runtime.model"
assert len(list(model.generate([1, 2, 3], max_new_tokens=3, ignore_eos=True))) > 0
"""
    result = run(["-B", "-c", code])
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
