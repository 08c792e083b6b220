"""What a piece of hardware is (HardwareProfile), what is built for it (Target), and what a build must achieve (Gate).

Plain facts, loaded from TOML by `edgeforge.hardware.library`; nothing here computes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["cpu", "gpu", "soc"]
FloatName = Literal["f32", "f16", "bf16"]
KvCacheName = Literal["f32", "f16", "bf16", "fp8", "int8"]
CodeFormat = Literal["int", "e4m3", "e2m1"]
Granularity = Literal["group", "channel", "tensor"]
InputScale = Literal["none", "static", "dynamic"]

DEFAULT_MAX_ACCURACY_LOSS = 0.05  # of targets that state none, as those in older bundles


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """One device. `sources` names the document behind each figure, by field name.

    kind                   cpu: the model lives in main memory; gpu: in the card's own; soc: one memory for both
    memory_bytes           the whole memory the model can live in
    reserved_bytes         the part of it that the driver, firmware or operating system keeps
    bandwidth_bytes_per_s  peak read bandwidth of that memory
    formats                number formats that its arithmetic (or its ONNX Runtime kernels) can work in
    """

    name: str
    vendor: str
    kind: Kind
    compute_capability: str | None
    memory_bytes: int
    bandwidth_bytes_per_s: int
    formats: tuple[str, ...]
    title: str = ""
    reserved_bytes: int = 0
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def available_bytes(self) -> int:
        """Memory that a model and its runtime may use, per card."""
        return self.memory_bytes - self.reserved_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """How far a candidate may fall behind its reference, and how sure the verdict must be (one-sided).

    `max_accuracy_loss` is a fraction of a task's items: reference's accuracy minus the candidate's.
    """

    max_mean_kl_divergence: float
    max_perplexity_ratio: float
    max_accuracy_loss: float = DEFAULT_MAX_ACCURACY_LOSS
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A profile plus what to build for it.

    reason                      why this backend and scheme are the best for the profile
    backend, engine             who writes the files, and the consumer that loads them (see BACKENDS, ENGINES)
    scheme, lm_head, embedding  scheme names (see SCHEMES) of the linears, the output head and the embedding table
    group_size, symmetric       of every integer scheme in the target, before `effective_group_size`
    activations, kv_cache       number format of what flows between linears, and of the cached keys and values
    algorithm                   how codes are chosen (see ALGORITHMS), or `auto`: the best that there is for them
    rotate                      whether the residual stream is turned before codes are chosen
    context                     longest prompt and answer together, in tokens, per sequence
    batch                       sequences at once
    tensor_parallel             cards that share every layer
    pipeline_parallel           groups of such cards that share the layers
    """

    name: str
    description: str
    reason: str
    profile: HardwareProfile
    backend: str
    engine: str
    scheme: str
    group_size: int
    symmetric: bool
    lm_head: str
    embedding: str
    activations: FloatName
    kv_cache: KvCacheName
    context: int
    batch: int
    tensor_parallel: int
    pipeline_parallel: int
    default_model: str
    gate: Gate
    algorithm: str = "auto"
    rotate: bool = False

    @property
    def cards(self) -> int:
        """How many devices one copy of the model takes."""
        return self.tensor_parallel * self.pipeline_parallel
