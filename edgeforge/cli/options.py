"""Options that several commands share, each declared once. Click checks words, the pipeline checks meaning."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce, wraps
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgeforge.hardware import Target

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
    help="A directory, a .gguf file, a URL of either (s3://, gs://, https://...), a hub id, or `demo`.  "
    "[default: the target's own]",
)
revision_option = click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub id.")
stream_download_option = click.option(
    "--stream-download",
    is_flag=True,
    help="Read a hub id's weights where they are, piece by piece: the disk needs room for the bundle alone.",
)

backend_option = click.option(
    "--backend",
    type=click.Choice(["onnx", "modelopt", "tensorrt-llm", "trtllm-engine", "compressed-tensors"]),
    help="Who writes the files.  [default: the target's]",
)
engine_option = click.option(
    "--engine",
    type=click.Choice(["onnxruntime", "tensorrt-llm", "vllm", "edge-llm", "tensorrt"]),
    help="What will load them.  [default: the target's, or the backend's first that runs the scheme]",
)
scheme_option = click.option(
    "--scheme",
    type=click.Choice(["w4a16", "w6a16", "w8a16", "w4a8", "fp8", "fp8-dynamic", "nvfp4", "bf16", "f16", "f32", "auto"]),
    help="How linears are stored; auto chooses for each, within --max-bytes or --max-divergence.  "
    "[default: the target's]",
)
max_bytes_option = click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --scheme auto: the least divergence in a weights file of at most N bytes.",
)
max_divergence_option = click.option(
    "--max-divergence",
    type=click.FloatRange(min=0, min_open=True),
    metavar="D",
    help="With --scheme auto: the smallest weights file with a predicted KL divergence of at most D.",
)
group_size_option = click.option(
    "--group-size", type=int, metavar="N", help="Weights that share a scale: 16, 32, 64, 128 or 256."
)
symmetric_option = click.option(
    "--symmetric/--asymmetric", "symmetric", default=None, help="Without or with zero points.  [default: the target's]"
)
algorithm_option = click.option(
    "--algorithm",
    type=click.Choice(["auto", "rtn", "search", "gptq", "awq", "awq+gptq"]),
    help="How codes are chosen: rounded to nearest, under searched scales, or on calibration text.  "
    "[default: the target's]",
)
rotate_option = click.option(
    "--rotate/--no-rotate",
    default=None,
    help="Turn the residual stream before rounding, so that no channel stands out; costs nothing when it runs.  "
    "[default: the target's]",
)
kv_cache_option = click.option(
    "--kv-cache",
    type=click.Choice(["f32", "f16", "bf16", "fp8", "int8"]),
    help="How cached keys and values are stored.  [default: the target's]",
)
context_option = click.option(
    "--context", type=click.IntRange(min=1), metavar="N", help="Longest prompt and answer together, in tokens."
)
batch_option = click.option("--batch", type=click.IntRange(min=1), metavar="N", help="Sequences at once.")
tensor_parallel_option = click.option(
    "--tensor-parallel", type=click.IntRange(min=1), metavar="N", help="Cards that share every layer."
)
pipeline_parallel_option = click.option(
    "--pipeline-parallel", type=click.IntRange(min=1), metavar="N", help="Groups of cards that share the layers."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What the user changes about a target; None leaves a setting alone."""

    backend: str | None
    engine: str | None
    scheme: str | None
    group_size: int | None
    symmetric: bool | None
    algorithm: str | None
    rotate: bool | None
    kv_cache: str | None
    context: int | None
    batch: int | None
    tensor_parallel: int | None
    pipeline_parallel: int | None

    def applied_to(self, name: str) -> "Target":
        """The target called `name` with these changes (`auto` is chosen later). Raises UsageError, UnusableInput."""
        from edgeforge.hardware import load_target
        from edgeforge.planning import apply_overrides

        return apply_overrides(
            load_target(name),
            backend=self.backend,
            engine=self.engine,
            scheme=None if self.scheme == "auto" else self.scheme,
            group_size=self.group_size,
            symmetric=self.symmetric,
            algorithm=self.algorithm,
            rotate=self.rotate,
            kv_cache=self.kv_cache,
            context=self.context,
            batch=self.batch,
            tensor_parallel=self.tensor_parallel,
            pipeline_parallel=self.pipeline_parallel,
        )


_CHANGES = (
    backend_option,
    engine_option,
    scheme_option,
    group_size_option,
    symmetric_option,
    algorithm_option,
    rotate_option,
    kv_cache_option,
    context_option,
    batch_option,
    tensor_parallel_option,
    pipeline_parallel_option,
)


def target_changes(command: Callable[..., None]) -> Callable[..., None]:
    """Every option that changes a target, handed to the command as one argument: `changes`."""

    @wraps(command)
    def gathered(
        *,
        backend: str | None,
        engine: str | None,
        scheme: str | None,
        group_size: int | None,
        symmetric: bool | None,
        algorithm: str | None,
        rotate: bool | None,
        kv_cache: str | None,
        context: int | None,
        batch: int | None,
        tensor_parallel: int | None,
        pipeline_parallel: int | None,
        **others: object,
    ) -> None:
        changes = Changes(
            backend=backend,
            engine=engine,
            scheme=scheme,
            group_size=group_size,
            symmetric=symmetric,
            algorithm=algorithm,
            rotate=rotate,
            kv_cache=kv_cache,
            context=context,
            batch=batch,
            tensor_parallel=tensor_parallel,
            pipeline_parallel=pipeline_parallel,
        )
        command(changes=changes, **others)

    return reduce(lambda decorated, option: option(decorated), reversed(_CHANGES), gathered)


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
