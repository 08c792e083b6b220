"""(architecture, target) -> BuildPlan: every decision and every predicted figure, before any weight is read.

Pure arithmetic. `draft_plan` predicts, whether it fits or not; `make_plan` (in `fit`) refuses what does not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgeforge.hardware import Target, reads_text, with_algorithm
from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.model.checkpoint import StoredGrid
from edgeforge.planning.memory import MemoryBudget, WeightBytes, budget, bundle_bytes, kv_cache_bytes, weight_bytes
from edgeforge.planning.schemes import check_rotation, choose_schemes
from edgeforge.quantization.scheme import QuantizationScheme


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """What will be built and what it will take.

    architecture         the model's; of a rotated one, with the output head apart from the embedding
    target               as asked for, its context cut to what the model can do, its algorithm no longer `auto`
    schemes              one per linear, plus the embedding's, by tensor name
    memory               per card
    disk_bytes           the finished bundle
    decode_tokens_per_s  upper bound: all sequences of the batch together, at half the context, memory bandwidth alone
    stages               what `build` will do, in order
    """

    architecture: LlamaArchitecture
    target: Target
    schemes: Mapping[str, QuantizationScheme]
    memory: MemoryBudget
    disk_bytes: int
    decode_tokens_per_s: float

    @property
    def calibrates(self) -> bool:
        """Whether the build must measure activations first: for static input scales, or a quantized KV cache."""
        static = any(scheme.activations == "static" for scheme in self.schemes.values())
        return static or self.target.kv_cache in ("fp8", "int8")

    @property
    def reads_text(self) -> bool:
        """Whether the codes are chosen with calibration text, one decoder layer after the other."""
        return reads_text(self.target.algorithm)

    @property
    def stages(self) -> tuple[str, ...]:
        calibrate = ("calibrate",) if self.calibrates or self.reads_text else ()
        return ("fetch", *calibrate, "quantize", "hash", "validate")


def draft_plan(
    architecture: LlamaArchitecture,
    target: Target,
    *,
    stored: Mapping[str, StoredGrid] | None = None,
    schemes: Mapping[str, QuantizationScheme] | None = None,
) -> BuildPlan:
    """The plan, without asking whether it fits. `stored`: integer grids the checkpoint's tensors already lie on.
    `schemes`: where they were chosen before; they do not depend on context, batch or cards.
    """
    target = with_algorithm(target)
    target = replace(target, context=min(target.context, architecture.max_position_embeddings))
    if target.rotate:
        check_rotation(architecture, target, stored or {})
        architecture, target, stored = *_untied(architecture, target), None
    if schemes is None:
        schemes = choose_schemes(architecture, target, stored or {})
    weights = weight_bytes(architecture, target, schemes)
    return BuildPlan(
        architecture=architecture,
        target=target,
        schemes=schemes,
        memory=budget(architecture, target, schemes, weights),
        disk_bytes=bundle_bytes(architecture, weights),
        decode_tokens_per_s=_decode_tokens_per_s(architecture, target, weights),
    )


def _untied(architecture: LlamaArchitecture, target: Target) -> tuple[LlamaArchitecture, Target]:
    """What a rotation leaves of the two: a head that was the embedding stays stored as that is, but apart from it."""
    if not architecture.tie_word_embeddings:
        return architecture, target
    return replace(architecture, tie_word_embeddings=False), replace(target, lm_head=target.embedding)


def _decode_tokens_per_s(architecture: LlamaArchitecture, target: Target, weights: WeightBytes) -> float:
    """Bandwidth over the bytes read for one token of every sequence: all matrices once, each sequence's cache.

    The embedding is read by single rows, so it counts only where it is also the output head.
    """
    head = weights.embedding if architecture.tie_word_embeddings else 0
    matrices = (weights.linears + head) / target.tensor_parallel
    cache = target.batch * kv_cache_bytes(architecture, target, target.context // 2) * target.pipeline_parallel
    return target.batch * target.profile.bandwidth_bytes_per_s / (matrices + weights.others + cache)
