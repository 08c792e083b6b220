"""Reads .safetensors files by the format's own description: a length, a JSON header, bytes that tile the rest.

Nothing of edgeforge and no package that knows the format, so that a mistake in either shows.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Floats = NDArray[np.float32]
DTYPES: dict[str, np.dtype[np.generic]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""The sixteen numbers of NVFP4 in the order of their bits: a sign, two bits of exponent, one of fraction."""


def read_json(path: Path) -> dict[str, object]:
    content = json.loads(path.read_text("utf-8"))
    assert isinstance(content, dict)
    return content


def number(config: Mapping[str, object], key: str) -> int:
    """A whole number out of a config."""
    value = config[key]
    assert isinstance(value, int)
    return value


def read_file(path: Path) -> dict[str, Array]:
    """Every tensor of one file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    data = content[8 + length :]
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        assert begin == end, f"{path.name}: a hole before {name}"
        assert stop - begin == math.prod(shape) * dtype.itemsize, f"{path.name}: {name} is not as long as its shape"
        tensors[name] = np.frombuffer(data[begin:stop], dtype).reshape(shape)
        end = stop
    assert end == len(data), f"{path.name}: {len(data) - end} bytes belong to no tensor"
    return tensors


def read_folder(folder: Path) -> dict[str, Array]:
    """Every tensor of a Hugging Face checkpoint, one file or several with an index."""
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        assert files == ["model.safetensors"]
        return read_file(folder / files[0])
    listed = read_json(index)
    weight_map, metadata = listed["weight_map"], listed["metadata"]
    assert isinstance(weight_map, dict) and isinstance(metadata, dict)
    assert sorted(set(weight_map.values())) == files
    tensors: dict[str, Array] = {}
    for file in files:
        found = read_file(folder / file)
        assert {name for name, place in weight_map.items() if place == file} == set(found)
        tensors |= found
    assert metadata["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    return tensors


def typed(tensors: dict[str, Array], name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    """Take the tensor out of `tensors`; it must be there, of this type and shape."""
    tensor = tensors.pop(name)
    assert (tensor.dtype, tensor.shape) == (DTYPES[dtype], shape), f"{name}: {tensor.dtype} {tensor.shape}"
    return tensor


def scalar(tensors: dict[str, Array], name: str, shape: tuple[int, ...] = ()) -> float:
    """A positive float32, taken out of `tensors`."""
    value = float(typed(tensors, name, "F32", shape).reshape(-1)[0])
    assert 0 < value < np.inf, f"{name} is {value}"
    return value


def signed_nibbles(nibbles: Array) -> NDArray[np.int8]:
    """0..15 -> -8..7, as two's complement has it."""
    return ((nibbles.astype(np.int8) ^ 8) - 8).astype(np.int8)


def unpack_rows(packed: Array) -> NDArray[np.int8]:
    """[N / 2, K] bytes -> [N, K] signed: row 2i is in the low nibble of row i, row 2i + 1 in the high one."""
    pairs = packed.view(np.uint8)
    return signed_nibbles(np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1, pairs.shape[1]))


def spread(scales: Array, width: int) -> Floats:
    """[N, G] -> float32 [N, width]: each group's scale at each of its places."""
    groups = scales.shape[1]
    assert width % groups == 0
    return np.repeat(scales.astype(np.float32), width // groups, axis=1)
