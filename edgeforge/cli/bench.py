"""`edgeforge bench`: tokens per second and memory of a bundle on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgeforge.cli.options import device_option, json_option, quiet_option, threads_option

if TYPE_CHECKING:
    from edgeforge.validation.bench import BenchReport


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=128, show_default=True, metavar="N")
@click.option("--new-tokens", type=click.IntRange(min=1), default=64, show_default=True, metavar="N")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, metavar="N")
@threads_option
@device_option
@click.option("--save", is_flag=True, help="Keep the figures in BUNDLE/reports/bench.json.")
@json_option
@quiet_option
def bench(
    bundle: Path,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    threads: int | None,
    device: Literal["cpu", "cuda"] | None,
    save: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure BUNDLE's speed and memory through the runtime that users embed.

    The prompt is random token ids; each figure is the median of the repeats after a warm-up.

    \b
    Examples:
      edgeforge bench artifacts/demo-cpu
      edgeforge bench artifacts/demo-cpu --prompt-tokens 512 --threads 2 --json
    """
    from edgeforge.cli.console import emit_json
    from edgeforge.cli.progress import Progress
    from edgeforge.validation.bench import bench as measure_bundle
    from edgeforge.validation.bench import report_to_json, write_bench

    with Progress(quiet=quiet or as_json) as progress:
        report = measure_bundle(
            bundle,
            prompt_tokens=prompt_tokens,
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
    else:
        click.echo(render(report))


def render(report: "BenchReport") -> str:
    """The figures, aligned."""
    from edgeforge.cli.text import bytes_text, fields

    pairs = [
        ("prefill", f"{report.prefill_tokens_per_s:,.0f} tokens/s for {report.prompt_tokens} tokens"),
        ("decode", f"{report.decode_tokens_per_s:,.1f} tokens/s over {report.new_tokens} tokens"),
    ]
    if report.roofline_decode_tokens_per_s is not None:
        bound = report.roofline_decode_tokens_per_s
        share = report.decode_tokens_per_s / bound
        pairs.append(
            ("roofline", f"{bound:,.0f} tokens/s on target {report.target}; this run reached {share:.0%} of it")
        )
    pairs += [
        ("peak memory", bytes_text(report.peak_memory_bytes)),
        ("load", f"{report.load_seconds:.2f} s"),
    ]
    return fields(pairs, indent=0)
