"""One module per consumer. Each turns a plan and neutral tensors into the files that its consumer loads.

A backend is a module (or package) that satisfies `Backend`; nothing registers itself: `load` knows them by name. The
pipeline walks the checkpoint once and hands every piece of every tensor to each sink, from several threads, in any
order.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edgeforge.model.checkpoint import GenerationDefaults, Weights
from edgeforge.model.placed_file import Extent
from edgeforge.planning import BuildPlan
from edgeforge.quantization.calibration import Calibration
from edgeforge.quantization.scheme import QuantizedTensor
from edgeforge.runtime.manifest import EngineRecord

Rows = QuantizedTensor | NDArray[np.float32]

_MODULES: Mapping[str, str] = {
    "onnx": "onnx",
    "modelopt": "modelopt",
    "compressed-tensors": "compressed_tensors",
    "tensorrt-llm": "tensorrt_llm",
    "trtllm-engine": "tensorrt_llm",  # the same checkpoint; `edgeforge.backends.trtllm_engine` goes on from there
}


class WeightSink(Protocol):
    """Takes rows of checkpoint tensors, by their Hugging Face names, and puts their bytes in place. Thread-safe.

    The same rows put again go to the same places, and no other rows go there.
    """

    def put(self, name: str, start: int, rows: Rows) -> Sequence[Extent]:
        """Rows `start` onwards of tensor `name`: a QuantizedTensor where the plan quantizes it, else float32. Returns
        where their bytes lie.

        FloatingPointError where a value is beyond the type it is stored in.
        """
        ...

    def keep(self, extents: Iterable[Extent]) -> None:
        """These were put by an earlier process, and are still there."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What the checkpoint says beside its weights. `config`: its config.json (of a GGUF file, the equivalent)."""

    config: Mapping[str, object]
    generation: GenerationDefaults


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """The names of the files in model/ that the manifest singles out; graphs are ONNX's."""

    weights: tuple[str, ...]
    graph: str | None = None
    scoring_graph: str | None = None
    runtime_graph: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What the consumer needs to load the files: PyPI packages with version ranges, and either an onnxruntime provider
    or another engine.
    """

    packages: Mapping[str, str]
    provider: str | None = None
    engine: EngineRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputScales:
    """How the stored files have their engine round what flows, read back from them. A linear goes by its weight's name.

    inputs            scale of the linear's input where it is static: of e4m3 numbers in fp8 and w4a8 (max |x| / 448),
                      of nvfp4's blocks (max |x| / 2688)
    pre_quant_scales  float32 [K]: the input is multiplied by it first; not where it was folded into a norm
    keys, values      per layer, the scales of the cached keys and values; empty where the cache is not quantized
    """

    inputs: Mapping[str, float] = field(default_factory=dict)
    pre_quant_scales: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    keys: tuple[float, ...] = ()
    values: tuple[float, ...] = ()


class Backend(Protocol):
    """What the pipeline asks of a backend module."""

    def requirements(self, plan: BuildPlan) -> Requirements: ...

    def files(self, plan: BuildPlan) -> ModelFiles: ...

    def check(self, plan: BuildPlan) -> None:
        """Raise what can be known to go wrong before any work: UsageError, UnusableInput."""
        ...

    def sink(self, plan: BuildPlan, calibration: Calibration, directory: Path) -> AbstractContextManager[WeightSink]:
        """Opens the weight files, at their final size, in `directory`, where an earlier process may have begun them.

        ValueError at the end where bytes are missing.
        """
        ...

    def finish(self, plan: BuildPlan, origin: Origin, directory: Path) -> None:
        """Writes everything that is not weights."""
        ...


class ReadableBackend(Backend, Protocol):
    """A backend whose files can be read back, to validate them where their engine cannot run."""

    def read_back(self, plan: BuildPlan, directory: Path) -> Weights:
        """The stored weights under their Hugging Face names, dequantized as the consumer's kernel would.

        `directory` is the bundle's model/. A weight whose input has a pre-quant scale in `read_inputs` is as stored,
        its columns divided by it; a norm is as stored, with what was folded into it. UnusableInput for files that are
        not as the plan says.
        """
        ...

    def read_inputs(self, plan: BuildPlan, directory: Path) -> InputScales:
        """The scales of inputs and of the cache that the files carry."""
        ...


def load(name: str) -> Backend:
    """The backend module of a target's `backend`. KeyError for a name that is not in BACKENDS."""
    return cast(Backend, import_module(f"edgeforge.backends.{_MODULES[name]}"))


def load_readable(name: str) -> ReadableBackend:
    """The same, for backends whose engine is not ONNX Runtime."""
    return cast(ReadableBackend, import_module(f"edgeforge.backends.{_MODULES[name]}"))
