"""`edgeforge validate`: a bundle against its original, on the same tokens, with the target's gate."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeforge.cli import options

if TYPE_CHECKING:
    from edgeforge.model.checkpoint import Checkpoint
    from edgeforge.runtime.manifest import Manifest
    from edgeforge.validation.protocol import Protocol
    from edgeforge.validation.report import ValidationReport


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--reference",
    metavar="REF",
    help="The original: a directory, a .gguf file, a hub id, or `demo`.  [default: the bundle's source, where public]",
)
@click.option("--allow-other-reference", is_flag=True, help="Accept an original that the bundle was not built from.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Text to score: a file, or a folder of *.txt, *.raw, *.txt.gz, *.raw.gz.  [default: a built-in text]",
)
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Chunks to score.  [default: the whole text]")
@click.option(
    "--context", type=click.IntRange(min=4), metavar="N", help="Tokens of a chunk.  [default: 512, or the bundle's]"
)
@click.option(
    "--protocol",
    type=click.Choice(["llama.cpp", "windows"]),
    default="llama.cpp",
    show_default=True,
    help="Score the second half of each chunk as llama.cpp does, or every token.",
)
@options.threads_option
@options.json_option
@options.quiet_option
def validate(
    bundle: Path,
    reference: str | None,
    allow_other_reference: bool,
    data: Path | None,
    chunks: int | None,
    context: int | None,
    protocol: "Protocol",
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare BUNDLE with the model it was built from: perplexity, KL divergence, and the same first choice.

    Both read the same tokens, the bundle through the runtime that users embed. Where it is for another engine than
    onnxruntime, its stored weights are read back and run in float32, with activations rounded as the engine rounds
    them. The report goes to BUNDLE/reports/, and exit code 5 says that the target's gate failed.

    \b
    Examples:
      edgeforge validate artifacts/demo-cpu
      edgeforge validate artifacts/demo-cpu --data wikitext2_test.raw.gz --chunks 40
      edgeforge validate llama-1b --reference ./Llama-3.2-1B-Instruct --json
    """
    from edgeforge.bundle import seal
    from edgeforge.cli.console import emit_json
    from edgeforge.cli.progress import Progress
    from edgeforge.cli.report import check_gate
    from edgeforge.planning import plan_from_json
    from edgeforge.runtime import verify
    from edgeforge.validation import load_texts, report_to_json, write_report
    from edgeforge.validation import validate as compare

    manifest = verify(bundle, "quick")
    gate = plan_from_json(manifest.plan).target.gate
    texts = None if data is None else load_texts(data)
    checkpoint = open_reference(manifest, reference, allow_other=allow_other_reference)
    with Progress(quiet=quiet or as_json) as progress:
        report = compare(
            bundle,
            checkpoint,
            gate=gate,
            texts=texts,
            text_name=None if data is None else data.resolve().name,
            chunks=chunks,
            context=context,
            protocol=protocol,
            threads=threads,
            progress=lambda done, total: progress("validate", done, total),
        )
    write_report(report, bundle)
    seal(bundle)
    if as_json:
        emit_json(report_to_json(report))
    else:
        click.echo(render(report, bundle))
    check_gate(report, bundle)


def open_reference(manifest: "Manifest", reference: str | None, *, allow_other: bool) -> "Checkpoint":
    """The original's checkpoint: what the user names, or the source that the manifest names where anybody can get it.

    UsageError when there is nothing to go by, UnusableInput when it is another checkpoint than the bundle's source.
    """
    from edgeforge.errors import UnusableInput, UsageError
    from edgeforge.model.checkpoint import open_checkpoint

    source = manifest.source
    if reference is None and (source.kind not in ("demo", "hub") or source.name is None):
        raise UsageError(
            "the bundle was built from a local checkpoint, whose place it does not record",
            hint="name the original with --reference PATH",
        )
    name = reference or source.name or "demo"
    checkpoint = open_checkpoint(name, revision=source.revision if name == source.name else None)
    if checkpoint.fingerprint != source.fingerprint and not allow_other:
        raise UnusableInput(
            f"{name} is not the checkpoint that the bundle was built from: its fingerprint is "
            f"{_short(checkpoint.fingerprint)}, the source's was {_short(source.fingerprint)}",
            hint="name the original with --reference, or compare with this one all the same: --allow-other-reference",
        )
    return checkpoint


def _short(fingerprint: str) -> str:
    return fingerprint.removeprefix("sha256:")[:12]


def render(report: "ValidationReport", bundle: Path) -> str:
    """The report for people: figures, notes, the gate check by check, and where the page lies."""
    from edgeforge.cli.report import validation_fields
    from edgeforge.cli.text import fields, table

    original = report.reference.name or "local checkpoint"
    spread = (
        f"median {report.median_kl_divergence:.4g}, 99 % below {report.p99_kl_divergence:.4g}, "
        f"largest {report.max_kl_divergence:.4g} nats"
    )
    figures = [("original", f"{original}, stored as {report.reference.precision}"), *validation_fields(report)]
    figures.insert(-2, ("KL spread", spread))
    figures.insert(-2, ("protocol", f"{report.protocol}, {len(report.chunks)} chunks of {report.context} tokens"))
    figures += [("note", note) for note in report.notes]
    rows = [
        (
            check.figure.replace("_", " ").replace("kl", "KL"),
            f"{check.value:.5f}",
            f"{check.limit:g}",
            f"{check.lower_bound:.5f} .. {check.upper_bound:.5f}",
            {"undecided": "too few tokens"}.get(check.verdict, check.verdict),
        )
        for check in report.gate.checks
    ]
    headers = ("gate", "measured", "limit", f"{report.gate.confidence:.0%} bounds", "verdict")
    page = bundle / "reports" / "validation.html"
    return f"{fields(figures, indent=0)}\n\n{table(headers, rows, right=frozenset({1, 2, 3}))}\n\n{page}"
