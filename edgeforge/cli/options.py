"""Options that several commands share, each declared once. Click checks words, the pipeline checks meaning."""

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and no progress.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads to use.  [default: physical cores]"
)
target_option = click.option(
    "-t", "--target", required=True, metavar="NAME", help="Target name (see `edgeforge targets`) or a TOML file."
)
model_option = click.option(
    "-m",
    "--model",
    metavar="REF",
    help="A directory, a .gguf file, a hub id, or `demo`.  [default: the target's own]",
)
revision_option = click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub id.")

scheme_option = click.option(
    "--scheme",
    type=click.Choice(["w4a16", "w8a16", "f16", "f32"]),
    help="How linears are stored.  [default: the target's]",
)
group_size_option = click.option(
    "--group-size", type=int, metavar="N", help="Weights that share a scale: 16, 32, 64, 128 or 256."
)
symmetric_option = click.option(
    "--symmetric/--asymmetric", "symmetric", default=None, help="Without or with zero points.  [default: the target's]"
)
context_option = click.option(
    "--context", type=click.IntRange(min=1), metavar="N", help="Longest prompt and answer together, in tokens."
)
batch_option = click.option("--batch", type=click.IntRange(min=1), metavar="N", help="Sequences at once.")
