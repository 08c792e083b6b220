"""Measurements as JSON files: what was measured once is not measured again, and documents are written from them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from edgeforge.validation.statistics import Estimate, Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One item on one seed. `bytes` are those of the weights; `seconds` and `peak_bytes` those of making them."""

    item: str
    seed: int
    chunks: int
    arguments: tuple[str, ...]
    version: str
    bytes: int
    seconds: float
    peak_bytes: int
    as_run: Summary
    weights_alone: Summary | None
    prefill: float | None = None  # tokens a second
    decode: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """An item's figures over its seeds."""

    records: tuple[Record, ...]

    @property
    def bytes(self) -> int:
        """The largest."""
        return max(record.bytes for record in self.records)

    @property
    def divergence(self) -> float:
        return mean(self.divergences)

    @property
    def divergences(self) -> tuple[float, ...]:
        """By seed, as run."""
        return tuple(record.as_run.mean_kl_divergence.value for record in self.records)

    @property
    def divergence_alone(self) -> float | None:
        """Over the seeds where it was measured."""
        found = [record.weights_alone for record in self.records if record.weights_alone is not None]
        return mean(summary.mean_kl_divergence.value for summary in found) if found else None

    @property
    def standard_error(self) -> float:
        """Of one seed's divergence: all seeds read the same text, so that their mean's is hardly smaller."""
        return max(record.as_run.mean_kl_divergence.standard_error for record in self.records)

    @property
    def perplexity(self) -> float:
        return mean(record.as_run.perplexity.value for record in self.records)

    @property
    def same_top(self) -> float:
        return mean(record.as_run.same_top_token.value for record in self.records)

    @property
    def seconds(self) -> float:
        return mean(record.seconds for record in self.records)

    @property
    def speed(self) -> str:
        """Tokens a second, prefill / decode, of the fastest seed: whatever else ran only slows down."""
        found = [(record.prefill, record.decode) for record in self.records if record.prefill and record.decode]
        if not found:
            return ""
        return f"{max(prefill for prefill, _ in found):.0f} / {max(decode for _, decode in found):.0f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """A folder of them."""

    folder: Path

    def path(self, item: str, seed: int, chunks: int) -> Path:
        return self.folder / f"{chunks}-chunks" / f"seed-{seed}" / f"{item}.json"

    def save(self, record: Record) -> None:
        path = self.path(record.item, record.seed, record.chunks)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
        partial.replace(path)

    def load(self, item: str, seed: int, chunks: int) -> Record | None:
        path = self.path(item, seed, chunks)
        if not path.is_file():
            return None
        document = json.loads(path.read_text(encoding="utf-8"))
        document["arguments"] = tuple(document["arguments"])
        for name in ("as_run", "weights_alone"):
            if (figures := document[name]) is not None:
                tokens = figures.pop("scored_tokens")
                estimates = {key: Estimate(**value) for key, value in figures.items()}
                document[name] = Summary(scored_tokens=tokens, **estimates)
        return Record(**document)

    def average(self, item: str, seeds: Sequence[int], chunks: int) -> Average | None:
        """Over those of `seeds` that were measured; None where none was."""
        found = [record for seed in seeds if (record := self.load(item, seed, chunks)) is not None]
        return Average(records=tuple(found)) if found else None
