"""A scales file: what calibration found, as a safetensors file of float32 numbers, to be used again or made elsewhere.

    WEIGHT.pre_quant_scale       [K], where an algorithm found one: what the linear's input is multiplied by
    WEIGHT.input_amax            scalar: max |x| of the input, so multiplied, of the linear with that weight
    layers.N.k_amax, .v_amax     scalars: max |k| and |v| of layer N's cache

WEIGHT is the tensor's name in the checkpoint. The metadata has the checkpoint's fingerprint, which must be the same
where it is used, the number of tokens and the SHA-256 of the text.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import OutOfResources, UnusableInput
from edgeforge.model import fields
from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.model.safetensors_header import TensorEntry, read_header
from edgeforge.model.safetensors_writer import write_safetensors
from edgeforge.quantization.calibration import Calibration

SUFFIX = ".safetensors"
AGAIN = "measure anew: leave --calibration out, and --save-calibration keeps the figures"
INPUT, PRE_QUANT = ".input_amax", ".pre_quant_scale"


def save(calibration: Calibration, path: Path, *, fingerprint: str) -> None:
    """Write the figures to `path`; an older file is replaced once the new one is whole."""
    figures: dict[str, NDArray[np.float32]] = {
        name + INPUT: np.array(amax, np.float32) for name, amax in calibration.inputs.items()
    }
    for layer, (k, v) in enumerate(zip(calibration.keys, calibration.values, strict=True)):
        figures |= {name: np.array(amax, np.float32) for name, amax in zip(_cache(layer), (k, v), strict=True)}
    figures |= {name + PRE_QUANT: scale for name, scale in calibration.pre_quant_scales.items()}
    metadata = {"format": "edgeforge-calibration", "fingerprint": fingerprint, "tokens": str(calibration.tokens)}
    if calibration.text_sha256 is not None:
        metadata["text_sha256"] = calibration.text_sha256
    try:
        with write_safetensors(
            path, [(name, "F32", value.shape) for name, value in figures.items()], metadata=metadata
        ) as writer:
            for name, value in figures.items():
                writer.write(name, 0, value)
    except OSError as error:
        raise OutOfResources(
            f"the scales cannot be written to {path}: {error.strerror}", hint="give another place"
        ) from None


def load(path: Path, checkpoint: Checkpoint) -> Calibration:
    """The figures in `path`, checked against the checkpoint. UnusableInput says what is missing, or wrong."""
    header = read_header(path)
    metadata = fields.parse_json(header.raw, str(path)).get("__metadata__")
    told = metadata if isinstance(metadata, dict) else {}
    _check_fingerprint(path, told.get("fingerprint"), checkpoint.fingerprint)
    architecture = checkpoint.architecture
    found = {entry.name: entry for entry in header.entries}
    _check_names(path, found, architecture)
    figures = {name: _read(path, entry) for name, entry in found.items()}
    caches = [_cache(layer) for layer in range(architecture.num_hidden_layers)]
    tokens, text = str(told.get("tokens", "0")), told.get("text_sha256")
    return Calibration(
        inputs={linear.name: figures[linear.name + INPUT].item() for linear in architecture.linears()},
        keys=tuple(figures[k].item() for k, _ in caches),
        values=tuple(figures[v].item() for _, v in caches),
        pre_quant_scales={name.removesuffix(PRE_QUANT): figures[name] for name in found if name.endswith(PRE_QUANT)},
        tokens=int(tokens) if tokens.isdecimal() else 0,
        text_sha256=text if isinstance(text, str) else None,
    )


def known(path: Path, checkpoint: Checkpoint, text_sha256: str) -> Calibration | None:
    """The figures in `path`, where it is there and they were measured with this checkpoint on this text."""
    try:
        found = load(path, checkpoint) if path.exists() else None
    except UnusableInput:
        return None
    return found if found is not None and found.text_sha256 == text_sha256 else None


def _cache(layer: int) -> tuple[str, str]:
    return f"layers.{layer}.k_amax", f"layers.{layer}.v_amax"


def _scalars(architecture: LlamaArchitecture) -> Iterator[str]:
    yield from (linear.name + INPUT for linear in architecture.linears())
    for layer in range(architecture.num_hidden_layers):
        yield from _cache(layer)


def _check_fingerprint(path: Path, told: object, fingerprint: str) -> None:
    """A file from elsewhere need not have one."""
    if told is not None and told != fingerprint:
        raise UnusableInput(f"{path} has the scales of another checkpoint than this one", hint=AGAIN)


def _check_names(path: Path, found: dict[str, TensorEntry], architecture: LlamaArchitecture) -> None:
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_scalars(architecture), ())
    missing = [name for name in shapes if name not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UnusableInput(f"{path} lacks {missing[0]}{more}", hint=AGAIN)
    shapes |= {linear.name + PRE_QUANT: (linear.in_features,) for linear in architecture.linears()}
    for name, entry in found.items():
        if name not in shapes:
            raise UnusableInput(f"{path} holds {name}, which is no scale of this model", hint=AGAIN)
        fitting = (shapes[name],) if shapes[name] else ((), (1,))
        if entry.dtype != "F32" or entry.shape not in fitting:
            raise UnusableInput(
                f"{path}: {name} is {entry.dtype} {list(entry.shape)}, expected F32 {list(shapes[name])}", hint=AGAIN
            )


def _read(path: Path, entry: TensorEntry) -> NDArray[np.float32]:
    with path.open("rb") as file:
        file.seek(entry.start)
        values = np.frombuffer(file.read(entry.size_bytes), "<f4").reshape(entry.shape)
    good = np.isfinite(values) & ((values > 0) if entry.name.endswith(PRE_QUANT) else (values >= 0))
    if not good.all():
        raise UnusableInput(f"{path}: {entry.name} is {values[~good][0]}, which is no scale", hint=AGAIN)
    return values.astype(np.float32)
