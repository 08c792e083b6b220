"""`edgeforge build`: a checkpoint becomes a verified bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgeforge.cli import options

if TYPE_CHECKING:
    from edgeforge.pipeline import BuildResult
    from edgeforge.planning import BuildPlan


@click.command()
@options.target_option
@options.model_option
@options.revision_option
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Bundle to make.  [default: artifacts/MODEL-TARGET]")
@options.scheme_option
@options.group_size_option
@options.symmetric_option
@options.context_option
@options.batch_option
@options.threads_option
@click.option(
    "--exporter",
    type=click.Choice(["edgeforge", "optimum"]),
    default="edgeforge",
    show_default=True,
    help="Who writes the graph; optimum is a slow, independent second road.",
)
@click.option("--validate/--no-validate", default=True, help="Compare with the original and hold the target's gate.")
@click.option(
    "--chunks",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="Pieces of 512 tokens to validate on.",
)
@click.option("--dry-run", is_flag=True, help="Check everything, print the plan, write nothing.")
@click.option("--force", is_flag=True, help="Replace an older bundle once the new one is complete.")
@options.json_option
@options.quiet_option
def build(
    target: str,
    model: str | None,
    revision: str | None,
    out: Path | None,
    scheme: str | None,
    group_size: int | None,
    symmetric: bool | None,
    context: int | None,
    batch: int | None,
    threads: int | None,
    exporter: Literal["edgeforge", "optimum"],
    validate: bool,
    chunks: int,
    dry_run: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Build a bundle for a target, and compare it with its original.

    The bundle appears only when it is complete. It then answers the same text as the original, and the target's gate
    decides: exit code 5 leaves the bundle, marked as failed in its report.

    \b
    Examples:
      edgeforge build --target cpu --model demo
      edgeforge build --target cpu --model ./Llama-3.2-1B-Instruct --out llama-1b
      edgeforge build --target rtx4090 --model meta-llama/Llama-3.1-8B-Instruct --dry-run
      edgeforge build --target cpu --model model.gguf --scheme w8a16 --no-validate --json
    """
    from dataclasses import replace

    from edgeforge import pipeline
    from edgeforge.cli.output import check_destination, default_output, destination
    from edgeforge.cli.progress import Progress
    from edgeforge.hardware import load_target

    resolved = pipeline.resolve_target(
        load_target(target), scheme=scheme, group_size=group_size, symmetric=symmetric, context=context, batch=batch
    )
    reference = model or resolved.default_model
    folder = out or default_output(reference, resolved.name, scheme)
    asked = pipeline.BuildOptions(
        target=resolved,
        model=reference,
        revision=revision,
        out=folder,
        validate=validate,
        threads=threads,
        exporter=exporter,
        chunks=chunks,
    )
    check_destination(folder, force=force)
    if dry_run:
        _show_plan(pipeline.prepare(asked).plan, as_json)
        return
    with destination(folder, force=force) as fresh, Progress(quiet=quiet or as_json) as progress:
        result = pipeline.build(replace(asked, out=fresh), progress=progress)
    _show_result(result, folder, as_json)


def _show_plan(plan: "BuildPlan", as_json: bool) -> None:
    from edgeforge.cli.console import emit_json
    from edgeforge.cli.report import plan_document, plan_fields
    from edgeforge.cli.text import fields

    if as_json:
        emit_json({"target": plan.target.name, "dry_run": True, "plan": plan_document(plan)})
    else:
        click.echo(fields(plan_fields(plan)))
        click.echo("\nNothing was written. `edgeforge plan` shows the whole plan.")


def _show_result(result: "BuildResult", folder: Path, as_json: bool) -> None:
    from edgeforge.cli.console import emit_json
    from edgeforge.cli.report import build_document, build_text, check_gate

    if as_json:
        emit_json(build_document(result, folder))
    else:
        click.echo(build_text(result, folder))
    if result.validation is not None:
        check_gate(result.validation, folder)
