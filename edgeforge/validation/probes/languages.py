"""Divergence per language: the same short story in eight languages, which EdgeForge's authors wrote (Apache-2.0).

Codes are often chosen on English text; whether other languages paid for it shows here. English and the five languages
that Llama 3.1 names first are joined by Hindi and Thai, which it names too.
"""

from collections.abc import Mapping
from importlib import resources

from edgeforge.validation.findings import Language, ProbeFigure
from edgeforge.validation.gate import Check
from edgeforge.validation.probes.common import Found, Subject, Tell
from edgeforge.validation.probes.scoring import judge_tokens, score_both, worst_of
from edgeforge.validation.statistics import TokenValues, join, mean, summarize

LANGUAGES: Mapping[str, str] = {
    "en": "English",
    "fr": "French",
    "de": "German",
    "es": "Spanish",
    "it": "Italian",
    "pt": "Portuguese",
    "hi": "Hindi",
    "th": "Thai",
}
MOST_TOKENS = 1024  # of a text: a tokenizer that knows a script only by its bytes makes four times as many
WINDOW = 512


def text_of(code: str) -> str:
    """The story in a language."""
    return (resources.files("edgeforge.validation.probes") / "text" / f"{code}.txt").read_text(encoding="utf-8")


def probe_languages(subject: Subject, tell: Tell) -> Found:
    """Each language's perplexity ratio held against the target's limit."""
    rows: list[Language] = []
    checks: list[Check] = []
    for code, name in LANGUAGES.items():
        values = _score(subject, text_of(code))
        rows.append(language_row(code, values))
        checks.append(judge_tokens(name, values, subject.limits, tests=len(LANGUAGES)))
        tell(len(rows) / len(LANGUAGES))
    worst, english = max(rows, key=lambda row: row.perplexity_ratio), rows[0]
    told = f"{worst.name} has the largest perplexity ratio, {worst.perplexity_ratio:.3f}"
    if worst is not english:
        told += f" (English {english.perplexity_ratio:.3f})"
    verdict, summary = worst_of(checks, everything=f"all {len(rows)} languages", told=told)
    figures = (
        ProbeFigure(name="largest perplexity ratio", reference=None, candidate=worst.perplexity_ratio, unit=""),
        ProbeFigure(name="perplexity ratio in English", reference=None, candidate=english.perplexity_ratio, unit=""),
    )
    return Found(verdict=verdict, summary=summary, figures=figures, languages=tuple(rows))


def language_row(code: str, values: TokenValues) -> Language:
    summary, divergence = summarize(values), mean(values.kl_divergence)
    return Language(
        code=code,
        name=LANGUAGES[code],
        tokens=len(values),
        perplexity_ratio=summary.perplexity_ratio.value,
        mean_kl_divergence=divergence.value,
        mean_kl_divergence_standard_error=divergence.standard_error,
    )


def _score(subject: Subject, text: str) -> TokenValues:
    """The first MOST_TOKENS tokens, in windows that are each read from an empty context.

    The ids are the original's: what another tokenizer in the bundle costs is the tokenizer probe's to say.
    """
    ids = subject.reference.encode(text)[:MOST_TOKENS]
    window = min(WINDOW, subject.context_length)
    pieces = [ids[start : start + window] for start in range(0, len(ids), window)]
    return join([score_both(subject.reference, subject.candidate, piece) for piece in pieces if len(piece) > 1])
