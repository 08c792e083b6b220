"""Behaviour beyond accuracy: what else a bundle must share with its original, a module for each probe.

A probe asks both models the same things and says pass, fail or skipped, with the reason in one sentence. What is right
or wrong (ids, prompts) fails by a single difference. What is measured fails where the bundle is surely worse: beyond
the target's own limit at the target's confidence where the target states one (perplexity by position and language),
else by an exact paired test at `common.SIGNIFICANCE`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from edgeforge.errors import UnusableInput
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.planning import plan_from_json
from edgeforge.runtime.model import Model
from edgeforge.validation.findings import Language, Layer, PositionRange, Probe
from edgeforge.validation.gate import Limits
from edgeforge.validation.probes.common import Found, Subject, Tell
from edgeforge.validation.probes.json_answers import probe_json
from edgeforge.validation.probes.languages import probe_languages
from edgeforge.validation.probes.layers import probe_layers
from edgeforge.validation.probes.needle import probe_needle
from edgeforge.validation.probes.positions import probe_positions
from edgeforge.validation.probes.repetition import probe_repetition
from edgeforge.validation.probes.text_parity import probe_chat_template, probe_tokenizer

__all__ = ["PROBES", "ProbeFindings", "check_names", "run_probes"]

Progress = Callable[[int, int], None]  # steps done, steps in all
STEPS = 100  # of each probe


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFindings:
    """The probes in the order asked for, and what they put into the report's other tables."""

    probes: tuple[Probe, ...] = ()
    languages: tuple[Language, ...] = ()
    positions: tuple[PositionRange, ...] = ()
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A probe: its title in reports, what it does, and the function that does it."""

    title: str
    does: str
    run: Callable[[Subject, Tell], Found]


ROWS: Mapping[str, Row] = {
    "tokenizer": Row(title="Tokenizer", does="texts in many scripts become the original's ids", run=probe_tokenizer),
    "chat-template": Row(title="Chat template", does="chats become the original's prompts", run=probe_chat_template),
    "positions": Row(
        title="Positions", does="divergence by position, up to the end of the context", run=probe_positions
    ),
    "needle": Row(title="Needles", does="facts hidden in long inputs are found", run=probe_needle),
    "json": Row(title="JSON answers", does="answers that are asked for as JSON parse", run=probe_json),
    "repetition": Row(title="Repetition", does="greedy continuations do not go in circles", run=probe_repetition),
    "languages": Row(title="Languages", does="divergence in each language that Llama 3.1 names", run=probe_languages),
    "layers": Row(title="Layers", does="error of the residual stream after each layer", run=probe_layers),
}

PROBES: Mapping[str, str] = {name: row.does for name, row in ROWS.items()}
"""What each probe looks at, by the name that users give."""


def check_names(names: Sequence[str]) -> None:
    """UnusableInput for a name that is no probe's, with the nearest one."""
    for name in names:
        if name not in PROBES:
            near = get_close_matches(name, PROBES, n=1, cutoff=0.5)
            meant = f"did you mean {near[0]}? " if near else ""
            raise UnusableInput(f"there is no probe called {name}", hint=f"{meant}there are {', '.join(PROBES)}")


def run_probes(
    names: Sequence[str],
    *,
    bundle: Path,
    checkpoint: Checkpoint,
    reference: Model,
    candidate: Model,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> ProbeFindings:
    """Ask both models; `candidate` runs the bundle at `bundle`, which was made of `checkpoint`.

    `limits` None: those of the bundle's own target. `progress` gets (steps done, steps in all). UnusableInput for an
    unknown name, GateFailed for logits that are not finite.
    """
    check_names(names)
    subject = Subject(
        bundle=bundle,
        checkpoint=checkpoint,
        reference=reference,
        candidate=candidate,
        limits=plan_from_json(candidate.manifest.plan).target.gate if limits is None else limits,
    )
    found = []
    for place, name in enumerate(names):
        found.append(ROWS[name].run(subject, _teller(progress, place, len(names))))
        if progress is not None:
            progress((place + 1) * STEPS, len(names) * STEPS)
    return ProbeFindings(
        probes=tuple(_probe(name, each) for name, each in zip(names, found, strict=True)),
        languages=tuple(row for each in found for row in each.languages),
        positions=tuple(row for each in found for row in each.positions),
        layers=tuple(row for each in found for row in each.layers),
    )


def _teller(progress: Progress | None, place: int, probes: int) -> Tell:
    def tell(share: float) -> None:
        if progress is not None:
            progress(round((place + share) * STEPS), probes * STEPS)

    return tell


def _probe(name: str, found: Found) -> Probe:
    return Probe(name=name, title=ROWS[name].title, verdict=found.verdict, summary=found.summary, figures=found.figures)
