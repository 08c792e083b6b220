"""How codes are chosen: which algorithm can make which scheme, and what `auto` stands for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgeforge.hardware.types import Target

AUTO = "auto"
INTEGERS = ("w4a16", "w6a16", "w8a16")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmFacts:
    """`schemes`: of the linears, None for all. `reads_text`: whether it runs the model on calibration text."""

    schemes: tuple[str, ...] | None
    reads_text: bool = False


ALGORITHMS: Mapping[str, AlgorithmFacts] = {
    "rtn": AlgorithmFacts(schemes=None),
    "search": AlgorithmFacts(schemes=INTEGERS),
    "gptq": AlgorithmFacts(schemes=(*INTEGERS, "w4a8", "fp8", "fp8-dynamic", "nvfp4"), reads_text=True),
    "awq": AlgorithmFacts(schemes=INTEGERS, reads_text=True),
    "awq+gptq": AlgorithmFacts(schemes=INTEGERS, reads_text=True),
}
BEST_WITH_TEXT: Mapping[str, str] = {"w4a16": "gptq", "fp8": "gptq", "fp8-dynamic": "gptq"}
"""By scheme; with the 8 bits of w8a16, what text can still bring is lost in what the activations lose. (e4m3 has three
bits of mantissa: SmolLM2-135M's weights lose 0.018 nats rounded, 0.010 with gptq.)"""


def with_algorithm(target: Target, *, has_text: bool = False) -> Target:
    """The target with `auto` made a word of ALGORITHMS. `has_text`: whether there is text to choose codes on."""
    if target.algorithm != AUTO:
        return target
    known = BEST_WITH_TEXT.get(target.scheme) if has_text else None
    return replace(target, algorithm=known or ("search" if target.scheme in INTEGERS else "rtn"))


def reads_text(algorithm: str) -> bool:
    """Whether the algorithm needs the calibrated pass."""
    return algorithm != AUTO and ALGORITHMS[algorithm].reads_text


def algorithm_conflict(target: Target) -> tuple[str, str] | None:
    """As `find_conflict`: (field, sentence saying what to use), or None."""
    if target.algorithm == AUTO:
        return None
    if target.algorithm not in ALGORITHMS:
        return "algorithm", f"algorithm '{target.algorithm}' is unknown; use {' or '.join((AUTO, *ALGORITHMS))}"
    schemes = ALGORITHMS[target.algorithm].schemes
    if schemes is None or target.scheme in schemes:
        return None
    able = [name for name, facts in ALGORITHMS.items() if facts.schemes is None or target.scheme in facts.schemes]
    return "algorithm", (
        f"algorithm {target.algorithm} makes {', '.join(schemes[:-1])} and {schemes[-1]}, not scheme {target.scheme}; "
        f"use --algorithm {' or '.join(able)}"
    )
