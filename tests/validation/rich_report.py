"""A report with everything in it, made by the real statistics from random answers of two imagined models.

Nothing here is a measurement. `rich_report` is the demo's shape: all of MMLU's subjects, every probe, long inputs.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgeforge.hardware import Gate
from edgeforge.validation import paired
from edgeforge.validation.findings import (
    Findings,
    Flip,
    Group,
    Language,
    Layer,
    Metric,
    PositionRange,
    Probe,
    ProbeFigure,
    SizeAndSpeed,
    Speed,
    Subset,
    TaskFindings,
)
from edgeforge.validation.gate import GateResult, judge
from edgeforge.validation.measure import make_report
from edgeforge.validation.probes.positions import ranges_of
from edgeforge.validation.protocol import make_chunks
from edgeforge.validation.report import Reference, Text, ValidationReport
from edgeforge.validation.statistics import compare_logits, summarize

GATE = Gate(max_mean_kl_divergence=0.1, max_perplexity_ratio=1.05, max_accuracy_loss=0.03, confidence=0.95)
Scores = NDArray[np.float64]
HOSTILE = "<script>alert(1)</script> & \u202eevil\u202c \x1b[31mred\x00 " + "W" * 300 + " مرحبا بالعالم \ud800"
NAMES = (
    "abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry "
    "college_computer_science college_mathematics college_medicine college_physics computer_security "
    "conceptual_physics econometrics electrical_engineering elementary_mathematics formal_logic global_facts "
    "high_school_biology high_school_chemistry high_school_computer_science high_school_european_history "
    "high_school_geography high_school_government_and_politics high_school_macroeconomics high_school_mathematics "
    "high_school_microeconomics high_school_physics high_school_psychology high_school_statistics "
    "high_school_us_history high_school_world_history human_aging human_sexuality international_law jurisprudence "
    "logical_fallacies machine_learning management marketing medical_genetics miscellaneous moral_disputes "
    "moral_scenarios nutrition philosophy prehistory professional_accounting professional_law professional_medicine "
    "professional_psychology public_relations security_studies sociology us_foreign_policy virology world_religions"
)
SUBJECTS = tuple(NAMES.split())


def bare_report(seed: int = 1, noise: float = 0.2, chunks: int = 3) -> ValidationReport:
    """Text alone, as a build's short validation finds: the noise is on logits of 1,600 tokens."""
    random = np.random.default_rng(seed)
    pieces = make_chunks(range(512 * chunks), protocol="llama.cpp", context=512, bos_token_id=None)
    # the original is the same for every seed, so that two bundles can be held against each other
    logits = (4 * np.random.default_rng(0).standard_normal((chunks * 255, 512 * chunks))).astype(np.float32)
    disturbed = (logits + noise * random.standard_normal(logits.shape)).astype(np.float32)
    values = compare_logits(logits, disturbed, _sampled(logits))
    return make_report(
        values,
        pieces,
        gate=judge(values, 255, GATE),
        target="cpu",
        manifest_sha256=hashlib.sha256(f"{seed} {noise}".encode()).hexdigest(),
        reference=Reference(name="org/<model>", precision="Q4_1", fingerprint="sha256:" + "cd" * 32, is_source=False),
        text=Text(name="wiki & more", sha256="ef" * 32, tokens=512 * chunks),
        seconds=12.3456,
    )


def _sampled(logits: NDArray[np.floating]) -> NDArray[np.int64]:
    """A next token for each row [S, V], as a model at temperature 1 draws it (Gumbel-max)."""
    return (logits + np.random.default_rng(7).gumbel(size=logits.shape)).argmax(axis=1).astype(np.int64)


def rich_report(seed: int = 1, loss: float = 0.03, noise: float = 0.2, chunks: int = 12) -> ValidationReport:
    """Everything: the bundle gets about `loss` of the items wrong that the original gets right."""
    random = np.random.default_rng(seed)
    report = bare_report(seed, noise, chunks)
    tasks = (
        right_or_wrong(random, "mmlu", "acc", 285, 14_042, right=0.42, loss=loss, fewshot=5, groups=SUBJECTS),
        right_or_wrong(random, "gsm8k", "exact_match,strict-match", 20, 1_319, right=0.4, loss=loss, fewshot=5),
        right_or_wrong(random, "humaneval", "pass@1", 20, 164, right=0.3, loss=loss, isolation=("no network", "2 GB")),
        right_or_wrong(random, "lambada_openai", "acc", 500, 5_153, right=0.45, loss=loss),
        right_or_wrong(random, "hellaswag", "acc_norm", 1_500, 10_042, right=0.6, loss=loss / 3),
        right_or_wrong(random, "arc_challenge", "acc_norm", 600, 1_172, right=0.35, loss=3 * loss),
        perplexity(random, "wikitext", "word_perplexity", 62, shift=0.01),
    )
    found = Findings(
        tasks=tasks,
        languages=tuple(_language(random, *each) for each in LANGUAGES),
        positions=tuple(_range(random, *each) for each in ranges_of(8192)),
        layers=tuple(
            Layer(index=layer, relative_error=float(0.002 * (layer + 1) * random.uniform(0.8, 1.3)))
            for layer in range(30)
        ),
        probes=PROBES,
        size_and_speed=SizeAndSpeed(
            reference_precision="F32",
            reference=Speed(weight_bytes=538_060_032, prefill_tokens_per_s=211.3, decode_tokens_per_s=14.8),
            candidate=Speed(weight_bytes=98_362_432, prefill_tokens_per_s=388.0, decode_tokens_per_s=41.27),
        ),
        command="edgeforge validate artifacts/demo-cpu --reference demo --tasks mmlu,gsm8k,humaneval,lambada_openai "
        "--limit 500 --data data/benchmarks --allow-code-execution --probes all",
    )
    checks = (*report.gate.checks, *(task.check for task in tasks))
    order = ("pass", "undecided", "fail")
    verdict = max((check.verdict for check in checks), key=order.index)
    gate = GateResult(confidence=report.gate.confidence, checks=checks, verdict=verdict)
    return replace(report, findings=found, gate=gate)


def right_or_wrong(
    random: np.random.Generator,
    task: str,
    metric: str,
    items: int,
    available: int,
    *,
    right: float,
    loss: float,
    fewshot: int = 0,
    groups: Sequence[str] = (),
    isolation: tuple[str, ...] | None = None,
) -> TaskFindings:
    """A task whose answers are right or wrong. The items (and the original's answers) hang on the task alone."""
    fixed = np.random.default_rng(sum(task.encode()))
    reference = (fixed.random(items) < right).astype(np.float64)
    changed = random.random(items)
    candidate = np.where(reference == 1, changed > 2 * loss, changed < loss / 3).astype(np.float64)
    lost, gained = int((reference > candidate).sum()), int((candidate > reference).sum())
    change, interval = paired.difference(reference, candidate, confidence=GATE.confidence)
    first = Metric(
        name=metric,
        higher_is_better=True,
        reference=float(reference.mean()),
        candidate=float(candidate.mean()),
        comparison="difference",
        change=change,
        interval=interval,
    )
    check = paired.judge_loss(
        f"{task} {metric}", reference, candidate, limit=GATE.max_accuracy_loss, confidence=GATE.confidence
    )
    return TaskFindings(
        task=task,
        subset=Subset(items=items, available=available, seed=0, sha256=hashlib.sha256(task.encode()).hexdigest()),
        num_fewshot=fewshot,
        chat_template=task == "gsm8k",
        metrics=(first,),
        check=check,
        lost=lost,
        gained=gained,
        p_value=paired.mcnemar(lost, gained),
        groups=_groups(groups, reference, candidate),
        flips=_flips(task, reference, candidate),
        reference_scores=tuple(reference.tolist()),
        candidate_scores=tuple(candidate.tolist()),
        isolation=isolation,
        reference_seconds=120.5,
        candidate_seconds=80.25,
    )


def perplexity(random: np.random.Generator, task: str, metric: str, items: int, *, shift: float) -> TaskFindings:
    """A task of documents, each with a log-likelihood and a number of words."""
    fixed = np.random.default_rng(sum(task.encode()))
    words = fixed.integers(50, 4000, items).astype(np.float64)
    reference = words * (3.1 + 0.2 * fixed.standard_normal(items))
    candidate = reference + words * (shift + 0.01 * random.standard_normal(items))
    ratio, interval = paired.ratio(reference, candidate, words, confidence=GATE.confidence)
    metrics = tuple(
        Metric(
            name=name,
            higher_is_better=False,
            reference=float(np.exp(power * reference.sum() / words.sum())),
            candidate=float(np.exp(power * candidate.sum() / words.sum())),
            comparison="ratio",
            change=ratio**power,
            interval=type(interval)(low=interval.low**power, high=interval.high**power),
        )
        for name, power in ((metric, 1.0), ("byte_perplexity", 0.19))
    )
    check = paired.judge_ratio(
        f"{task} {metric}", reference, candidate, words, limit=GATE.max_perplexity_ratio, confidence=GATE.confidence
    )
    return TaskFindings(
        task=task,
        subset=Subset(items=items, available=items, seed=0, sha256=hashlib.sha256(task.encode()).hexdigest()),
        num_fewshot=0,
        chat_template=False,
        metrics=metrics,
        check=check,
        lost=0,
        gained=0,
        p_value=None,
        groups=(),
        flips=(),
        reference_scores=tuple((reference / words).tolist()),
        candidate_scores=tuple((candidate / words).tolist()),
        item_lengths=tuple(words.tolist()),
        isolation=None,
        reference_seconds=50.0,
        candidate_seconds=31.0,
    )


def _groups(names: Sequence[str], reference: Scores, candidate: Scores) -> tuple[Group, ...]:
    """The items dealt out to the groups in turn."""
    return tuple(
        Group(
            name=name,
            items=len(reference[index :: len(names)]),
            reference=float(reference[index :: len(names)].mean()),
            candidate=float(candidate[index :: len(names)].mean()),
        )
        for index, name in enumerate(names)
    )


def _flips(task: str, reference: Scores, candidate: Scores) -> tuple[Flip, ...]:
    rows = np.flatnonzero(reference != candidate)[:6]
    return tuple(
        Flip(
            item=f"{task}/{row}",
            prompt="…Question: Natalia sold clips to 48 of her friends in April, and then she sold half as many clips "
            "in May. How many clips did Natalia sell altogether in April and May?\nA. 24\nB. 48\nC. 72\nD. 96\nAnswer:",
            expected="72",
            reference_answer="Natalia sold 48/2 = 24 clips in May.\nIn all she sold 48+24 = 72 clips.\n#### 72",
            candidate_answer=HOSTILE if count == 0 else "48 and half of it are\n\n    #### 24",
            lost=bool(reference[row] > candidate[row]),
        )
        for count, row in enumerate(rows)
    )


LANGUAGES = (
    ("en", "English", 1.0),
    ("fr", "French", 1.4),
    ("de", "German", 1.6),
    ("es", "Spanish", 1.3),
    ("it", "Italian", 1.5),
    ("pt", "Portuguese", 1.35),
)


def _language(random: np.random.Generator, code: str, name: str, factor: float) -> Language:
    divergence = factor * random.gamma(0.5, 0.02, 800)
    ratio = float(np.exp((0.2 * divergence + 0.02 * random.standard_normal(800)).mean()))
    error = float(divergence.std() / np.sqrt(800))
    return Language(
        code=code,
        name=name,
        tokens=800,
        perplexity_ratio=ratio,
        mean_kl_divergence=float(divergence.mean()),
        mean_kl_divergence_standard_error=error,
    )


def _range(random: np.random.Generator, start: int, stop: int) -> PositionRange:
    logits = 4 * random.standard_normal((64, 50))
    noise = (0.15 + start / 60_000) * random.standard_normal(logits.shape)
    values = compare_logits(logits.astype(np.float32), (logits + noise).astype(np.float32), _sampled(logits))
    summary = summarize(values)
    return PositionRange(
        start=start,
        stop=stop,
        tokens=64,
        reference_perplexity=summary.reference_perplexity.value,
        perplexity=summary.perplexity.value,
        mean_kl_divergence=summary.mean_kl_divergence.value,
    )


PROBES = (
    Probe(
        name="chat-template",
        title="Tokenizer and chat template",
        verdict="pass",
        summary="All 48 stored vectors give the original's tokens.",
        figures=(ProbeFigure(name="vectors that agree", reference=None, candidate=48, unit=""),),
    ),
    Probe(
        name="needle",
        title="A needle in a long text",
        verdict="fail",
        summary="The bundle found the hidden number at 3 of 5 depths of 8,000 tokens, the original at 5.",
        figures=(ProbeFigure(name="found", reference=100.0, candidate=60.0, unit="%"),),
    ),
    Probe(
        name="json",
        title="JSON that parses",
        verdict="pass",
        summary="17 of 20 answers parse, as many as the original's.",
        figures=(ProbeFigure(name="parse", reference=85.0, candidate=85.0, unit="%"),),
    ),
    Probe(
        name="repetition",
        title="Repetition",
        verdict="pass",
        summary="The share of repeated 4-grams is within two points of the original's.",
        figures=(
            ProbeFigure(name="repeated 4-grams", reference=11.24, candidate=12.07, unit="%"),
            ProbeFigure(name="longest loop", reference=6, candidate=9, unit="tokens"),
        ),
    ),
    Probe(
        name="long-context",
        title="Past 4,096 tokens",
        verdict="skipped",
        summary="The bundle's context of 2,048 tokens ends before.",
        figures=(),
    ),
)
