"""Reads a compressed-tensors checkpoint back: weights as the package decompresses them, and the scales of inputs."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeforge.backends import InputScales
from edgeforge.backends.compressed_tensors.layout import WORD_CODES, cache_names, tensors
from edgeforge.backends.huggingface.layout import side
from edgeforge.backends.huggingface.stored import StoredTensors, StoredWeights, open_weights, stored_inputs
from edgeforge.backends.nibbles import unpack_words
from edgeforge.model.architecture import Linear
from edgeforge.planning import BuildPlan

Floats = NDArray[np.float32]


def read_back(plan: BuildPlan, directory: Path) -> StoredWeights:
    """The weights under Hugging Face's names. UnusableInput for files that are not as the plan says."""
    return open_weights(plan, StoredTensors(directory, tensors(plan)), _rows)


def read_inputs(plan: BuildPlan, directory: Path) -> InputScales:
    """Static input scales, and those of an FP8 cache. The format has no pre-quant scales."""
    return stored_inputs(plan, StoredTensors(directory, tensors(plan)), cache_names)


def _rows(plan: BuildPlan, stored: StoredTensors, linear: Linear, start: int, stop: int) -> Floats:
    """float32 [stop - start, K]"""
    scheme = plan.schemes[linear.name]
    scale_name = side(linear, "weight_scale")
    if scheme.code_format == "e4m3":
        codes = stored.floats(linear.name, start, stop)
        by_row = scheme.granularity == "channel"
        return codes * (stored.floats(scale_name, start, stop) if by_row else stored.scalar(scale_name))
    scales = stored.floats(scale_name, start, stop)
    words = stored.rows(side(linear, "weight_packed"), start, stop).view(np.int32)
    groups = unpack_words(words).astype(np.float32).reshape(*scales.shape, linear.in_features // scales.shape[1])
    if not scheme.symmetric:
        groups -= _zero_points(stored, side(linear, "weight_zero_point"), start, stop)[:, :, None]
    return np.asarray((groups * scales[:, :, None]).reshape(stop - start, linear.in_features))


def _zero_points(stored: StoredTensors, name: str, start: int, stop: int) -> Floats:
    """float32 [stop - start, G]"""
    words = stored.rows(name, start // WORD_CODES, -(-stop // WORD_CODES)).view(np.int32)
    rows = unpack_words(np.ascontiguousarray(words.T)).T
    return rows[start % WORD_CODES :][: stop - start].astype(np.float32)
