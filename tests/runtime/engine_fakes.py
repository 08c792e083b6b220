"""TensorRT-LLM and vLLM without a GPU: the part of each that the runtime calls, as strict about it as the originals.

Modelled on vLLM 0.33.0 (vllm/v1/engine/llm_engine.py, vllm/v1/core/sched/utils.py, vllm/sampling_params.py,
vllm/outputs.py) and on TensorRT-LLM (tensorrt_llm/llmapi/llm.py, tensorrt_llm/executor/result.py,
tensorrt_llm/sampling_params.py). Both compute the tiny bundle's decoder, `tiny_bundle.reference_logits`.
"""

import enum
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
from tiny_bundle import Shape, reference_logits

SHAPE = Shape()
BLOCK = 4  # tokens of the prompt are reused in blocks


def next_token(ids: Sequence[int], temperature: float, seed: int | None) -> int:
    logits = reference_logits(SHAPE, list(ids))[-1].astype(np.float64)
    if temperature == 0:
        return int(logits.argmax())
    weights = np.exp((logits - logits.max()) / temperature)
    random = np.random.default_rng((seed or 0, len(ids)))
    return int(random.choice(len(weights), p=weights / weights.sum()))


def reused(ids: Sequence[int], before: Sequence[int]) -> int:
    """Whole blocks at the beginning of the prompt that an earlier text had too, never all of the prompt."""
    shared = 0
    while shared < min(len(ids) - 1, len(before)) and ids[shared] == before[shared]:
        shared += 1
    return shared // BLOCK * BLOCK


class ValidationError(Exception):
    """vllm.exceptions.VLLMValidationError: no ValueError."""


class RequestOutputKind(enum.Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass(kw_only=True)
class VllmSamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    ignore_eos: bool = False
    stop_token_ids: list[int] | None = None
    detokenize: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise ValidationError(f"temperature must be in [0, 2], got {self.temperature}.\n(parameter=temperature)")
        if not 0 < self.top_p <= 1:
            raise ValidationError(f"top_p must be in (0, 1], got {self.top_p}.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValidationError(f"max_tokens must be at least 1, got {self.max_tokens}.")


@dataclass(kw_only=True)
class EngineArgs:
    model: str
    skip_tokenizer_init: bool = False
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    disable_log_stats: bool = False


@dataclass
class VllmCompletion:
    token_ids: list[int]
    finish_reason: str | None


@dataclass
class VllmOutput:
    request_id: str
    outputs: list[VllmCompletion]
    finished: bool
    num_cached_tokens: int | None


@dataclass
class VllmRequest:
    prompt: list[int]
    params: VllmSamplingParams
    new: list[int] = field(default_factory=list)


class LLMEngine:
    opened: ClassVar[list["LLMEngine"]] = []

    def __init__(self, arguments: EngineArgs) -> None:
        self.arguments = arguments
        self.requests: dict[str, VllmRequest] = {}  # those not finished
        self.asked: list[VllmSamplingParams] = []
        self.before: list[int] = []
        self.opened.append(self)

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> "LLMEngine":
        print("INFO vLLM says hello")
        return cls(engine_args)

    def add_request(self, request_id: str, prompt: dict[str, list[int]], params: VllmSamplingParams) -> str:
        assert type(request_id) is str
        ids = prompt["prompt_token_ids"]
        if not 0 < len(ids) < self.arguments.max_model_len:
            raise ValidationError("The decoder prompt is longer than the maximum model length")
        assert not params.detokenize or not self.arguments.skip_tokenizer_init
        self.requests[request_id] = VllmRequest(ids, params)
        self.asked.append(params)
        return f"{request_id}-0f0f0f0f"

    def step(self) -> list[VllmOutput]:
        assert self.requests, "the engine would wait forever"
        # With max_num_seqs 1 the first in the queue is computed, whoever waits for another.
        request_id, request = next(iter(self.requests.items()))
        params = request.params
        ids = [*request.prompt, *request.new]
        cached = reused(request.prompt, self.before)
        request.new.append(next_token(ids, params.temperature, params.seed))
        reason = None
        if request.new[-1] in (params.stop_token_ids or ()):
            reason = "stop"  # and the id stays in the output
        elif len(ids) + 1 >= self.arguments.max_model_len or len(request.new) >= params.max_tokens:
            reason = "length"
        if reason is not None:
            self.before = ids
            del self.requests[request_id]
        assert params.output_kind is RequestOutputKind.DELTA
        completion = VllmCompletion(token_ids=request.new[-1:], finish_reason=reason)
        return [VllmOutput(request_id, [completion], reason is not None, cached)]

    def abort_request(self, request_ids: list[str], internal: bool = False) -> None:
        for request_id in request_ids:
            del self.requests[request_id]


@dataclass(slots=True, kw_only=True)
class TrtSamplingParams:
    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    stop_token_ids: list[int] | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    min_p: float | None = None
    ignore_eos: bool = False
    detokenize: bool = True

    @property
    def greedy(self) -> bool:
        nothing = self.temperature is None and self.top_p is None and self.top_k is None
        return nothing or self.top_k == 1 or self.top_p == 0.0 or self.temperature == 0


@dataclass
class TrtCompletion:
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None


class RequestOutput:
    """Iterates over itself; the executor computes ahead of it."""

    def __init__(self, llm: "LLM", prompt: list[int], params: TrtSamplingParams) -> None:
        self.llm = llm
        self.prompt = prompt
        self.params = params
        self.outputs = [TrtCompletion()]
        self.finished = False
        self.cached_tokens = reused(prompt, llm.before)

    def __iter__(self) -> "Iterator[RequestOutput]":
        return self

    def __next__(self) -> "RequestOutput":
        if self.finished:
            raise StopIteration
        params, completion = self.params, self.outputs[0]
        ids = [*self.prompt, *completion.token_ids]
        temperature = 0.0 if params.greedy else params.temperature
        token = next_token(ids, temperature, params.seed)
        completion.token_ids.append(token)
        if not params.ignore_eos and token == params.end_id:
            completion.finish_reason = "stop"  # and the id stays
        elif not params.ignore_eos and token in (params.stop_token_ids or ()):
            completion.finish_reason = "stop"
            completion.token_ids = completion.token_ids[:-1]
        elif len(completion.token_ids) >= params.max_tokens or len(ids) + 1 >= self.llm.max_seq_len:
            completion.finish_reason = "length"
        self.finished = completion.finish_reason is not None
        if self.finished:
            self.llm.before = ids
            self.llm.running.remove(self)
        return self

    def abort(self) -> None:
        self.llm.running.remove(self)


class LLM:
    """`keys`: what the arguments' class (TorchLlmArgs, TrtLlmArgs) has beside the named ones, as far as used."""

    opened: ClassVar[list["LLM"]] = []
    keys = ("pipeline_parallel_size", "max_seq_len", "max_batch_size", "enable_chunked_prefill", "max_num_tokens")

    def __init__(
        self,
        model: str,
        tokenizer: object = None,
        skip_tokenizer_init: bool = False,
        tensor_parallel_size: int = 1,
        **kwargs: object,
    ) -> None:
        for key in kwargs:
            if key not in self.keys:
                raise ValueError(f"{type(self).__name__} got invalid argument: {key}")
        print("[TensorRT-LLM] TensorRT-LLM version: 1.3.0")
        assert skip_tokenizer_init, "it would load transformers' tokenizer"
        self.model = model
        self.arguments = {"tensor_parallel_size": tensor_parallel_size, **kwargs}
        self.max_seq_len = int(kwargs.get("max_seq_len", SHAPE.context))
        self.running: list[RequestOutput] = []
        self.asked: list[TrtSamplingParams] = []
        self.before: list[int] = []
        LLM.opened.append(self)

    def generate_async(
        self, inputs: list[int], sampling_params: TrtSamplingParams | None = None, streaming: bool = False
    ) -> RequestOutput:
        assert isinstance(inputs, list)
        assert type(inputs[0]) is int
        assert streaming
        if sampling_params.end_id is None:
            raise ValueError("tokenizer is required to reset end_id if it is None")
        if len(inputs) > 8192 and not self.arguments.get("enable_chunked_prefill"):
            raise ValueError("should not exceed max_num_tokens (8192)")
        self.asked.append(sampling_params)
        self.running.append(RequestOutput(self, inputs, sampling_params))
        return self.running[-1]


class EngineLLM(LLM):
    """tensorrt_llm._tensorrt_engine.LLM over an engine directory, whose lengths are the engine's."""

    keys = ()


def install_vllm(monkeypatch: pytest.MonkeyPatch, site: Path, version: str = "0.33.0") -> type[LLMEngine]:
    """The fake, and the metadata by which it is found."""
    vllm, sampling_params = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    sampling_params.RequestOutputKind = RequestOutputKind
    vllm.sampling_params = sampling_params
    vllm.SamplingParams = VllmSamplingParams
    vllm.EngineArgs = EngineArgs
    vllm.LLMEngine = LLMEngine
    monkeypatch.setattr(LLMEngine, "opened", [])
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling_params)
    install_metadata(monkeypatch, site, "vllm", version)
    return LLMEngine


def install_tensorrt_llm(monkeypatch: pytest.MonkeyPatch, site: Path, version: str = "1.3.0") -> type[LLM]:
    """The fake, and the metadata by which it is found."""
    module, engine = ModuleType("tensorrt_llm"), ModuleType("tensorrt_llm._tensorrt_engine")
    module.LLM = LLM
    module.SamplingParams = TrtSamplingParams
    engine.LLM = EngineLLM
    monkeypatch.setattr(LLM, "opened", [])
    monkeypatch.setitem(sys.modules, "tensorrt_llm", module)
    monkeypatch.setitem(sys.modules, "tensorrt_llm._tensorrt_engine", engine)
    install_metadata(monkeypatch, site, "tensorrt_llm", version)
    return LLM


def install_metadata(monkeypatch: pytest.MonkeyPatch, site: Path, package: str, version: str) -> None:
    folder = site / f"{package}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(site))


def install_gpus(monkeypatch: pytest.MonkeyPatch, folder: Path, *lines: str) -> None:
    """An nvidia-smi on the PATH that answers with these lines of CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
