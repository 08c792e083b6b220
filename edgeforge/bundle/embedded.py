"""The runtime as a bundle carries it: a package in runtime/ that runs from there, or is installed by `pip install
BUNDLE/runtime`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import edgeforge.runtime
from edgeforge import __version__

# What no bundle of these backends needs: adapters to programs that run what has no graph, and optimum's graphs.
_PROGRAMS = ("llm_engine.py", "tensorrt_llm_program.py", "vllm_program.py")
_LEFT_OUT: Mapping[str, tuple[str, ...]] = {"onnx": (*_PROGRAMS, "growing.py"), "optimum": _PROGRAMS}
# hatchling adds nothing to the folder that it builds from, which is verified byte by byte.
_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "edgeforge-runtime"
version = {version}
description = "The runtime of an EdgeForge bundle"
requires-python = ">=3.10"
license = "Apache-2.0"
license-files = ["LICENSE"]
dependencies = {dependencies}

[project.optional-dependencies]
chat = ["jinja2>=3.1.4"]
guidance = ["llguidance>=1.0"]

[tool.hatch.build.targets.wheel]
include = ["*.py", "py.typed"]

[tool.hatch.build.targets.wheel.sources]
"" = "edgeforge_runtime"
"""


def runtime_files(backend: str, packages: Mapping[str, str]) -> dict[str, bytes]:
    """runtime/, __main__.py and edgeforge_runtime.py of a bundle that needs `packages` (">=1.2"), without bytecode."""
    folder = Path(edgeforge.runtime.__file__).parent
    left_out = _LEFT_OUT.get(backend, ())
    names = [path.name for path in folder.iterdir() if path.suffix == ".py" or path.name in ("LICENSE", "py.typed")]
    files = {f"runtime/{name}": (folder / name).read_bytes() for name in names if name not in left_out}
    files["runtime/pyproject.toml"] = _project(packages).encode()
    files["__main__.py"] = Path(__file__).with_name("entry.py").read_bytes()
    files["edgeforge_runtime.py"] = Path(__file__).with_name("installed_name.py").read_bytes()
    return dict(sorted(files.items()))


def _project(packages: Mapping[str, str]) -> str:
    dependencies = [f"{package}{least}" for package, least in sorted(packages.items())]
    return _PROJECT.format(version=json.dumps(__version__), dependencies=json.dumps(dependencies))
