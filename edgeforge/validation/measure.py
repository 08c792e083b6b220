"""`validate`: everything is checked first, then the bundle and its original are compared and the gate judges."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeforge import __version__
from edgeforge.errors import UnusableInput, UsageError
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.runtime.manifest import ENGINE_BACKENDS, Manifest, read_manifest
from edgeforge.validation.candidate import Candidate, open_candidate
from edgeforge.validation.compare import ForwardLogits, Known, Progress, compare_known, look_up, part_of
from edgeforge.validation.data import concatenate, default_texts, encode_plain, start_token_id
from edgeforge.validation.gate import GateResult, Limits, judge
from edgeforge.validation.protocol import Chunks, Protocol, make_chunks
from edgeforge.validation.report import ChunkFigures, Histogram, Reference, Text, ValidationReport
from edgeforge.validation.statistics import TokenValues, summarize
from edgeforge.validation.top_k import kept_note

DEFAULT_CONTEXT = 512
# 1e-6 .. 10 nats, four bins a decade.
HISTOGRAM_EDGES = tuple(float(f"{10 ** (quarter / 4):.4g}") for quarter in range(-24, 5))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The text as the reference's tokenizer reads it; `bos_token_id` None when the tokenizer adds no BOS."""

    ids: tuple[int, ...]
    bos_token_id: int | None


def validate(
    bundle: Path,
    checkpoint: Checkpoint,
    *,
    gate: Limits,
    texts: Sequence[str] | None = None,
    text_name: str | None = None,
    chunks: int | None = None,
    context: int | None = None,
    protocol: Protocol = "llama.cpp",
    threads: int | None = None,
    progress: Progress | None = None,
) -> ValidationReport:
    """Hold the bundle against the original weights on the same tokens. It is run as a user would run it; of a bundle
    for an engine that is another program, the stored weights are, by the reference forward pass.

    `texts` None scores the package's own text; `chunks` None scores all of it; `context` None means 512 tokens, or
    the bundle's whole context where that is shorter. `progress` gets (steps done, steps in all). Everything is
    checked before either model computes: UsageError, UnusableInput, and the runtime's BundleError. Raises GateFailed
    only for logits that are not finite; a figure beyond its limit is the report's verdict.
    """
    started = time.perf_counter()
    manifest = read_manifest(bundle)
    context = _checked_context(context, manifest, checkpoint)
    text = concatenate(default_texts() if texts is None else texts)
    tokens = _tokenize(bundle, manifest, checkpoint, text)
    pieces = make_chunks(tokens.ids, protocol=protocol, context=context, bos_token_id=tokens.bos_token_id, limit=chunks)
    digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    known = look_up(pieces, fingerprint=checkpoint.fingerprint, manifest_sha256=digest, engine=_engine(manifest))
    steps = _Steps(progress)
    # Opened even where all of its values are known: a damaged bundle is refused, and its notes belong to the report.
    rest = part_of(pieces, known.missing or [0])
    candidate = open_candidate(bundle, manifest, rest, threads=threads, progress=steps.count)
    values = _score(pieces, known, checkpoint, candidate, steps)
    return make_report(
        values,
        pieces,
        gate=judge(values, pieces.scored_per_chunk, gate),
        target=str(manifest.target.get("name", "unknown")),
        manifest_sha256=digest,
        reference=_describe(checkpoint, manifest),
        text=Text(
            name=text_name or ("built-in text" if texts is None else "text"),
            sha256=hashlib.sha256(text.encode()).hexdigest(),
            tokens=len(tokens.ids),
        ),
        seconds=time.perf_counter() - started,
        remarks=(*candidate.notes, kept_note(checkpoint.architecture.vocab_size, len(values))),
    )


def _checked_context(asked: int | None, manifest: Manifest, checkpoint: Checkpoint) -> int:
    most = min(manifest.model.context_length, checkpoint.architecture.max_position_embeddings)
    if asked is not None and asked > most:
        raise UsageError(
            f"a context of {asked} tokens is longer than the bundle's {most}", hint=f"use --context {most} or less"
        )
    reference, candidate = checkpoint.architecture.vocab_size, manifest.model.vocab_size
    if reference != candidate:
        raise UnusableInput(
            f"the reference has a vocabulary of {reference} tokens and the bundle one of {candidate}",
            hint="give the model that the bundle was built from with --reference",
        )
    return min(DEFAULT_CONTEXT, most) if asked is None else asked


def _tokenize(bundle: Path, manifest: Manifest, checkpoint: Checkpoint, text: str) -> Tokens:
    from tokenizers import Tokenizer

    files = checkpoint.tokenizer
    tokenizer = files.load()
    ids = encode_plain(tokenizer, text)
    shipped = (bundle / manifest.model.tokenizer).read_bytes()
    if shipped != files.files.get("tokenizer.json"):
        try:
            same = encode_plain(Tokenizer.from_buffer(shipped), text) == ids
        except Exception as error:  # tokenizers raises bare Exception
            raise UnusableInput(
                f"the bundle's tokenizer cannot be read: {error}", hint="build the bundle again"
            ) from None
        if not same:
            raise UnusableInput(
                "the bundle's tokenizer splits the text into other tokens than the reference's",
                hint="give the model that the bundle was built from with --reference",
            )
    bos = start_token_id(checkpoint, tokenizer)
    return Tokens(ids=tuple(ids), bos_token_id=bos)


class _Steps:
    """Progress over both models: a step is one layer of one group, or one chunk's logits."""

    def __init__(self, tell: Progress | None) -> None:
        self._tell = tell or (lambda done, total: None)
        self._done = 0
        self.total = 0

    def count(self, *_: int) -> None:
        self._done += 1
        self._tell(self._done, self.total)


def _score(pieces: Chunks, known: Known, checkpoint: Checkpoint, candidate: Candidate, steps: _Steps) -> TokenValues:
    """Both models over the chunks that are not known yet."""
    unread = part_of(pieces, known.unread or [0])
    reference = ForwardLogits(weights=checkpoint, chunks=unread, progress=steps.count)
    steps.total = pieces.count
    steps.total += reference.steps if known.unread else 0
    steps.total += candidate.steps if known.missing else 0
    return compare_known(pieces, known, reference, candidate.logits, steps.count)


def _engine(manifest: Manifest) -> str:
    """What runs the candidate, as far as its answers depend on it."""
    if manifest.model.backend in ENGINE_BACKENDS:
        return f"reference forward pass {__version__}"
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__} with {', '.join(onnxruntime.get_available_providers())}"


def _describe(checkpoint: Checkpoint, manifest: Manifest) -> Reference:
    source = checkpoint.source
    return Reference(
        name=source.name,
        precision=source.precision,
        fingerprint=checkpoint.fingerprint,
        is_source=checkpoint.fingerprint == manifest.source.fingerprint,
    )


def make_report(
    values: TokenValues,
    pieces: Chunks,
    *,
    gate: GateResult,
    target: str,
    manifest_sha256: str,
    reference: Reference,
    text: Text,
    seconds: float,
    remarks: Sequence[str] = (),
) -> ValidationReport:
    """The averages, the spread and the per-chunk figures of `values` (of all of `pieces`, in order).

    `remarks`: what else its notes must say.
    """
    summary = summarize(values)
    median, p99 = np.quantile(values.kl_divergence, (0.5, 0.99))
    return ValidationReport(
        edgeforge_version=__version__,
        manifest_sha256=manifest_sha256,
        target=target,
        reference=reference,
        text=text,
        protocol=pieces.protocol,
        context=pieces.context,
        scored_tokens=summary.scored_tokens,
        perplexity=summary.perplexity.value,
        perplexity_standard_error=summary.perplexity.standard_error,
        reference_perplexity=summary.reference_perplexity.value,
        reference_perplexity_standard_error=summary.reference_perplexity.standard_error,
        perplexity_ratio=summary.perplexity_ratio.value,
        perplexity_ratio_standard_error=summary.perplexity_ratio.standard_error,
        mean_kl_divergence=summary.mean_kl_divergence.value,
        mean_kl_divergence_standard_error=summary.mean_kl_divergence.standard_error,
        median_kl_divergence=float(median),
        p99_kl_divergence=float(p99),
        max_kl_divergence=float(values.kl_divergence.max()),
        same_top_token=summary.same_top_token.value,
        same_top_token_standard_error=summary.same_top_token.standard_error,
        kl_divergence_histogram=_histogram(values.kl_divergence),
        chunks=tuple(_chunk_figures(values, chunk, pieces.scored_per_chunk) for chunk in range(pieces.count)),
        gate=gate,
        notes=(*remarks, *_notes(reference, gate)),
        seconds=round(seconds, 3),
    )


def _chunk_figures(values: TokenValues, chunk: int, size: int) -> ChunkFigures:
    part = summarize(values.part(chunk * size, (chunk + 1) * size))
    return ChunkFigures(
        perplexity=part.perplexity.value,
        reference_perplexity=part.reference_perplexity.value,
        mean_kl_divergence=part.mean_kl_divergence.value,
        same_top_token=part.same_top_token.value,
    )


def _histogram(divergence: NDArray[np.float64]) -> Histogram:
    edges = np.array(HISTOGRAM_EDGES)
    counts, _ = np.histogram(np.clip(divergence, edges[0], edges[-1]), edges)
    return Histogram(edges=HISTOGRAM_EDGES, counts=tuple(int(count) for count in counts))


def _notes(reference: Reference, gate: GateResult) -> Iterator[str]:
    if reference.precision.startswith("Q4_"):
        yield (
            f"The original is itself 4-bit ({reference.precision}), so these figures show what the build changed, "
            "not what 4-bit storage cost the model."
        )
    elif reference.precision.startswith("Q"):
        yield (
            f"The original is itself quantized ({reference.precision}), so these figures show what the build changed, "
            "not the distance from the unquantized model."
        )
    if not reference.is_source:
        yield "The reference is not the checkpoint that the bundle was built from."
    yield from _too_few(gate)


def _too_few(gate: GateResult) -> Iterator[str]:
    """What an undecided text asks for. (Tasks join the gate later, and say themselves how many items they need.)"""
    undecided = [check for check in gate.checks if check.verdict == "undecided"]
    if not undecided:
        return
    needed = [check.items_needed for check in undecided]
    if any(each is None for each in needed):
        yield (
            "Too few tokens were scored to tell whether the gate holds, and more would hardly do: a figure lies on its "
            "limit."
        )
    else:
        most = max(each for each in needed if each is not None)
        yield (
            "Too few tokens were scored to tell whether the gate holds: score more chunks, or more text. About "
            f"{most:,} scored tokens would do, if the figures stay as they are."
        )
