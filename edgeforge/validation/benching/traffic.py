"""How many bytes a decode step has to read, and how fast that can be: the roofline of S. Williams et al. (2009),
https://doi.org/10.1145/1498765.1498785, for a program whose every weight is used once a step.
"""

from dataclasses import dataclass

from edgeforge.errors import UnusableInput
from edgeforge.planning import BuildPlan
from edgeforge.planning.memory import KV_BYTES, weight_bytes
from edgeforge.planning.serial import plan_from_json
from edgeforge.runtime.manifest import Manifest
from edgeforge.validation.benching.records import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What one step reads: the weights once for all sequences, and of each sequence its keys and values.

    `prompt_operations_per_token`: multiplications and additions of the linears for one token of a prompt.
    """

    weight_bytes_per_step: int
    kv_bytes_per_token: int
    prompt_operations_per_token: int

    def decode_tokens_per_s(self, case: Case, *, new_tokens: int, bytes_per_s: float) -> float:
        """The most that all sequences together can decode, half way through the answer."""
        positions = case.context_tokens + case.prompt_tokens + new_tokens // 2
        step_bytes = self.weight_bytes_per_step + case.batch * positions * self.kv_bytes_per_token
        return case.batch * bytes_per_s / step_bytes


def traffic_of(manifest: Manifest) -> Traffic | None:
    """From the sizes of the bundle's files and its plan; None where the manifest carries no plan of such files.

    An embedding that is not also the output head, and the rotary tables, are read by single rows: not counted.
    """
    try:
        plan = plan_from_json(manifest.plan)
    except UnusableInput:
        return None
    architecture, model = plan.architecture, manifest.model
    parts = weight_bytes(architecture, plan.target, plan.schemes)
    by_rows = parts.others + (0 if architecture.tie_word_embeddings else parts.embedding)
    stored = sum(record.size for record in manifest.files.values() if record.role == "weights")
    heads = 2 * model.num_hidden_layers * model.num_key_value_heads
    if stored <= by_rows:
        return None
    return Traffic(
        weight_bytes_per_step=stored - by_rows,
        kv_bytes_per_token=heads * model.head_dim * KV_BYTES[model.kv_cache],
        prompt_operations_per_token=_operations(plan),
    )


def _operations(plan: BuildPlan) -> int:
    """Two for each weight. The head is applied to a prompt's last token only."""
    linears = (linear for linear in plan.architecture.linears() if linear.role != "lm_head")
    return 2 * sum(linear.out_features * linear.in_features for linear in linears)
