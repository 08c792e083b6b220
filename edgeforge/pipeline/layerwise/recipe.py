"""How the calibrated pass chooses codes: one value, which is part of the state folder's key."""

from dataclasses import dataclass
from typing import Literal

from edgeforge.planning import BuildPlan

Algorithm = Literal["rtn", "search", "awq", "gptq", "awq+gptq"]
Folding = Literal["fold", "pre_quant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The parameters of awq.py and gptq.py.

    algorithm  awq: scales of the input channels; gptq: codes column by column. Without gptq, codes are rounded to
               nearest under searched scales (rtn: the groups' own ranges)
    damping    gptq's, of the mean of the Hessian's diagonal; raised tenfold where the Hessian is singular
    order      gptq's, of the columns
    clip       whether the groups' ranges are searched with the correlations within a group (awq.clip), or with the
               diagonal alone
    corrects   whether gptq aims at what the original would have computed, rather than at what its own weights make of
               inputs that have drifted since (GPTAQ, arXiv 2504.02692), and o and down at its residual stream
    emphasis   a sequence's first token counts as r ** emphasis others for a linear where its squared gradient is r
               times theirs; 0: no more than others. (All of r would leave little else to look at: of 0, 0.25, 0.35 and
               0.5, 0.25 was the best on SmolLM2-135M and on stories260k.)
    head       whether the output head (or the embedding, where the two are tied) is calibrated too
    """

    algorithm: Algorithm = "gptq"
    damping: float = 0.01
    order: Literal["natural", "activation", "groups"] = "activation"
    clip: bool = False
    corrects: bool = True
    emphasis: float = 0.25
    head: bool = True

    @property
    def smooths(self) -> bool:
        return self.algorithm in ("awq", "awq+gptq")

    @property
    def compensates(self) -> bool:
        return self.algorithm in ("gptq", "awq+gptq")


def folding(plan: BuildPlan) -> Folding:
    """Where AWQ's scales go: into the layers before, or into the files of formats that have a place for them."""
    target = plan.target
    has_place = target.scheme == "w4a16" and target.backend in ("modelopt", "tensorrt-llm", "trtllm-engine")
    return "pre_quant" if has_place else "fold"
