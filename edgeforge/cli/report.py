"""What `build` says at its end: the bundle, the plan's headline, what validation found, and what to try next."""

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from textwrap import fill
from typing import TYPE_CHECKING

from edgeforge.cli.allocation import allocation_fields, allocation_text
from edgeforge.cli.text import bytes_text, fields, plus_minus
from edgeforge.errors import GateFailed

if TYPE_CHECKING:
    from edgeforge.pipeline import BuildResult
    from edgeforge.planning import BuildPlan
    from edgeforge.quantization.scheme import QuantizationScheme
    from edgeforge.validation.report import ValidationReport

VERDICTS = {"pass": "passed", "undecided": "passed, with too few tokens to be sure", "fail": "FAILED"}


def build_text(result: "BuildResult", out: Path) -> str:
    """The report for people."""
    pairs = [
        ("bundle", str(out)),
        ("size", f"{bytes_text(result.size_bytes)}, built in {result.seconds:.1f} s"),
        *plan_fields(result.plan),
    ]
    allocation = result.manifest.plan.get("allocation")
    told = allocation if isinstance(allocation, dict) else None
    if told is not None:
        pairs[2:3] = allocation_fields(told)  # instead of a list of every scheme
    validation = result.validation
    if validation is None:
        pairs.append(("validation", "skipped"))
        notes: tuple[str, ...] = ()
    else:
        pairs += validation_fields(validation)
        notes = validation.notes
    pairs += [("note", fill(note, width=90)) for note in notes]
    parts = [fields(pairs)]
    if told is not None:
        parts.append(allocation_text(told, tied=result.plan.architecture.tie_word_embeddings))
    parts.append(f"Next:\n{next_commands(out, _script(result))}")
    return "\n\n".join(parts)


def plan_fields(plan: "BuildPlan") -> list[tuple[str, str]]:
    """The plan's headline: how weights are stored, what memory that takes, how fast it can be at best."""
    target, memory = plan.target, plan.memory
    return [
        ("stored as", stored_text(plan)),
        ("codes", algorithm_text(target.algorithm)),
        *rotation_fields(plan),
        (
            "memory",
            f"{bytes_text(memory.total_bytes)} of {bytes_text(memory.available_bytes)} planned on {target.name}, "
            f"context {target.context:,}",
        ),
        ("decode bound", f"{plan.decode_tokens_per_s:,.0f} tokens/s, by {target.profile.name}'s memory bandwidth"),
    ]


def stored_text(plan: "BuildPlan") -> str:
    """The schemes that the linears really get (a checkpoint's own grid may replace the target's), then the embedding's.

    `w4a16 in groups of 32, embedding and head w8a16 in groups of 32`
    """
    from edgeforge.planning import EMBEDDING

    by_scheme: dict[str, int] = {}
    for linear in plan.architecture.linears():
        if linear.role != "lm_head":
            text = scheme_text(plan.schemes[linear.name])
            by_scheme[text] = by_scheme.get(text, 0) + 1
    parts = sorted(by_scheme, key=lambda text: -by_scheme[text])
    embedding = scheme_text(plan.schemes[EMBEDDING])
    if plan.architecture.tie_word_embeddings:
        return "; ".join([*parts, f"embedding and head {embedding}"])
    head = scheme_text(plan.schemes["lm_head.weight"])
    return "; ".join([*parts, f"embedding {embedding}", f"head {head}"])


def scheme_text(scheme: "QuantizationScheme") -> str:
    """`w4a16 in groups of 32`"""
    if scheme.granularity != "group":
        return f"{scheme.name} per {scheme.granularity}"
    return scheme.name if scheme.group_size is None else f"{scheme.name} in groups of {scheme.group_size}"


ALGORITHM_TEXTS = {
    "auto": "auto, the best that there is for the scheme",
    "rtn": "rounded to nearest (rtn)",
    "search": "rounded to nearest under searched scales (search)",
    "gptq": "chosen on calibration text, each error made up for by the rest of its row (gptq)",
    "awq": "rounded after scaling the channels that are loud on calibration text (awq)",
    "awq+gptq": "chosen on calibration text: loud channels scaled, then errors made up for (awq+gptq)",
}


def algorithm_text(algorithm: str) -> str:
    """How codes are chosen, in words."""
    return ALGORITHM_TEXTS[algorithm]


def rotation_fields(plan: "BuildPlan") -> list[tuple[str, str]]:
    """That the residual stream is turned, and what the output head takes, which is then never the embedding."""
    from edgeforge.planning import weight_rows

    if not plan.target.rotate:
        return []
    head = sum(row.stored_bytes for row in weight_rows(plan) if row.role == "lm_head")
    return [
        (
            "rotation",
            "residual stream, by a randomized Hadamard matrix; the output head, apart from the embedding, takes "
            f"{bytes_text(head)}",
        )
    ]


def validation_fields(report: "ValidationReport") -> list[tuple[str, str]]:
    """Figures with their standard errors, and the gate's verdict."""
    original = plus_minus(report.reference_perplexity, report.reference_perplexity_standard_error, 2)
    limits = ", ".join(
        f"{check.figure.replace('_', ' ').replace('kl', 'KL')} at most {check.limit:g}" for check in report.gate.checks
    )
    error = report.perplexity_ratio_standard_error
    return [
        (
            "perplexity",
            f"{plus_minus(report.perplexity, report.perplexity_standard_error, 2)}, original {original}, "
            f"ratio {plus_minus(report.perplexity_ratio, error, 4)}",
        ),
        ("KL divergence", plus_minus(report.mean_kl_divergence, report.mean_kl_divergence_standard_error, 5)),
        (
            "same top token",
            plus_minus(100 * report.same_top_token, 100 * report.same_top_token_standard_error, 1) + " %",
        ),
        ("scored", f"{report.scored_tokens:,} tokens of {report.text.name}, in {report.seconds:.1f} s"),
        ("gate", f"{VERDICTS[report.verdict]} ({limits}; confidence {report.gate.confidence:.0%})"),
    ]


def check_gate(report: "ValidationReport", out: Path) -> None:
    """GateFailed, with the figures that exceed their limits, when the verdict is fail."""
    if report.verdict != "fail":
        return
    broken = ", ".join(
        f"{check.figure.replace('_', ' ')} {check.value:.4g} exceeds {check.limit:g}"
        for check in report.gate.checks
        if check.verdict == "fail"
    )
    raise GateFailed(
        f"the bundle lost more accuracy than target {report.target} allows: {broken}",
        hint=f"{out} is kept, marked as failed; smaller groups (--group-size) or more bits (--scheme, --kv-cache) "
        "lose less",
    )


def _script(result: "BuildResult") -> str | None:
    """What has to run on the device first."""
    engine = result.manifest.engine
    return engine.script if engine is not None and engine.state == "to-be-built" else None


def next_commands(out: Path, script: str | None = None) -> str:
    """Commands to try, ready to paste. `script`: the bundle's own, where its engine is still to be built."""
    folder = quote(str(out))
    if script is not None:
        return f"  sh {quote(str(out / script))}   # on the device\n  edgeforge verify {folder}"
    return "\n".join(
        [
            f'  python {folder} "What is the capital of France?"',
            f"  edgeforge chat {folder}",
            f"  edgeforge verify {folder}",
            f"  edgeforge bench {folder}",
        ]
    )


def build_document(result: "BuildResult", out: Path) -> dict[str, object]:
    """The report for programs."""
    from edgeforge.validation.report import report_to_json

    validation = result.validation
    return {
        "bundle": str(out),
        "size_bytes": result.size_bytes,
        "seconds": result.seconds,
        "target": result.plan.target.name,
        "source": asdict(result.manifest.source),
        "plan": plan_document(result.plan),
        "allocation": result.manifest.plan.get("allocation"),
        "validation": None if validation is None else report_to_json(validation),
        "verdict": None if validation is None else validation.verdict,
    }


def plan_document(plan: "BuildPlan") -> dict[str, object]:
    """The plan's headline figures."""
    memory = plan.memory
    return {
        "backend": plan.target.backend,
        "engine": plan.target.engine,
        "scheme": plan.target.scheme,
        "group_size": plan.target.group_size,
        "algorithm": plan.target.algorithm,
        "rotate": plan.target.rotate,
        "context": plan.target.context,
        "memory_bytes": memory.total_bytes,
        "weights_bytes": memory.weights_bytes,
        "available_bytes": memory.available_bytes,
        "disk_bytes": plan.disk_bytes,
        "decode_tokens_per_s": plan.decode_tokens_per_s,
    }
