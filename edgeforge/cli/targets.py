"""`edgeforge targets`: what EdgeForge builds for, and where every figure comes from."""

from typing import TYPE_CHECKING

import click

from edgeforge.cli.options import json_option

if TYPE_CHECKING:
    from edgeforge.hardware import Target


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def targets(ctx: click.Context, as_json: bool) -> None:
    """List the targets, or show one with its sources.

    \b
    Examples:
      edgeforge targets
      edgeforge targets show rtx4090
      edgeforge targets show ./my-board.toml --json
    """
    if ctx.invoked_subcommand is not None:
        return
    from edgeforge.cli.console import emit_json
    from edgeforge.hardware import available_targets, load_target, target_to_json

    known = [load_target(name) for name in available_targets()]
    if as_json:
        emit_json({"targets": [target_to_json(target) for target in known]})
    else:
        click.echo(list_text(known))


@targets.command()
@click.argument("name", metavar="NAME")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one target: what is built for it, its hardware, and the source of every figure. NAME may be a TOML file."""
    from edgeforge.cli.console import emit_json
    from edgeforge.hardware import load_target, target_to_json

    target = load_target(name)
    if as_json:
        emit_json(target_to_json(target))
    else:
        click.echo(target_text(target))


def list_text(known: list["Target"]) -> str:
    """A row per target."""
    from edgeforge.cli.text import bytes_text, table

    rows = [
        [
            target.name,
            target.profile.title or target.profile.name,
            bytes_text(target.profile.memory_bytes),
            f"{target.profile.bandwidth_bytes_per_s / 1e9:,.0f} GB/s",
            target.backend,
            target.scheme,
            f"{target.context:,}",
        ]
        for target in known
    ]
    headers = ["name", "hardware", "memory", "bandwidth", "backend", "scheme", "context"]
    return f"{table(headers, rows, right=frozenset({2, 3, 6}))}\n\n`edgeforge targets show NAME` tells all about one."


def target_text(target: "Target") -> str:
    """Everything about one target, in sections."""
    from edgeforge.cli.text import bytes_text, fields

    profile, gate = target.profile, target.gate
    kind = "symmetric" if target.symmetric else "with zero points"
    built = [
        ("backend", target.backend),
        ("scheme", f"{target.scheme}, groups of {target.group_size}, {kind}"),
        ("output head", target.lm_head),
        ("embedding", target.embedding),
        ("activations", target.activations),
        ("KV cache", target.kv_cache),
        ("context", f"{target.context:,} tokens"),
        ("batch", str(target.batch)),
        ("cards", str(target.tensor_parallel)),
        ("default model", target.default_model),
    ]
    hardware = [
        ("name", profile.title or profile.name),
        ("vendor", profile.vendor),
        ("kind", profile.kind),
        ("compute capability", profile.compute_capability or "none"),
        ("memory", f"{bytes_text(profile.memory_bytes)}, {bytes_text(profile.available_bytes)} of it for the model"),
        ("bandwidth", f"{profile.bandwidth_bytes_per_s / 1e9:,.1f} GB/s"),
        ("formats", ", ".join(profile.formats)),
    ]
    limits = [
        ("mean KL divergence", f"at most {gate.max_mean_kl_divergence:g}"),
        ("perplexity", f"at most {gate.max_perplexity_ratio:g} times the original's"),
        ("confidence", f"{gate.confidence:.0%}, one-sided"),
    ]
    sections = [
        f"{target.name}: {target.description}",
        f"Built\n{fields(built)}",
        f"Hardware\n{fields(hardware)}",
        f"Gate\n{fields(limits)}",
        f"Sources\n{fields(list(profile.sources.items()))}",
    ]
    return "\n\n".join(sections)
