"""Options that several commands share, each declared once. Click checks words, the pipeline checks meaning."""

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and no progress.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads to use.  [default: physical cores]"
)
device_option = click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="Where to run.  [default: what the bundle was built for]"
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

system_option = click.option("--system", metavar="TEXT", help="A system message before the conversation.")
max_new_tokens_option = click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=512, show_default=True, metavar="N", help="Longest answer."
)
temperature_option = click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, metavar="T", help="0, the default, is greedy."
)
top_k_option = click.option("--top-k", type=click.IntRange(min=0), metavar="K", help="Choose among the K likeliest.")
top_p_option = click.option(
    "--top-p", type=click.FloatRange(min=0, max=1, min_open=True), metavar="P", help="Choose within this probability."
)
min_p_option = click.option(
    "--min-p",
    type=click.FloatRange(min=0, max=1),
    metavar="P",
    help="Drop what is less than P times as likely as the best.",
)
repetition_penalty_option = click.option(
    "--repetition-penalty", type=click.FloatRange(min=0, min_open=True), metavar="R", help="Over 1: repeat less."
)
seed_option = click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Same seed, same answer.")
stop_option = click.option("--stop", multiple=True, metavar="TEXT", help="End the answer here; may be given often.")
