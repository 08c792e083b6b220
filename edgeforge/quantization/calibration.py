"""What calibration knows of the activations: the figures that static scales, KV-cache scales and AWQ need.

A value without behaviour of its own: `edgeforge.pipeline.calibration` fills it, backends read it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Largest magnitudes met on calibration text, and the scales that an algorithm derived from it.

    inputs            max |x| of each linear's input, by its weight's name
    keys, values      max |k| (as cached: rotated) and max |v| of each layer
    pre_quant_scales  float32 [K] by weight name: the input is multiplied by it, and the weight's columns were divided
                      by it before they were quantized (AWQ, arXiv 2306.00978)
    tokens            how many tokens of text it took
    text_sha256       of the text, where there was one
    """

    inputs: Mapping[str, float] = field(default_factory=dict)
    keys: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    pre_quant_scales: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    tokens: int = 0
    text_sha256: str | None = None

    def shared_input(self, names: Sequence[str]) -> float | None:
        """max |x| over the inputs of linears that one kernel computes together; None where it is not known."""
        known = [self.inputs[name] for name in names if name in self.inputs]
        return max(known) if known else None


EMPTY = Calibration()
