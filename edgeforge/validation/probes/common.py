"""What every probe is given, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeforge.model.checkpoint import Checkpoint
from edgeforge.runtime.model import Model
from edgeforge.validation.findings import Language, Layer, PositionRange, ProbeFigure, ProbeVerdict
from edgeforge.validation.gate import Limits
from edgeforge.validation.paired import mcnemar

Tell = Callable[[float], None]
"""Gets the share of a probe's work that is done, 0 .. 1."""

SIGNIFICANCE = 0.01
"""The chance at which a probe calls a difference real that is none: small, since a report holds several probes."""
FEWEST_POSITIONS = 1024
"""A shorter context has no long inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The bundle at `bundle` and its original: `candidate` runs the one, `reference` the other at full precision."""

    bundle: Path
    checkpoint: Checkpoint
    reference: Model
    candidate: Model
    limits: Limits

    @property
    def context_length(self) -> int:
        """What both models have room for."""
        return min(self.reference.context_length, self.candidate.context_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a probe says, and the rows of the report's tables that it fills. `summary` is one sentence for people."""

    verdict: ProbeVerdict
    summary: str
    figures: tuple[ProbeFigure, ...] = ()
    languages: tuple[Language, ...] = ()
    positions: tuple[PositionRange, ...] = ()
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Whether each item was right, for both models."""

    reference: tuple[bool, ...]
    candidate: tuple[bool, ...]

    @property
    def lost(self) -> int:
        return sum(a and not b for a, b in zip(self.reference, self.candidate, strict=True))

    @property
    def gained(self) -> int:
        return sum(b and not a for a, b in zip(self.reference, self.candidate, strict=True))

    @property
    def p_value(self) -> float:
        return mcnemar(self.lost, self.gained)

    @property
    def surely_worse(self) -> bool:
        return self.lost > self.gained and self.p_value < SIGNIFICANCE


def skipped(reason: str) -> Found:
    """The probe does not apply; `reason` is a sentence."""
    return Found(verdict="skipped", summary=reason)


def share(name: str, reference: float | None, candidate: float) -> ProbeFigure:
    """A fraction, as a percentage."""
    return ProbeFigure(
        name=name, reference=None if reference is None else 100 * reference, candidate=100 * candidate, unit="%"
    )


def listed(names: list[str]) -> str:
    """a, b and c"""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
