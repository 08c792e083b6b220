"""What a bench found, as it is written to reports/bench.json. Every figure of several repeats has its spread."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the table: `batch` sequences at once, each reads `prompt_tokens` behind `context_tokens` that the
    cache holds.
    """

    batch: int
    context_tokens: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The median of the repeats, their quartiles and extremes, all in the unit that the figure's name says."""

    median: float
    lower_quartile: float
    upper_quartile: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Of at least one value; one value is its own quartiles."""
        lower, _, upper = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
        return cls(
            median=median(values), lower_quartile=lower, upper_quartile=upper, least=min(values), most=max(values)
        )

    @property
    def relative(self) -> float:
        """The distance of the quartiles over the median; 0 where nothing was measured."""
        return (self.upper_quartile - self.lower_quartile) / self.median if self.median else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One repeat of a case. Tokens per second are those of all its sequences together.

    `python_share`: the part of a decode step's time that passed outside onnxruntime; None in other engines.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    time_to_first_token_ms: float
    reused_tokens: int
    python_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A case, measured. A roofline is None where it could not be measured, or says nothing about the device.

    reused_tokens        of all prompts with their contexts, what the cache held: the contexts, if all went well
    peak_memory_bytes    of the process, up to the end of the case's first run; cases run from small to large
    roofline_*           what this machine's arithmetic (of prefill, attention left out) and memory (of decode) allow,
                         measured in the same run
    target_roofline_*    what the memory bandwidth of the target's profile allows
    """

    case: Case
    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread
    time_to_first_token_ms: Spread
    reused_tokens: int
    python_share: float | None
    peak_memory_bytes: int
    roofline_prefill_tokens_per_s: float | None
    roofline_decode_tokens_per_s: float | None
    target_roofline_decode_tokens_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineLimits:
    """What this machine reached between the repeats, with as many threads as the model.

    read_bytes_per_s          a plain read of `buffer_bytes`, which no cache holds
    int8_operations_per_s     onnxruntime's product of two int8 matrices; a multiplication and an addition are two
    """

    threads: int
    buffer_bytes: int
    read_bytes_per_s: Spread
    int8_operations_per_s: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What else happened on the machine. None where the system does not tell.

    load_average          of the last minute, before anything was measured
    others_share          of all processors' time, what other processes took
    stolen_share          likewise, what the hypervisor gave to other machines
    throttled             whether heat or a container's quota slowed the processors
    frequency_share       the processors' frequency afterwards over the highest one they have
    """

    load_average: float | None
    others_share: float | None
    stolen_share: float | None
    throttled: bool | None
    frequency_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """`cases` in the order they were asked for. `warnings` are sentences: why a figure should not be trusted."""

    edgeforge_version: str
    manifest_sha256: str
    target: str
    device: str
    new_tokens: int
    repeats: int
    load_seconds: float
    loaded_memory_bytes: int
    peak_memory_bytes: int
    weight_bytes_per_step: int | None
    kv_bytes_per_token: int | None
    limits: MachineLimits | None
    surroundings: Surroundings
    cases: tuple[Figures, ...]
    warnings: tuple[str, ...]
