"""What two bundles' reports come to side by side, as one frozen value and as versioned JSON."""

from dataclasses import asdict, dataclass
from typing import Literal

from edgeforge.validation.findings import Comparison, Interval, ProbeVerdict
from edgeforge.validation.gate import Verdict

SCHEMA_VERSION = 1
Better = Literal["a", "b"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two bundles."""

    name: str
    target: str
    manifest_sha256: str
    edgeforge_version: str
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class FigurePair:
    """A figure on the same text. `better`: whose is, where the interval leaves no doubt; quantiles have no interval."""

    name: str
    a: float
    b: float
    comparison: Comparison
    higher_is_better: bool
    change: float
    interval: Interval | None
    better: Better | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPair:
    """A task's first metric on the same items. `lost`: A was right and B wrong; the p-value is McNemar's exact one."""

    task: str
    subset_sha256: str
    items: int
    reference: float
    figure: FigurePair
    lost: int | None
    gained: int | None
    p_value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPair:
    """The gate's verdict on the same figure; None where that bundle was not held to it."""

    key: str
    name: str
    a: Verdict | None
    b: Verdict | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePair:
    """The same of a probe."""

    name: str
    title: str
    a: ProbeVerdict | None
    b: ProbeVerdict | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ValuePair:
    """Two figures that nothing pairs: divergence in a language (nats), bytes, tokens a second."""

    name: str
    a: float
    b: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonDocument:
    """Both bundles. What was not measured of both, or not on the same ground, is empty."""

    a: Side
    b: Side
    confidence: float
    figures: tuple[FigurePair, ...]
    checks: tuple[CheckPair, ...]
    tasks: tuple[TaskPair, ...]
    languages: tuple[ValuePair, ...]
    probes: tuple[ProbePair, ...]
    costs: tuple[ValuePair, ...]
    notes: tuple[str, ...]


def comparison_to_json(document: ComparisonDocument) -> dict[str, object]:
    """A JSON object; divergences in nats, shares in [0, 1]."""
    return {"schema_version": SCHEMA_VERSION, **asdict(document)}
