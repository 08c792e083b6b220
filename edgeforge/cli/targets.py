"""`edgeforge targets`: what EdgeForge builds for, and where every figure comes from."""

from typing import TYPE_CHECKING

import click

from edgeforge.cli.options import json_option

if TYPE_CHECKING:
    from edgeforge.hardware import Target
    from edgeforge.model.architecture import LlamaArchitecture


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
    """A row per target: its hardware, what is built for it, and how Llama 3.1 fits."""
    from edgeforge.cli.text import bytes_text, table
    from edgeforge.model.llama31 import LLAMA_3_1

    rows = [
        [
            target.name,
            (f"{target.cards} x " if target.cards > 1 else "") + bytes_text(target.profile.memory_bytes),
            f"{target.profile.bandwidth_bytes_per_s / 1e9:,.0f} GB/s",
            target.backend,
            target.scheme,
            *(fit_text(target, shape) for shape in LLAMA_3_1.values()),
        ]
        for target in known
    ]
    headers = ["name", "memory", "bandwidth", "backend", "scheme", *LLAMA_3_1]
    return f"{table(headers, rows, right=frozenset({1, 2, 5, 6, 7}))}\n\n{LEGEND}"


LEGEND = (
    "8B, 70B, 405B: the most tokens per second that one sequence of Llama 3.1 can decode in the target's scheme, half\n"
    "way through its context: memory bandwidth over the bytes read per token (the roofline). In brackets, what to\n"
    "change so that the model fits; - where nothing helps. `edgeforge targets show NAME` tells all about one target,\n"
    "`edgeforge plan --target NAME --model REF` what a model takes there."
)


def fit_text(target: "Target", shape: "LlamaArchitecture") -> str:
    """Tokens per second at the roofline, with what must change for the model to fit; `-` where nothing helps."""
    from dataclasses import replace

    from edgeforge.cli.text import decode_text
    from edgeforge.errors import DoesNotFit, UnusableInput
    from edgeforge.planning import PlanDoesNotFit, make_plan

    try:
        return decode_text(make_plan(shape, replace(target, batch=1)).decode_tokens_per_s)
    except PlanDoesNotFit as error:
        option = next((option for option in error.alternatives if option.available), None)
        if option is None or option.plan.target.cards > target.cards:
            return "-"
        return f"{decode_text(option.plan.decode_tokens_per_s)} ({option.change.removeprefix('--')})"
    except (DoesNotFit, UnusableInput):
        return "-"


def target_text(target: "Target") -> str:
    """Everything about one target, in sections."""
    from edgeforge.cli.report import algorithm_text
    from edgeforge.cli.text import bytes_text, fields
    from edgeforge.hardware import ENGINES, SCHEMES

    profile, gate = target.profile, target.gate
    facts = SCHEMES[target.scheme]
    kind = "symmetric" if target.symmetric or facts.symmetric else "with zero points"
    grouped = not facts.is_float and facts.granularity == "group"
    groups = f"groups of {facts.group_size or target.group_size}, {kind}" if grouped else ""
    built = [
        ("backend", f"{target.backend}, for {ENGINES[target.engine].title}"),
        ("why", target.reason or "the file does not say"),
        ("scheme", f"{target.scheme}, {groups}" if groups else target.scheme),
        ("algorithm", algorithm_text(target.algorithm)),
        ("rotation", "of the residual stream" if target.rotate else "none"),
        ("output head", target.lm_head),
        ("embedding", target.embedding),
        ("activations", target.activations),
        ("KV cache", target.kv_cache),
        ("context", f"{target.context:,} tokens"),
        ("batch", str(target.batch)),
        ("cards", str(target.cards)),
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
        ("accuracy of a task", f"at most {100 * gate.max_accuracy_loss:g} of 100 items below the original's"),
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
