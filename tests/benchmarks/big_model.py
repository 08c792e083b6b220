"""The models that the benchmarks build, as Hugging Face directories that every peer reads.

    python tests/benchmarks/big_model.py [full|small|demo|8b|8b-layer|405b-layer]

`full` is four layers of Llama 3.1 8B's shape with its whole vocabulary (1.92 billion weights, 3.8 GB of bfloat16);
`8b` has all 32 (16 GB), `8b-layer` one, `405b-layer` is one layer of Llama 3.1 405B with its embedding and head
(14.9 GB); `small` is one narrow layer under the same vocabulary, to try the benchmarks out; `demo` is the demo model,
dequantized. Weights of all but the last are random, N(0, 0.02): speed does not depend on them. They are made once and
kept.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edgeforge.model.architecture import LlamaArchitecture, architecture_from_config, hf_config
from edgeforge.model.checkpoint import open_checkpoint
from edgeforge.model.safetensors_writer import SafetensorsWriter, write_safetensors

ROOT = Path(__file__).resolve().parents[2]
SEED = 31_008
DEVIATION = 0.02  # initializer_range of Llama 3.1's config.json
PIECE_ELEMENTS = 1 << 22

SIZES: dict[str, dict[str, int]] = {
    "full": {"num_hidden_layers": 4},
    "8b": {},
    "8b-layer": {"num_hidden_layers": 1},
    "405b-layer": {
        "num_hidden_layers": 1,
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_attention_heads": 128,
    },
    "small": {
        "num_hidden_layers": 1,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
FOLDERS = {
    "full": "llama-3.1-8b-4-layers",
    "8b": "llama-3.1-8b",
    "8b-layer": "llama-3.1-8b-1-layer",
    "405b-layer": "llama-3.1-405b-1-layer",
    "small": "llama-3.1-small",
    "demo": "demo-hf",
}


def cache_folder() -> Path:
    """EDGEFORGE_BENCH_CACHE, else a folder of the user's cache."""
    if named := os.environ.get("EDGEFORGE_BENCH_CACHE"):
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgeforge" / "benchmarks"


def data_folder() -> Path:
    """The read-only test data, which holds Llama 3.1's config.json and tokenizer."""
    return Path(os.environ.get("EDGEFORGE_TEST_DATA", ROOT.parent / "shared" / "data"))


def model_folder(size: str) -> Path:
    """The model's directory in the cache, made now if it is not there. `size`: a key of FOLDERS."""
    folder = cache_folder() / FOLDERS[size]
    if not folder.is_dir():
        with appearing(folder) as partial:
            if size == "demo":
                _write_demo(partial)
            else:
                _write_random(partial, SIZES[size])
    return folder


@contextmanager
def appearing(path: Path, *, folder: bool = True) -> Iterator[Path]:
    """A folder (or a file to be) beside `path` that takes its name at the end: an interrupted one is never used."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if folder:
        partial.mkdir(parents=True)
    yield partial
    partial.rename(path)


def _write_random(folder: Path, changes: dict[str, int]) -> None:
    data = data_folder()
    config = json.loads((data / "configs" / "meta-llama--Meta-Llama-3.1-8B_config.json").read_text()) | changes
    architecture = architecture_from_config(config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(data / "tokenizers" / "llama3" / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shapes = list(architecture.tensors())
    rows = [(name, "BF16", shape) for name, shape in shapes]
    with (
        write_safetensors(folder / "model.safetensors", rows, metadata={"format": "pt"}) as writer,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
    ):
        list(pool.map(lambda item: _write_tensor(writer, *item), enumerate(shapes)))


def _write_tensor(writer: SafetensorsWriter, index: int, tensor: tuple[str, tuple[int, ...]]) -> None:
    """A generator per tensor: the bytes do not depend on who writes first."""
    name, shape = tensor
    if len(shape) == 1:
        writer.write(name, 0, np.ones(shape, np.float32))
        return
    random = np.random.default_rng((SEED, index))
    step = max(1, PIECE_ELEMENTS // shape[1])
    for start in range(0, shape[0], step):
        piece = random.standard_normal((min(step, shape[0] - start), shape[1]), np.float32)
        piece *= np.float32(DEVIATION)
        writer.write(name, start, piece)


def _write_demo(folder: Path) -> None:
    """The demo's weights as bfloat16, which the peers' converters take and which is wider than its own 4 bits."""
    checkpoint = open_checkpoint("demo")
    architecture: LlamaArchitecture = checkpoint.architecture
    for name, content in checkpoint.tokenizer.files.items():
        (folder / name).write_bytes(content)
    config = hf_config(architecture, dtype="bfloat16")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = [checkpoint.tensor(name) for name in checkpoint.names]
    rows = [(tensor.name, "BF16", tensor.shape) for tensor in tensors]
    with write_safetensors(folder / "model.safetensors", rows, metadata={"format": "pt"}) as writer:
        for tensor in tensors:
            writer.write(tensor.name, 0, tensor.rows(0, tensor.shape[0]))


if __name__ == "__main__":
    for size in sys.argv[1:] or ["full", "demo"]:
        print(model_folder(size))
