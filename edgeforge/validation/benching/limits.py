"""What this machine can do at most: read memory, and multiply small integers. Measured between the repeats, so that
both sides of a roofline saw the same machine.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeforge.validation.benching.records import MachineLimits, Spread

MIB = 1024 * 1024
# Past this a longer read is no slower, and the buffer would take the memory that the model needs.
MOST_BUFFER_BYTES = 1024 * MIB
# What no cache holds: several times the last level's size.
CACHES_IN_BUFFER = 4
# Where the system does not tell how large its caches are: more than any desktop has.
UNKNOWN_CACHE_BYTES = 64 * MIB
# The best of a few in a row: onnxruntime's threads still spin for a moment after a run.
PASSES = 3
# Large enough that the product is bound by arithmetic, small enough to take about 50 ms on a laptop.
MATRIX_SIZE = 2048


class MachineProbe:
    """Samples both limits whenever `sample` is called; `limits` sums up. A class for its buffers and threads."""

    def __init__(self, *, weight_bytes: int, threads: int) -> None:
        self._threads = threads
        size = buffer_bytes(weight_bytes, last_level_cache_bytes())
        # Ones, since pages that were never written are all the same zero page, which the cache holds.
        self._pieces = np.array_split(np.ones(size // 8, np.int64), 4 * threads)
        self._buffer_bytes = sum(piece.nbytes for piece in self._pieces)
        self._pool = ThreadPoolExecutor(threads)
        self._multiply = integer_product(threads)
        self._read: list[float] = []
        self._operations: list[float] = []

    def sample(self) -> None:
        self._read.append(self._buffer_bytes / _fastest(self._read_all))
        self._operations.append(2 * MATRIX_SIZE**3 / _fastest(self._multiply))

    def limits(self) -> MachineLimits:
        return MachineLimits(
            threads=self._threads,
            buffer_bytes=self._buffer_bytes,
            read_bytes_per_s=Spread.of(self._read),
            int8_operations_per_s=Spread.of(self._operations),
        )

    def close(self) -> None:
        self._pool.shutdown()
        self._pieces.clear()

    def _read_all(self) -> None:
        list(self._pool.map(_read, self._pieces))


def buffer_bytes(weight_bytes: int, cache_bytes: int) -> int:
    """As large as the weights, but more than the cache holds and no more than is reasonable."""
    return min(max(weight_bytes, CACHES_IN_BUFFER * cache_bytes), MOST_BUFFER_BYTES)


def last_level_cache_bytes(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """The largest cache that Linux lists for the first processor."""
    sizes = [path.read_text(encoding="ascii").strip() for path in root.glob("index*/size")]
    return max(
        (int(size.removesuffix("K")) * 1024 for size in sizes if size.endswith("K")), default=UNKNOWN_CACHE_BYTES
    )


def integer_product(threads: int) -> Callable[[], object]:
    """A call that multiplies two int8 matrices [n, n] in onnxruntime, whose kernels the bundle's own product uses."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    shape = [MATRIX_SIZE, MATRIX_SIZE]
    random = np.random.default_rng(0)
    left = random.integers(0, 255, shape, np.uint8)
    right = random.integers(-128, 127, shape, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("product", TensorProto.INT32, shape)],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the model's threads come next
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"left": left})


def _read(piece: NDArray[np.int64]) -> None:
    # One vector operation a load: numpy has none that is nearer to a plain read, and it lets go of the interpreter.
    np.bitwise_or.reduce(piece)


def _fastest(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(PASSES):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
