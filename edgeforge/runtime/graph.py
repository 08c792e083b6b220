"""Opening a graph in onnxruntime: options, execution provider, thread count, and what to say when something is not
there.
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import MissingRequirement, UnusableBundle
from .requirements import ONNXRUNTIME, Device, import_package

_PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# What onnxruntime says of memory that it did not get.
OUT_OF_MEMORY = ("failed to allocate", "out of memory", "bad_alloc", "bad allocation")
DTYPES: dict[str, type[np.float32] | type[np.float16]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Argument(Protocol):
    """A graph's input or output, as onnxruntime describes it."""

    name: str
    type: str
    shape: Sequence[int | str | None]


class Value(Protocol):
    """onnxruntime.OrtValue: a tensor on some device."""

    def data_ptr(self) -> int: ...
    def shape(self) -> list[int]: ...
    def numpy(self) -> NDArray[np.generic]: ...


class Binding(Protocol):
    """onnxruntime.IOBinding."""

    def bind_input(
        self,
        name: str,
        device_type: str,
        device_id: int,
        element_type: DTypeLike,
        shape: Sequence[int],
        buffer_ptr: int,
    ) -> None: ...
    def bind_output(
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: DTypeLike | None = None,
        shape: Sequence[int] | None = None,
        buffer_ptr: int | None = None,
    ) -> None: ...
    def bind_ortvalue_input(self, name: str, ortvalue: Value) -> None: ...
    def get_outputs(self) -> list[Value]: ...
    def clear_binding_outputs(self) -> None: ...


class Graph(Protocol):
    """onnxruntime.InferenceSession."""

    def get_inputs(self) -> list[Argument]: ...
    def get_outputs(self) -> list[Argument]: ...
    def get_providers(self) -> list[str]: ...
    def io_binding(self) -> Binding: ...
    def run_with_iobinding(self, iobinding: Binding) -> None: ...


# Sessions can be run by several threads at once, and are closed when nobody holds them.
_open: WeakValueDictionary[object, Graph] = WeakValueDictionary()
_opening = threading.Lock()


def default_threads() -> int:
    """Physical cores that this process may use; no more than a container's CPU quota, since its threads spin."""
    if not hasattr(os, "sched_getaffinity"):  # macOS, Windows
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings or str(cpu))
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        return max(1, min(len(cores), -(-int(quota) // int(period))))
    return max(1, len(cores))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def open_graph(path: Path, *, device: Device, threads: int | None) -> Graph:
    """An onnxruntime session for latency: all optimizations, spinning threads, no growth of the arena beyond what a run
    asks. One that is open already is shared, since each has its weights in memory, in its kernels' own layout.

    MissingRequirement if the device is not there; UnusableBundle if onnxruntime refuses the graph.
    """
    status = path.stat() if path.exists() else None
    key = (path.resolve(), status and (status.st_mtime_ns, status.st_size, status.st_ino), device, threads)
    with _opening:
        graph = _open.get(key)
        if graph is None:
            graph = _open[key] = _new_graph(path, device=device, threads=threads)
        return graph


def _new_graph(path: Path, *, device: Device, threads: int | None) -> Graph:
    ort = import_package("onnxruntime", device)
    provider = _PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise MissingRequirement(
            f"this onnxruntime has no {provider}",
            hint=f"pip install '{ONNXRUNTIME[device]}', or run on the processor with device cpu",
        )
    if device == "cuda" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA libraries that pip installed are on no search path
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised; a log would land between the words of an answer
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads or default_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    # Patterns are kept per input shape, and the attention mask has a new shape at every token.
    options.enable_mem_pattern = False
    try:
        graph: Graph = ort.InferenceSession(str(path), options, providers=_providers(device))
    except Exception as error:  # onnxruntime raises a dozen classes that share no base but Exception
        raise _failure(f"onnxruntime {ort.__version__} cannot open {path.name}", error) from error
    if graph.get_providers()[0] != provider:
        raise MissingRequirement(
            f"{provider} could not be started: no NVIDIA driver, no device, or CUDA libraries that do not match",
            hint="check `nvidia-smi`, or run on the processor with device cpu",
        )
    return graph


def run(graph: Graph, binding: Binding) -> None:
    """Run the graph on what is bound; MemoryError where the memory ran out, else UnusableBundle with onnxruntime's
    reason.
    """
    try:
        graph.run_with_iobinding(binding)
    except Exception as error:
        raise _failure("onnxruntime stopped while it ran the model", error) from error


def _failure(what: str, error: Exception) -> Exception:
    reason = str(error).strip().split("\n")[0]
    if any(words in reason.lower() for words in OUT_OF_MEMORY):
        return MemoryError(f"there is not enough memory: {what} ({reason})")
    return UnusableBundle(f"{what}: {reason}")


def _providers(device: Device) -> list[str | tuple[str, dict[str, str]]]:
    if device == "cpu":
        return [_PROVIDERS["cpu"]]
    # The next power of two, onnxruntime's default, could double what the plan promised for a large model.
    return [(_PROVIDERS["cuda"], {"device_id": "0", "arena_extend_strategy": "kSameAsRequested"}), _PROVIDERS["cpu"]]
