"""(architecture, target) -> plan: which scheme each linear gets, and what the result takes. No weights, no I/O."""

from edgeforge.planning.fit import Alternative, PlanDoesNotFit, make_plan, max_context
from edgeforge.planning.memory import MemoryBudget, matrix_bytes
from edgeforge.planning.overrides import apply_overrides
from edgeforge.planning.plan import BuildPlan, draft_plan
from edgeforge.planning.schemes import EMBEDDING, block_name, choose_schemes, fused_blocks, lies_on, scale_copies
from edgeforge.planning.serial import plan_from_json, plan_to_json, scheme_key
from edgeforge.planning.summary import WeightRow, weight_rows

__all__ = [
    "EMBEDDING",
    "Alternative",
    "BuildPlan",
    "MemoryBudget",
    "PlanDoesNotFit",
    "WeightRow",
    "apply_overrides",
    "block_name",
    "choose_schemes",
    "draft_plan",
    "fused_blocks",
    "lies_on",
    "make_plan",
    "matrix_bytes",
    "max_context",
    "plan_from_json",
    "plan_to_json",
    "scale_copies",
    "scheme_key",
    "weight_rows",
]
