"""What the pass learned of activations, kept beside each layer's codes in the words of a scales file."""

import numpy as np
from numpy.typing import NDArray

from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.pipeline.calibration_source import CalibrationTokens
from edgeforge.pipeline.layerwise.layer import CacheFigures
from edgeforge.pipeline.layerwise.state import StateFolder, read_arrays
from edgeforge.pipeline.scales_file import INPUT, PRE_QUANT
from edgeforge.quantization.calibration import Calibration

Stored = dict[str, NDArray[np.generic]]


def figures_of(layer: int, cache: CacheFigures) -> Stored:
    return {
        f"layers.{layer}.k_amax": np.array(cache.keys, np.float32),
        f"layers.{layer}.v_amax": np.array(cache.values, np.float32),
    }


def calibration_of(state: StateFolder, a: LlamaArchitecture, tokens: CalibrationTokens) -> Calibration:
    """Of all parts. Magnitudes are rounded up to bfloat16, as `pipeline.calibration` rounds its own."""
    scalars: dict[str, float] = {}
    factors: dict[str, NDArray[np.float32]] = {}
    for number in range(a.num_hidden_layers + 1):
        for name, values in read_arrays(state.part(number), (INPUT, "_amax", PRE_QUANT)).items():
            if name.endswith(PRE_QUANT):
                factors[name.removesuffix(PRE_QUANT)] = values.astype(np.float32)
            else:
                scalars[name] = _rounded_up(values)
    layers = range(a.num_hidden_layers)
    return Calibration(
        inputs={linear.name: scalars[linear.name + INPUT] for linear in a.linears()},
        keys=tuple(scalars[f"layers.{layer}.k_amax"] for layer in layers),
        values=tuple(scalars[f"layers.{layer}.v_amax"] for layer in layers),
        pre_quant_scales=factors,
        tokens=tokens.ids.size,
        text_sha256=tokens.text_sha256,
    )


def _rounded_up(amax: NDArray[np.generic]) -> float:
    """The next bfloat16, as which the upper half of a float32 counts."""
    bits = (int(np.asarray(amax, np.float32).view(np.uint32)) + 0xFFFF) & 0xFFFF0000
    return float(np.asarray(bits, np.uint32).view(np.float32))
