"""`edgeforge build`: a checkpoint becomes a verified bundle."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgeforge.cli import options
from edgeforge.cli.sizes import Size

if TYPE_CHECKING:
    from edgeforge.cli.progress import Progress
    from edgeforge.hardware import Target
    from edgeforge.pipeline import BuildOptions, BuildResult, Prepared


@click.command()
@click.option(
    "-t",
    "--target",
    "targets",
    required=True,
    multiple=True,
    metavar="NAME",
    help="Target name (see `edgeforge targets`) or a TOML file; give several to build them in one pass.",
)
@options.model_option
@options.revision_option
@options.stream_download_option
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Bundle to make; with several targets, the folder for all.  [default: artifacts/MODEL-TARGET]",
)
@options.target_changes
@options.max_bytes_option
@options.max_divergence_option
@click.option(
    "--calibration",
    metavar="FILE",
    help="What codes are chosen on, and what static scales of activations and the KV cache come from: text, JSON "
    "Lines, or a scales file (.safetensors). `none` leaves scales to TensorRT-LLM, where it can.  [default: for codes "
    "a set that is fetched, for scales a built-in text]",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where the model runs on calibration text to choose codes.",
)
@click.option(
    "--save-calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep the measured scales, as a .safetensors file for --calibration.",
)
@click.option(
    "--trtllm-python",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="For backend trtllm-engine: the Python of an environment with TensorRT-LLM 1.0 to 1.2.1.  "
    "[default: that of trtllm-build on the PATH; without one, the device builds the engine]",
)
@click.option(
    "--trtllm-command",
    metavar="COMMAND",
    help="The same as a container: 'docker run --rm --gpus all -v $PWD:$PWD IMAGE'.",
)
@options.threads_option
@click.option(
    "--memory",
    type=Size(),
    metavar="SIZE",
    help="Most memory for reading, quantizing and writing, such as 2GB.  [default: half of the machine's]",
)
@click.option(
    "--exporter",
    type=click.Choice(["edgeforge", "optimum"]),
    default="edgeforge",
    show_default=True,
    help="Who writes the ONNX graph; optimum is a slow, independent second road.",
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
@click.option("--fresh", is_flag=True, help="Start again, where an unfinished build of this bundle could go on.")
@options.json_option
@options.quiet_option
def build(
    targets: tuple[str, ...],
    model: str | None,
    revision: str | None,
    stream_download: bool,
    out: Path | None,
    changes: options.Changes,
    max_bytes: int | None,
    max_divergence: float | None,
    calibration: str | None,
    device: Literal["cpu", "cuda"],
    save_calibration: Path | None,
    trtllm_python: Path | None,
    trtllm_command: str | None,
    threads: int | None,
    memory: int | None,
    exporter: Literal["edgeforge", "optimum"],
    validate: bool,
    chunks: int,
    dry_run: bool,
    force: bool,
    fresh: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Build a bundle for a target, and compare it with its original.

    The bundle appears only when it is complete. A build that was stopped, by whatever, goes on where it was when the
    same command is given again. The bundle then answers the same text as the original, and the target's gate decides:
    exit code 5 leaves it, marked as failed in its report. Several targets are built in one pass over the model.

    \b
    Examples:
      edgeforge build --target cpu --model demo
      edgeforge build --target cpu --model ./Llama-3.2-1B-Instruct --out llama-1b
      edgeforge build --target rtx4090 --model meta-llama/Llama-3.1-8B-Instruct --dry-run
      edgeforge build --target h100 --target rtx4090 --target jetson-agx-orin-64gb
      edgeforge build --target l40s --backend compressed-tensors --scheme w4a16
      edgeforge build --target h100 --backend trtllm-engine --trtllm-python ~/trtllm-1.2.1/bin/python
      edgeforge build --target cpu --model ./Llama-3.2-1B-Instruct --algorithm gptq
      edgeforge build --target cpu --model ./Llama-3.2-1B-Instruct --scheme auto --max-bytes 900000000
      edgeforge build --target cpu --model model.gguf --scheme w8a16 --no-validate --json
    """
    from edgeforge import pipeline
    from edgeforge.cli.allocation import budget_of
    from edgeforge.cli.output import check_destination
    from edgeforge.cli.progress import Progress

    budget = budget_of(changes.scheme, max_bytes, max_divergence)
    resolved = [changes.applied_to(name) for name in targets]
    if stream_download:
        model = _streamed(_model(resolved, model))
    folders = _folders(resolved, model, out, changes)
    asked = [
        pipeline.BuildOptions(
            target=target,
            model=_model(resolved, model),
            revision=revision,
            out=folder,
            validate=validate,
            threads=threads,
            exporter=exporter,
            chunks=chunks,
            calibration=_calibration(calibration),
            save_calibration=save_calibration,
            device=device,
            budget=budget,
            trtllm_python=trtllm_python,
            trtllm_command=trtllm_command,
            replace=force,
            fresh=fresh,
            memory_bytes=memory,
        )
        for target, folder in zip(resolved, folders, strict=True)
    ]
    for folder in folders:
        check_destination(folder, force=force)
    if dry_run:
        with Progress(quiet=quiet or as_json) as progress:
            prepared = [_foreseen(*each, progress) for each in zip(asked, pipeline.prepare_all(asked), strict=True)]
        _show_plans(prepared, as_json)
        return
    with Progress(quiet=quiet or as_json) as progress:
        results = pipeline.build_all(asked, progress=progress, log=progress.log)
    _show_results(results, as_json)


def _calibration(asked: str | None) -> Path | Literal["none"] | None:
    """A file called none is ./none."""
    return "none" if asked == "none" else None if asked is None else Path(asked)


def _model(targets: Sequence["Target"], model: str | None) -> str:
    """The one model that all targets are built from."""
    from edgeforge.errors import UsageError

    if model is not None:
        return model
    defaults = {target.default_model for target in targets}
    if len(defaults) > 1:
        raise UsageError(
            f"the targets have different default models ({', '.join(sorted(defaults))})", hint="name one with --model"
        )
    return defaults.pop()


def _streamed(reference: str) -> str:
    """The hub id as a URL, whose weights are read where they are."""
    from edgeforge.errors import UsageError
    from edgeforge.model.checkpoint import HUB_ID

    if not HUB_ID.fullmatch(reference):
        raise UsageError(
            f"--stream-download is for hub ids such as org/name, not {reference}",
            hint="leave it out: a directory is there, and what a URL names is never downloaded whole",
        )
    return f"hf://{reference}"


def _folders(targets: Sequence["Target"], model: str | None, out: Path | None, changes: options.Changes) -> list[Path]:
    """A folder per target, all different."""
    from edgeforge.cli.output import default_output
    from edgeforge.errors import UsageError

    names = [target.name for target in targets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"target {twice} was given twice", hint="give each target once")
    if out is not None:
        return [out] if len(targets) == 1 else [out / name for name in names]
    reference = _model(targets, model)
    return [default_output(reference, name, backend=changes.backend, scheme=changes.scheme) for name in names]


def _foreseen(options: "BuildOptions", prepared: "Prepared", progress: "Progress") -> "Prepared":
    """With what the budget buys, where there is one."""
    if options.budget is None:
        return prepared
    from edgeforge.pipeline.foresight import foresee

    return foresee(options, prepared, progress=partial(progress, "allocate"), log=progress.log)


def _show_plans(every: Sequence["Prepared"], as_json: bool) -> None:
    from edgeforge.cli.console import emit_json

    if as_json:
        found = [_plan_document(prepared) for prepared in every]
        emit_json(found[0] if len(found) == 1 else {"builds": found})
        return
    for prepared in every:
        if len(every) > 1:
            click.echo(prepared.plan.target.name)
        click.echo(_plan_text(prepared) + "\n")
    click.echo("Nothing was written. `edgeforge plan` shows the whole plan.")


def _plan_document(prepared: "Prepared") -> dict[str, object]:
    from edgeforge.cli.allocation import allocation_document
    from edgeforge.cli.report import plan_document

    plan, spent = prepared.plan, prepared.spent
    told = {} if spent is None else {"allocation": allocation_document(spent)}
    return {"target": plan.target.name, "dry_run": True, "plan": plan_document(plan), **told}


def _plan_text(prepared: "Prepared") -> str:
    from edgeforge.cli.allocation import allocation_fields, allocation_text
    from edgeforge.cli.report import plan_fields
    from edgeforge.cli.text import fields

    pairs, spent = plan_fields(prepared.plan), prepared.spent
    if spent is None:
        return fields(pairs)
    told = spent.document()
    pairs[:1] = allocation_fields(told)  # instead of a list of every scheme
    return f"{fields(pairs)}\n\n{allocation_text(told, tied=prepared.plan.architecture.tie_word_embeddings)}"


def _show_results(results: Sequence["BuildResult"], as_json: bool) -> None:
    """Every result, then the first gate that failed."""
    from edgeforge.cli.console import emit_json
    from edgeforge.cli.report import build_document, build_text, check_gate

    if as_json:
        found = [build_document(result, result.bundle) for result in results]
        emit_json(found[0] if len(found) == 1 else {"builds": found})
    else:
        click.echo("\n\n".join(build_text(result, result.bundle) for result in results))
    for result in results:
        if result.validation is not None:
            check_gate(result.validation, result.bundle)
