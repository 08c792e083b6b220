"""What can be found out about a bundle beside its divergence on text, as frozen values that go into the report.

Every task and probe compares the candidate (the bundle) with the reference (the original) on the same items. Fractions
lie in [0, 1]; divergences are in nats; intervals hold at the gate's confidence.
"""

from dataclasses import dataclass
from typing import Literal

from edgeforge.validation.gate import Check

Comparison = Literal["difference", "ratio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One of a task's figures for both models, by lm-eval's name (`acc`, `exact_match,strict-match`, `perplexity`).

    `change` is candidate minus reference, or candidate over reference where `comparison` is a ratio (perplexities).
    """

    name: str
    higher_is_better: bool
    reference: float
    candidate: float
    comparison: Comparison
    change: float
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """The items that were asked. `sha256` is of their contents in order; `available`: how many there were to draw."""

    items: int
    available: int
    seed: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A part of a task, such as one of MMLU's subjects: the average of its first metric."""

    name: str
    items: int
    reference: float
    candidate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """An item that one model got right and the other wrong. `prompt` is its end where it is long."""

    item: str
    prompt: str
    expected: str
    reference_answer: str
    candidate_answer: str
    lost: bool  # the reference was right


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFindings:
    """One task on both models. `check` is the gate's on `metrics[0]`; `scores` are that metric's, item by item: of a
    perplexity nats per word, token or byte, of which each item has so many as `item_lengths` says (empty for others).

    `lost` and `gained` count flips, of which `flips` shows some; `p_value` is McNemar's exact one, None where scores
    are not right or wrong. `isolation`: what held generated code in, None where none was run. `seconds` are what each
    model took, 0 where its answers were already known.
    """

    task: str
    subset: Subset
    num_fewshot: int
    chat_template: bool
    metrics: tuple[Metric, ...]
    check: Check
    lost: int
    gained: int
    p_value: float | None
    groups: tuple[Group, ...]
    flips: tuple[Flip, ...]
    reference_scores: tuple[float, ...]
    candidate_scores: tuple[float, ...]
    item_lengths: tuple[float, ...] = ()
    isolation: tuple[str, ...] | None
    reference_seconds: float
    candidate_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """Text in one language on both models. `code` is ISO 639-1's."""

    code: str
    name: str
    tokens: int
    perplexity_ratio: float
    mean_kl_divergence: float
    mean_kl_divergence_standard_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionRange:
    """Tokens `start` .. `stop` - 1 of long inputs, on both models."""

    start: int
    stop: int
    tokens: int
    reference_perplexity: float
    perplexity: float
    mean_kl_divergence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """How far the residual stream after decoder layer `index` is from the reference's: |x' - x|^2 / |x|^2, mean."""

    index: int
    relative_error: float


ProbeVerdict = Literal["pass", "fail", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFigure:
    """A figure of a probe; `reference` None where only the candidate has one. `unit`: "", "%", "tokens"..."""

    name: str
    reference: float | None
    candidate: float
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A behaviour beyond accuracy (`chat-template`, `needle`, `json`...). `summary` is one sentence for people."""

    name: str
    title: str
    verdict: ProbeVerdict
    summary: str
    figures: tuple[ProbeFigure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a model takes on the machine that validated: bytes of weights, and tokens a second."""

    weight_bytes: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeAndSpeed:
    """The bundle beside the original at full precision, both through the runtime."""

    reference_precision: str
    reference: Speed
    candidate: Speed


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Everything beside divergence on text; what was not asked for is empty."""

    tasks: tuple[TaskFindings, ...] = ()
    languages: tuple[Language, ...] = ()
    positions: tuple[PositionRange, ...] = ()
    layers: tuple[Layer, ...] = ()
    probes: tuple[Probe, ...] = ()
    size_and_speed: SizeAndSpeed | None = None
    command: str | None = None  # that makes this report again


NOTHING = Findings()
