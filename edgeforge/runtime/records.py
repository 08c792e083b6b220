"""The records of manifest.json, as dataclasses. `manifest` reads them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

EngineName = Literal["tensorrt-llm", "vllm", "edge-llm", "tensorrt"]
EngineState = Literal["ready", "to-be-built"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """The checkpoint that the bundle was made from."""

    kind: str
    name: str | None
    revision: str | None
    precision: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRecord:
    """generation_config.json's sampling fields; None where its authors did not say."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """The files under model/ and the shape of the decoder, as far as running it needs to know.

    `backend` onnx: past and present share one buffer of `context_length` positions. optimum: present is a new, longer
    tensor. The others hold a checkpoint (or engine) for an `EngineRecord`'s program, and no graph. Paths are relative
    to the bundle. `weights` is the one file with the weights; None where the graph holds them, or there are several.
    Logits of the last token are what `graph` gives, of every token `scoring_graph`, of as many as are asked for
    `runtime_graph`, which bundles have since there is speculation.
    """

    backend: str
    graph: str | None
    scoring_graph: str | None
    weights: str | None
    activations: str
    kv_cache: str
    context_length: int
    vocab_size: int
    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    tokenizer: str
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    add_bos: bool
    generation: GenerationRecord
    runtime_graph: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """Python packages with their least versions (">=1.26"), and the onnxruntime execution provider of a graph."""

    packages: Mapping[str, str]
    provider: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """The program that the files under model/ are for, where that is not onnxruntime.

    name                 tensorrt-llm: its LLM API; tensorrt: TensorRT-LLM <= 1.2.1, which runs engine files
    compute_capability   of the GPU that the files are tied to; None where they load on any that has the format
    state                to-be-built: a step on the device is missing, which `script` (a path in the bundle) takes
    versions             what an engine was built with, by `manifest.BUILT_WITH`; empty where nothing was
    """

    name: EngineName
    tensor_parallel: int
    pipeline_parallel: int
    compute_capability: str | None
    state: EngineState
    script: str | None
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Determinism:
    reproducible: bool
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """sha256 in hex, size in bytes, and what the file is for."""

    sha256: str
    size: int
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """manifest.json. `target`, `profile` and `plan` are the toolchain's; of them the runtime reads `target.scheme`."""

    schema_version: int
    edgeforge_version: str
    target: Mapping[str, object]
    profile: Mapping[str, object]
    plan: Mapping[str, object]
    source: SourceRecord
    model: ModelRecord
    requirements: Requirements
    determinism: Determinism
    files: Mapping[str, FileRecord]
    engine: EngineRecord | None = None
