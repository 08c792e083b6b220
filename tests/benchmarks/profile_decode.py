"""Where a decode step's time goes, operator by operator, beside what the machine's memory would allow.

    python tests/benchmarks/profile_decode.py BUNDLE [--threads N] [--past N] [--tokens N] [--steps N]

Runs the bundle's generation graph in onnxruntime under its profiler, always the same step: `--tokens` new ids after
`--past` cached ones. Each operator's figure is the 10th percentile over the steps, so that a busy machine disturbs
little. Bytes are the constants that the operator reads; the last column divides them by its time. The profiler itself
costs about 3 us a node, so the run without it is timed first.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
POSITIONS = 4096
READ_ELEMENTS = 1 << 26  # 256 MB of float32: no cache holds it


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """All nodes of one kind: how many, their microseconds in a step, and the bytes of constants that they read."""

    name: str
    nodes: int
    microseconds: float
    constant_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--past", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    chosen = parser.parse_args()
    path = chosen.bundle / "model" / "model.onnx"
    plain = _seconds(_session(path, chosen.threads), chosen.tokens, chosen.past, chosen.steps)
    with tempfile.TemporaryDirectory() as folder:
        session = _session(path, chosen.threads, profile=Path(folder) / "profile")
        _seconds(session, chosen.tokens, chosen.past, chosen.steps)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    operators = _operators(events, _constant_bytes(path))
    step = float(np.percentile(plain, 10))
    weights = sum(operator.constant_bytes for operator in operators)
    read = _read_bandwidth(chosen.threads)
    print(f"{chosen.tokens} token(s) after {chosen.past}, {chosen.threads} thread(s), {chosen.steps} steps")
    print(f"step      {1e3 * step:.2f} ms at the 10th percentile, {1e3 * float(np.median(plain)):.2f} ms median")
    print(f"constants {weights / 1e6:,.1f} MB a step: {weights / step / 1e9:.1f} GB/s")
    print(f"memory    {read / 1e9:.1f} GB/s by a plain read: {1e3 * weights / read:.2f} ms for those bytes")
    print()
    print("| operator | nodes | us a step | share | us a node | MB | GB/s |")
    print("|---|---|---|---|---|---|---|")
    total = sum(operator.microseconds for operator in operators)
    for each in operators:
        rate = each.constant_bytes / each.microseconds / 1e3
        print(
            f"| {each.name} | {each.nodes} | {each.microseconds:,.0f} | {each.microseconds / total:.1%} "
            f"| {each.microseconds / each.nodes:.1f} | {each.constant_bytes / 1e6:.1f} | {rate:.1f} |"
        )


def _session(path: Path, threads: int, profile: Path | None = None) -> ort.InferenceSession:
    """As edgeforge/runtime/graph.py opens it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.enable_mem_pattern = False
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _seconds(session: ort.InferenceSession, tokens: int, past: int, steps: int) -> list[float]:
    binding, kept = session.io_binding(), []

    def bind(name: str, output: str | None, array: np.ndarray) -> None:
        kept.append(array)
        place = (array.dtype.type, array.shape, array.ctypes.data)
        if name:
            binding.bind_input(name, "cpu", 0, *place)
        if output is not None:
            binding.bind_output(output, "cpu", 0, *place)

    for each in session.get_inputs():
        if each.name.startswith("past_key_values"):
            array = np.zeros((1, each.shape[1], POSITIONS, each.shape[3]), DTYPES[each.type])
            bind(each.name, each.name.replace("past_key_values", "present"), array)
    logits = next(each for each in session.get_outputs() if each.name == "logits")
    bind("", "logits", np.zeros((1, 1, logits.shape[2]), DTYPES[logits.type]))
    ids = np.random.default_rng(0).integers(3, logits.shape[2] - 3, (steps, 1, tokens))
    bind("attention_mask", None, np.ones((1, past + tokens), np.int64))
    seconds = []
    for step in ids:
        bind("input_ids", None, np.ascontiguousarray(step))
        started = time.perf_counter()
        session.run_with_iobinding(binding)
        seconds.append(time.perf_counter() - started)
    return seconds


def _constant_bytes(path: Path) -> dict[str, int]:
    """By node name. A table that is looked up is not read: it does not count."""
    graph = onnx.load(path, load_external_data=False).graph
    sizes = {
        tensor.name: int(np.prod(tensor.dims)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in graph.initializer
    }
    lookups = ("Gather", "GatherBlockQuantized", "GroupQueryAttention")
    return {
        node.name: 0 if node.op_type in lookups else sum(sizes.get(name, 0) for name in node.input)
        for node in graph.node
    }


def _operators(events: Sequence[Mapping[str, object]], constant_bytes: Mapping[str, int]) -> list[Operator]:
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        name = str(event["name"])
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            arguments = event["args"]
            assert isinstance(arguments, dict)
            kind = arguments["op_name"]
            if kind == "MatMulNBits":
                kind += f" to {next(iter(arguments['output_type_shape'][0].values()))[-1]}"
            durations[kind, name.removesuffix("_kernel_time")].append(float(str(event["dur"])))
    kinds: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for (kind, node), each in durations.items():
        kinds[kind].append((node, float(np.percentile(each, 10))))
    found = [
        Operator(
            name=kind,
            nodes=len(nodes),
            microseconds=sum(microseconds for _, microseconds in nodes),
            constant_bytes=sum(constant_bytes.get(node, 0) for node, _ in nodes),
        )
        for kind, nodes in kinds.items()
    ]
    return sorted(found, key=lambda each: -each.microseconds)


def _read_bandwidth(threads: int) -> float:
    """Bytes a second of the best of ten plain reads by so many threads (numpy's sum lets others run)."""
    from concurrent.futures import ThreadPoolExecutor

    parts = np.array_split(np.ones(READ_ELEMENTS, np.float32), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(10):
            started = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, 4 * READ_ELEMENTS / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    main()
