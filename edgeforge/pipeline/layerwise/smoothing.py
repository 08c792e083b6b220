"""AWQ's scales of a layer's input channels, found before any of the layer is quantized, and put into its weights.

`factors` are what awq.py stores as pre-quant scales, 1 / s: the input is multiplied by them, the columns divided.
q, k, v (and gate, up) have theirs in the norm before them. Those of o and down go into the rows of v and up, which are
what o and down are given: value heads that several query heads share have one factor for all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.pipeline.layerwise.decoder import Matrices, weight_name
from edgeforge.pipeline.layerwise.passes import BLOCKS, names_of
from edgeforge.pipeline.layerwise.recipe import Folding
from edgeforge.pipeline.layerwise.statistics import Statistics
from edgeforge.pipeline.layerwise.workers import Workers
from edgeforge.planning import BuildPlan, scale_copies
from edgeforge.quantization import awq
from edgeforge.quantization.scheme import QuantizationScheme

NORM_OF = {"qkv": "attention", "gate_up": "mlp"}
FEEDS = {"o": "v", "down": "up"}
_STORED = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16), "f32": np.dtype(np.float32)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothing:
    """`kept`: factors [K] by block that the files store beside the weights, rather than in what comes before."""

    folding: Folding
    kept: dict[str, torch.Tensor] = field(default_factory=dict)


def smooth(
    plan: BuildPlan,
    chosen: frozenset[str],
    layer: int,
    w: Matrices,
    inputs: Mapping[str, Statistics],
    folding: Folding,
    team: Workers,
) -> Smoothing:
    """Search the scales of every block whose codes are `chosen`, and change `w` accordingly.

    With "fold", `w` computes what it did before. With "pre_quant" it stays as it was, and `kept` has the factors, which
    are those that the format can hold.
    """
    smoothing = Smoothing(folding=folding)
    for block, roles in BLOCKS.items():
        names, fed = names_of(layer, block), FEEDS.get(block)
        # rows that the checkpoint's own codes stand for cannot be multiplied
        changed = [weight_name(layer, fed)] if fed is not None and folding == "fold" else []
        if not chosen.issuperset([*names, *changed]):
            continue
        slots = _slots(plan.architecture) if block == "o" and folding == "fold" else None
        statistics = inputs[block]
        gram, scheme = statistics.gram, plan.schemes[names[0]]
        s = awq.search_scales(
            [w[role] for role in roles],
            gram,
            statistics.means,
            scheme,
            slots=slots,
            rounded_inputs=_rounded_inputs(plan, block, scheme, statistics),
            each=team.map,
        )
        factors = torch.from_numpy(_stored(np.reciprocal(s), plan, folding)).to(gram.device)
        if folding == "pre_quant":
            smoothing.kept[block] = factors
            continue
        for role in roles:
            w[role] /= factors
        if fed is None:
            w[NORM_OF[block]] *= factors
        else:
            w[fed] *= _of_rows(factors, len(w[fed]), slots)[:, None]
    return smoothing


def _rounded_inputs(
    plan: BuildPlan, block: str, scheme: QuantizationScheme, statistics: Statistics
) -> awq.RoundedInputs | None:
    """onnxruntime's CPU kernels round them, in blocks as long as the weights' groups."""
    size, target = scheme.group_size, plan.target
    if size is None or target.backend != "onnx" or target.profile.kind != "cpu":
        return None
    copies = scale_copies(block, scheme, len(statistics.gram), target)
    return awq.RoundedInputs(block=size // copies, tokens=statistics.rows)


def _slots(a: LlamaArchitecture) -> torch.Tensor:
    """The row of v that feeds each input channel of o, int64 [H * E]."""
    heads = torch.arange(a.num_attention_heads) // (a.num_attention_heads // a.num_key_value_heads)
    return (heads[:, None] * a.head_dim + torch.arange(a.head_dim)).reshape(-1)


def _of_rows(factors: torch.Tensor, rows: int, slots: torch.Tensor | None) -> torch.Tensor:
    if slots is None:
        return factors
    of_rows = factors.new_ones(rows)
    of_rows[slots.to(factors.device)] = factors
    return of_rows


def _stored(factors: NDArray[np.float32], plan: BuildPlan, folding: Folding) -> NDArray[np.float32]:
    if folding == "fold":
        return factors
    return factors.astype(_STORED[plan.target.activations]).astype(np.float32)
