"""TensorRT-LLM as a `llm_engine.LlmProgram`: its LLM API, over a checkpoint (PyTorch backend) or over a built engine.

Written against tensorrt_llm/llmapi/llm.py (LLM, generate_async), tensorrt_llm/executor/result.py (GenerationResult is
its own iterator; outputs[0].token_ids grows; abort) and tensorrt_llm/sampling_params.py, versions 1.0 to 1.3; engines
are opened by tensorrt_llm/_tensorrt_engine, which 1.2.1 was the last stable version to have.

It computes ahead of whoever reads, so that the timings of an answer read slowly flatter it.
"""

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

from .errors import UnusableBundle
from .generate import FinishReason, GenerationOptions
from .llm_engine import Step, import_program, seed_of
from .manifest import EngineRecord
from .requirements import numbers
from .sampling import GREEDY_BELOW

REASONS: Mapping[str | None, FinishReason] = {"stop": "stop", "length": "length"}
# The default of max_num_tokens (tensorrt_llm/llmapi/llm_args.py): a longer prompt must be computed in pieces.
LONGEST_PIECE = 8192
# The PyTorch backend took these and ignored them before: pull requests 16485 (penalties), 16590 (min_p), 17172 (seed),
# merged between the release candidates of 1.3. The value that asks for nothing stands beside each.
SAMPLES_ALL_SINCE = "1.3"
NEUTRAL = {"repetition_penalty": "1.0", "min_p": "0", "seed": "None"}


class Completion(Protocol):
    """tensorrt_llm.llmapi.CompletionOutput"""

    token_ids: Sequence[int]
    finish_reason: str | None


class Result(Protocol):
    """tensorrt_llm.llmapi.RequestOutput: yields itself whenever something was added."""

    outputs: Sequence[Completion]
    finished: bool

    def __iter__(self) -> "Iterator[Result]": ...
    def abort(self) -> None: ...


class Llm(Protocol):
    """tensorrt_llm.LLM"""

    def generate_async(self, inputs: list[int], sampling_params: object, *, streaming: bool) -> Result: ...


class TensorRtLlm:
    title = "TensorRT-LLM"

    def __init__(self, model: Path, record: EngineRecord, context_length: int, *, version: str) -> None:
        self._model = model
        self._record = record
        self._context_length = context_length
        self._version = version

    def check(self, options: GenerationOptions) -> None:
        release, since = numbers(self._version), numbers(SAMPLES_ALL_SINCE)
        if self._record.name == "tensorrt" or release > since or (release == since and "rc" not in self._version):
            return
        asked = options.sampling
        ignored = {
            "repetition_penalty": asked.repetition_penalty != 1.0,
            "min_p": asked.min_p > 0.0 and asked.temperature >= GREEDY_BELOW,
            "seed": asked.seed is not None and asked.temperature >= GREEDY_BELOW,
        }
        for name, is_ignored in ignored.items():
            if is_ignored:
                raise UnusableBundle(
                    f"TensorRT-LLM {self._version} ignores {name}; it takes it into account since {SAMPLES_ALL_SINCE}",
                    hint=f"update tensorrt-llm, or ask for {name} {NEUTRAL[name]}",
                )

    def open(self) -> None:
        os.environ.setdefault("TLLM_LOG_LEVEL", "error")
        self._module: ModuleType = import_program("tensorrt_llm", self.title)
        if self._record.name == "tensorrt":
            # Parallelism, lengths and batch are the engine's own.
            opener = import_program("tensorrt_llm._tensorrt_engine", self.title)
            self._llm: Llm = opener.LLM(model=str(self._model), skip_tokenizer_init=True)
            return
        self._llm = self._module.LLM(
            model=str(self._model),
            skip_tokenizer_init=True,
            tensor_parallel_size=self._record.tensor_parallel,
            pipeline_parallel_size=self._record.pipeline_parallel,
            max_seq_len=self._context_length,
            max_batch_size=1,
            enable_chunked_prefill=self._context_length > LONGEST_PIECE,
        )

    def steps(self, prompt: Sequence[int], options: GenerationOptions, limit: int) -> Generator[Step, None, None]:
        result = self._llm.generate_async(list(prompt), self._sampling(options, limit), streaming=True)
        told, finished = 0, False
        try:
            for partial in result:
                completion, finished = partial.outputs[0], partial.finished
                # It takes a stop id that it had added back, so that there may be fewer ids than before.
                fresh = list(completion.token_ids[told:])
                told += len(fresh)
                yield Step(
                    token_ids=fresh,
                    reused_tokens=int(getattr(partial, "cached_tokens", 0) or 0),
                    reason=REASONS.get(completion.finish_reason, "cancelled") if finished else None,
                )
        finally:
            if not finished:
                result.abort()

    def _sampling(self, options: GenerationOptions, limit: int) -> object:
        asked, eos = options.sampling, options.eos_token_ids
        # Without a tokenizer it wants an end_id; ignore_eos, which also drops the stop ids, makes any one do.
        ends: dict[str, object] = {"end_id": eos[0] if eos else 0, "ignore_eos": not eos}
        if asked.temperature < GREEDY_BELOW:
            chosen: dict[str, object] = {"top_k": 1}
        else:
            # top_p is always given: where nothing but a temperature is, 1.0 decodes greedily.
            chosen = {
                "temperature": asked.temperature,
                "top_p": asked.top_p,
                "top_k": asked.top_k or None,
                "min_p": asked.min_p or None,
                "seed": seed_of(asked),
            }
        penalty = asked.repetition_penalty
        return self._module.SamplingParams(
            max_tokens=limit,
            stop_token_ids=list(eos[1:]) or None,
            repetition_penalty=None if penalty == 1.0 else penalty,
            detokenize=False,
            **ends,
            **chosen,
        )
