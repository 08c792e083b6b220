"""`edgeforge bench`: tokens per second and memory of a bundle on this machine."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgeforge.cli.options import device_option, json_option, quiet_option, threads_option

if TYPE_CHECKING:
    from edgeforge.validation.benching.records import BenchReport, Spread


def counts(*, least: int) -> Callable[[click.Context, click.Parameter, str], tuple[int, ...]]:
    """Reads `128` or `128,512`: whole numbers of at least `least`."""

    def read(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
        try:
            numbers = tuple(int(word) for word in value.split(","))
        except ValueError:
            raise click.BadParameter(f"{value!r} is not a list of whole numbers, such as 128,512") from None
        if min(numbers) < least:
            raise click.BadParameter(f"{min(numbers)} is less than {least}")
        return numbers

    return read


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--prompt-tokens",
    callback=counts(least=1),
    default="128",
    show_default=True,
    metavar="N,..",
    help="Tokens to read.",
)
@click.option(
    "--batch",
    callback=counts(least=1),
    default="1",
    show_default=True,
    metavar="N,..",
    help="Sequences at once, each with a prompt of its own.",
)
@click.option(
    "--context",
    callback=counts(least=0),
    default="0",
    show_default=True,
    metavar="N,..",
    help="Tokens that the cache holds before the prompt.",
)
@click.option("--new-tokens", type=click.IntRange(min=1), default=64, show_default=True, metavar="N")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, metavar="N")
@threads_option
@device_option
@click.option("--save", is_flag=True, help="Keep the figures in BUNDLE/reports/bench.json.")
@json_option
@quiet_option
def bench(
    bundle: Path,
    prompt_tokens: tuple[int, ...],
    batch: tuple[int, ...],
    context: tuple[int, ...],
    new_tokens: int,
    repeats: int,
    threads: int | None,
    device: Literal["cpu", "cuda"] | None,
    save: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure BUNDLE's speed and memory through the runtime that users embed.

    Lists are measured in every combination. Prompts are random token ids; each figure is the median of the repeats,
    which take turns, after a run of each that does not count. The roofline beside it is what this machine's memory and
    arithmetic allow, measured between the repeats. A noisy machine, and a figure above what is possible, are warned of.

    \b
    Examples:
      edgeforge bench artifacts/demo-cpu
      edgeforge bench artifacts/demo-cpu --prompt-tokens 128,512 --batch 1,2,4 --context 0,2048
      edgeforge bench artifacts/demo-cpu --prompt-tokens 512 --threads 2 --json
    """
    from edgeforge.cli.console import emit_json
    from edgeforge.cli.progress import Progress
    from edgeforge.runtime.variants import bundle_in
    from edgeforge.validation.bench import bench as measure_bundle
    from edgeforge.validation.bench import cases_of, report_to_json, write_bench

    bundle = bundle_in(bundle)
    with Progress(quiet=quiet or as_json) as progress:
        report = measure_bundle(
            bundle,
            cases_of(batches=batch, contexts=context, prompts=prompt_tokens),
            new_tokens=new_tokens,
            repeats=repeats,
            threads=threads,
            device=device,
            progress=progress,
        )
    if save:
        from edgeforge.bundle import seal

        write_bench(report, bundle)
        seal(bundle)
    if as_json:
        emit_json(report_to_json(report))
        return
    click.echo(render(report))
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)


def render(report: "BenchReport") -> str:
    """A row for each case, then what is the same for all."""
    from edgeforge.cli.text import bytes_text, fields, table

    headers = ("batch", "context", "prompt", "prefill/s", "roofline", "decode/s", "roofline", "first token", "memory")
    rows = [
        (
            str(figures.case.batch),
            f"{figures.case.context_tokens:,}",
            f"{figures.case.prompt_tokens:,}",
            _rate(figures.prefill_tokens_per_s),
            _share(figures.prefill_tokens_per_s, figures.roofline_prefill_tokens_per_s),
            _rate(figures.decode_tokens_per_s),
            _share(figures.decode_tokens_per_s, figures.roofline_decode_tokens_per_s),
            f"{figures.time_to_first_token_ms.median:,.0f} ms",
            bytes_text(figures.peak_memory_bytes),
        )
        for figures in report.cases
    ]
    pairs = [("load", f"{report.load_seconds:.2f} s, then {bytes_text(report.loaded_memory_bytes)} resident")]
    return (
        f"{table(headers, rows, right=frozenset(range(len(headers))))}\n\n{fields(pairs + _bounds(report), indent=0)}"
    )


def _bounds(report: "BenchReport") -> list[tuple[str, str]]:
    """What the rooflines are made of, and what else is worth knowing of a decode step."""
    from edgeforge.cli.text import bytes_text, decode_text

    pairs = []
    first, limits = report.cases[0], report.limits
    if limits is not None:
        read, multiply = limits.read_bytes_per_s.median / 1e9, limits.int8_operations_per_s.median / 1e9
        threads = f"{limits.threads} thread{'s' * (limits.threads > 1)}"
        pairs.append(("machine", f"{threads} read {read:,.1f} GB/s and do {multiply:,.0f} billion int8 operations/s"))
    if report.weight_bytes_per_step is not None:
        pairs.append(("decode reads", f"{bytes_text(report.weight_bytes_per_step)} of weights for every token"))
    if first.target_roofline_decode_tokens_per_s is not None:
        bound = decode_text(first.target_roofline_decode_tokens_per_s)
        pairs.append(("target", f"{report.target}'s memory would allow {bound} tokens/s of decode in the first row"))
    if first.python_share is not None:
        pairs.append(("Python", f"{first.python_share:.1%} of a decode step, in the first row"))
    return pairs


def _rate(spread: "Spread") -> str:
    from edgeforge.cli.text import decode_text

    quartiles = f"{decode_text(spread.lower_quartile)}..{decode_text(spread.upper_quartile)}"
    return f"{decode_text(spread.median)} ({quartiles})"


def _share(spread: "Spread", roofline: float | None) -> str:
    """`43 % of 245`"""
    from edgeforge.cli.text import decode_text

    return "-" if roofline is None else f"{spread.median / roofline:.0%} of {decode_text(roofline)}"
