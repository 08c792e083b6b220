"""`edgeforge plan`: what a model will take on a target, from its config.json or its headers alone."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgeforge.cli import options

if TYPE_CHECKING:
    from edgeforge.model.architecture import LlamaArchitecture
    from edgeforge.model.checkpoint import StoredGrid
    from edgeforge.pipeline import BuildOptions
    from edgeforge.planning import Alternative, BuildPlan
    from edgeforge.quantization.scheme import QuantizationScheme

ROLES = {"q": "query", "k": "key", "v": "value", "o": "output", "lm_head": "output head"}


@click.command()
@options.target_option
@options.model_option
@options.revision_option
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="A config.json, instead of a whole model."
)
@options.target_changes
@options.max_bytes_option
@options.max_divergence_option
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --scheme auto: the text that `build` will be given.  [default: a set that is fetched]",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="With --scheme auto: where the model runs on that text.",
)
@options.threads_option
@click.option("-v", "--verbose", is_flag=True, help="With --scheme auto: a line for every block.")
@options.json_option
@options.quiet_option
def plan(
    target: str,
    model: str | None,
    revision: str | None,
    config: Path | None,
    changes: options.Changes,
    max_bytes: int | None,
    max_divergence: float | None,
    calibration: Path | None,
    device: Literal["cpu", "cuda"],
    threads: int | None,
    verbose: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Predict memory, disk and speed on a target; reads no weights, but for --scheme auto.

    Exit code 4 says that the model does not fit, and what would: fewer bits, a shorter context, more cards. With
    --scheme auto the options are weighed as a build would, the first time for minutes; the build then need not.

    \b
    Examples:
      edgeforge plan --target cpu --model demo
      edgeforge plan --target h100 --config Llama-3.1-70B/config.json
      edgeforge plan --target rtx4090 --config config.json --scheme f16 --context 32768
      edgeforge plan --target jetson-orin-nx-16gb --config config.json --json
      edgeforge plan --target cpu --model demo --scheme auto --max-bytes 92000000
    """
    from edgeforge.cli.allocation import budget_of
    from edgeforge.errors import UsageError
    from edgeforge.planning import PlanDoesNotFit, make_plan

    if model is not None and config is not None:
        raise UsageError("--model and --config exclude each other", hint="--config needs no weights, --model may have")
    budget = budget_of(changes.scheme, max_bytes, max_divergence)
    resolved = changes.applied_to(target)
    reference = str(config) if config else model or resolved.default_model
    try:
        if budget is not None:
            _check_weights(reference, revision, config)
            from edgeforge.pipeline import BuildOptions

            asked = BuildOptions(
                target=resolved,
                model=reference,
                out=Path(),
                revision=revision,
                validate=False,
                threads=threads,
                calibration=calibration,
                device=device,
                budget=budget,
            )
            _show_spent(asked, reference, verbose=verbose, as_json=as_json, quiet=quiet)
            return
        if calibration is not None:
            raise UsageError("a plan reads text only to choose schemes", hint="add --scheme auto and a limit")
        architecture, stored = _read_config(config) if config else _read_model(reference, revision)
        _show(make_plan(architecture, resolved, stored=stored), (), reference, as_json)
    except PlanDoesNotFit as error:
        _show(error.plan, error.alternatives, reference, as_json)
        raise


def _check_weights(reference: str, revision: str | None, config: Path | None) -> None:
    """Whether they are on this machine: a plan does not fetch them from the hub."""
    from edgeforge.errors import UnusableInput, UsageError

    if config is not None:
        raise UsageError(
            "--scheme auto chooses by the weights, which a config.json does not have",
            hint="give the whole model with --model, or name a scheme",
        )
    known = None if reference == "demo" else _config_of(reference, revision)
    if known is not None and not any(known.parent.glob("*.safetensors")):
        raise UnusableInput(
            f"--scheme auto chooses by the weights, and only the config.json of {reference} is here",
            hint="give a model whose weights are here (`edgeforge build --dry-run` fetches a hub's), or name a scheme",
        )


def _show_spent(asked: "BuildOptions", reference: str, *, verbose: bool, as_json: bool, quiet: bool) -> None:
    """The plan that a budget buys."""
    from edgeforge import pipeline
    from edgeforge.cli.allocation import allocation_document, allocation_fields, allocation_text, blocks_text
    from edgeforge.cli.console import emit_json
    from edgeforge.cli.progress import Progress
    from edgeforge.cli.text import fields
    from edgeforge.pipeline.foresight import foresee

    with Progress(quiet=quiet or as_json) as progress:
        found = foresee(asked, pipeline.prepare(asked), progress=partial(progress, "allocate"), log=progress.log)
    assert found.spent is not None
    told, tied = allocation_document(found.spent), found.plan.architecture.tie_word_embeddings
    if as_json:
        emit_json({**plan_document(found.plan, (), reference), "allocation": told})
        return
    chosen = [fields(allocation_fields(told)), allocation_text(told, tied=tied)]
    click.echo(plan_text(found.plan, (), reference, weights="\n\n".join(chosen)))
    if verbose:
        click.echo("\n" + blocks_text(told, tied=tied))


def _read_config(path: Path) -> tuple["LlamaArchitecture", dict[str, "StoredGrid"]]:
    from edgeforge.model.architecture import architecture_from_config
    from edgeforge.model.fields import read_json

    return architecture_from_config(read_json(path)), {}


def _read_model(reference: str, revision: str | None) -> tuple["LlamaArchitecture", dict[str, "StoredGrid"]]:
    """A folder or a hub id needs only its config.json; anything else is opened, which reads headers."""
    from edgeforge.model.checkpoint import open_checkpoint

    config = None if reference == "demo" else _config_of(reference, revision)
    if config is not None:
        return _read_config(config)
    checkpoint = open_checkpoint(reference, revision=revision)
    grids = {name: checkpoint.tensor(name).grid for name in checkpoint.names}
    return checkpoint.architecture, {name: grid for name, grid in grids.items() if grid is not None}


def _config_of(reference: str, revision: str | None) -> Path | None:
    from edgeforge.model.checkpoint import HUB_ID

    path = Path(reference).expanduser()
    if path.exists() or not HUB_ID.fullmatch(reference):
        return path / "config.json" if (path / "config.json").is_file() else None
    from edgeforge.model.hub import snapshot

    return snapshot(reference, revision, weights=False) / "config.json"


def _show(plan: "BuildPlan", alternatives: tuple["Alternative", ...], reference: str, as_json: bool) -> None:
    from edgeforge.cli.console import emit_json

    if as_json:
        emit_json(plan_document(plan, alternatives, reference))
    else:
        click.echo(plan_text(plan, alternatives, reference))


def plan_text(
    plan: "BuildPlan", alternatives: tuple["Alternative", ...], reference: str, *, weights: str | None = None
) -> str:
    """The plan for people: the model, its weights (in the words of `weights`, if given), memory, and what would fit."""
    from edgeforge.cli.report import algorithm_text, rotation_fields
    from edgeforge.cli.text import fields
    from edgeforge.hardware import ENGINES

    target, profile = plan.target, plan.target.profile
    a = plan.architecture
    batch = "" if target.batch == 1 else f", {target.batch} sequences at once"
    head = [
        ("model", f"{reference}, {count_text(a.parameter_count)} parameters in {a.num_hidden_layers} layers"),
        ("target", f"{target.name}: {profile.title or profile.name}"),
        (
            "backend",
            f"{target.backend} for {ENGINES[target.engine].title}, {target.activations} activations, "
            f"{target.kv_cache} KV cache",
        ),
        ("codes", algorithm_text(target.algorithm)),
        *rotation_fields(plan),
        ("context", f"{target.context:,} tokens{batch}"),
    ]
    sections = [fields(head), weights or _weights_text(plan), _memory_text(plan), fields(_outcome(plan))]
    if alternatives:
        sections.append(_alternatives_text(alternatives))
    return "\n\n".join(sections)


def _weights_text(plan: "BuildPlan") -> str:
    from edgeforge.cli.text import bytes_text, table
    from edgeforge.planning import weight_rows

    rows = weight_rows(plan)
    cells = [
        [
            f"  {ROLES.get(row.role, row.role)}",
            scheme_text(row.scheme),
            f"{row.tensors:,}",
            count_text(row.parameters),
            bytes_text(row.stored_bytes),
        ]
        for row in rows
    ]
    return table(["  Weights", "scheme", "tensors", "parameters", "stored"], cells, right=frozenset({2, 3, 4}))


def _memory_text(plan: "BuildPlan") -> str:
    """One line per part of the budget, with its share of what the hardware has."""
    from edgeforge.cli.text import bytes_text, table

    memory, cards = plan.memory, plan.target.cards
    parts = [
        ("weights", memory.weights_bytes),
        ("KV cache", memory.kv_cache_bytes),
        ("activations", memory.activations_bytes),
        ("runtime", memory.overhead_bytes),
        ("total", memory.total_bytes),
        ("available", memory.available_bytes),
    ]
    cells = [
        [f"  {name}", bytes_text(count), f"{100 * count / memory.available_bytes:,.1f} %"] for name, count in parts
    ]
    title = "  Memory" if cards == 1 else f"  Memory, each of {cards}"
    return table([title, "", ""], cells, right=frozenset({1, 2}))


def _outcome(plan: "BuildPlan") -> list[tuple[str, str]]:
    from edgeforge.cli.text import bytes_text, decode_text
    from edgeforge.planning import max_context

    memory, profile, longest = plan.memory, plan.target.profile, max_context(plan)
    verdict = (
        f"yes, {bytes_text(memory.free_bytes)} to spare"
        if memory.fits
        else f"NO, {bytes_text(-memory.free_bytes)} too much"
    )
    model_limit = ", the model's own limit" if longest == plan.architecture.max_position_embeddings else ""
    bandwidth = f"{profile.bandwidth_bytes_per_s / 1e9:,.0f} GB/s"
    return [
        ("fits", verdict),
        ("longest context", "none fits" if longest is None else f"{longest:,} tokens{model_limit}"),
        ("bundle on disk", bytes_text(plan.disk_bytes)),
        ("decode bound", f"{decode_text(plan.decode_tokens_per_s)} tokens/s, by memory bandwidth of {bandwidth}"),
    ]


def _alternatives_text(alternatives: tuple["Alternative", ...]) -> str:
    from edgeforge.cli.text import bytes_text, decode_text, table

    cells = [
        [
            f"  {option.change}",
            bytes_text(option.plan.memory.total_bytes) + (" each" if option.plan.target.cards > 1 else ""),
            f"{decode_text(option.plan.decode_tokens_per_s)} tokens/s",
            "" if option.available else f"once backend {option.plan.target.backend} can split a model",
        ]
        for option in alternatives
    ]
    return table(["  What would fit", "memory", "decode bound", ""], cells, right=frozenset({1, 2}))


def scheme_text(scheme: "QuantizationScheme") -> str:
    """`w4a16, groups of 128`, and what is not symmetric about it."""
    if scheme.granularity != "group":
        return f"{scheme.name}, per {scheme.granularity}"
    if scheme.group_size is None:
        return scheme.name
    kind = ", offsets" if scheme.offset else "" if scheme.symmetric else ", zero points"
    return f"{scheme.name}, groups of {scheme.group_size}{kind}"


def count_text(count: int) -> str:
    """4.2 M, 8.03 G would be read as bytes: 8.03 billion."""
    for size, word in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if count >= size:
            return f"{count / size:.2f} {word}" if count < 100 * size else f"{count / size:.1f} {word}"
    return str(count)


def plan_document(plan: "BuildPlan", alternatives: tuple["Alternative", ...], reference: str) -> dict[str, object]:
    """The plan for programs; keys carry units."""
    from edgeforge.planning import max_context

    target = plan.target
    return {
        "model": reference,
        "parameters": plan.architecture.parameter_count,
        "target": target.name,
        "profile": target.profile.name,
        "backend": target.backend,
        "scheme": target.scheme,
        "group_size": target.group_size,
        "algorithm": target.algorithm,
        "rotate": target.rotate,
        "context_tokens": target.context,
        "batch_sequences": target.batch,
        "engine": target.engine,
        "cards": target.cards,
        "tensor_parallel": target.tensor_parallel,
        "pipeline_parallel": target.pipeline_parallel,
        "fits": plan.memory.fits,
        "memory": _memory_document(plan),
        "max_context_tokens": max_context(plan),
        "disk_bytes": plan.disk_bytes,
        "decode_tokens_per_s": plan.decode_tokens_per_s,
        "weights": _weights_document(plan),
        "would_fit": [_alternative_document(option) for option in alternatives],
    }


def _weights_document(plan: "BuildPlan") -> list[dict[str, object]]:
    from edgeforge.planning import weight_rows

    return [
        {
            "role": row.role,
            "scheme": row.scheme.name,
            "group_size": row.scheme.group_size,
            "symmetric": row.scheme.symmetric,
            "offset": row.scheme.offset,
            "tensors": row.tensors,
            "parameters": row.parameters,
            "stored_bytes": row.stored_bytes,
        }
        for row in weight_rows(plan)
    ]


def _alternative_document(option: "Alternative") -> dict[str, object]:
    target = option.plan.target
    return {
        "change": option.change,
        "available": option.available,
        "scheme": target.scheme,
        "context_tokens": target.context,
        "batch_sequences": target.batch,
        "cards": target.cards,
        "memory": _memory_document(option.plan),
        "decode_tokens_per_s": option.plan.decode_tokens_per_s,
    }


def _memory_document(plan: "BuildPlan") -> dict[str, int]:
    memory = plan.memory
    return {
        "weights_bytes": memory.weights_bytes,
        "kv_cache_bytes": memory.kv_cache_bytes,
        "activations_bytes": memory.activations_bytes,
        "overhead_bytes": memory.overhead_bytes,
        "total_bytes": memory.total_bytes,
        "available_bytes": memory.available_bytes,
        "free_bytes": memory.free_bytes,
    }
