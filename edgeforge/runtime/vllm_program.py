"""vLLM as a `llm_engine.LlmProgram`: its LLMEngine, one request at a time, stepped by whoever asks for the next token.

Written against vLLM 0.33.0: vllm/v1/engine/llm_engine.py (add_request, step, abort_request), vllm/sampling_params.py,
vllm/outputs.py, vllm/engine/arg_utils.py; the same calls are in its documentation since 0.16.
"""

import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

from .generate import FinishReason, GenerationOptions
from .llm_engine import Step, import_program, seed_of
from .manifest import EngineRecord
from .sampling import GREEDY_BELOW

# Set before the import, and only where the user has not: no log on stdout, nothing sent to the vLLM project, and the
# engine in this process, so that it computes when it is asked to and raises what went wrong.
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
REASONS: Mapping[str | None, FinishReason] = {"stop": "stop", "length": "length"}


class Completion(Protocol):
    """vllm.CompletionOutput"""

    token_ids: Sequence[int]
    finish_reason: str | None


class Output(Protocol):
    """vllm.RequestOutput"""

    request_id: str
    outputs: Sequence[Completion]
    finished: bool
    num_cached_tokens: int | None


class VllmEngine(Protocol):
    """vllm.LLMEngine"""

    def add_request(self, request_id: str, prompt: Mapping[str, object], params: object) -> object: ...
    def step(self) -> Sequence[Output]: ...
    def abort_request(self, request_ids: list[str]) -> None: ...


class Vllm:
    title = "vLLM"

    def __init__(self, model: Path, record: EngineRecord, context_length: int) -> None:
        self._model = model
        self._record = record
        self._context_length = context_length
        self._requests = 0

    def check(self, options: GenerationOptions) -> None:
        """vLLM has every option; it refuses values itself."""

    def open(self) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._vllm: ModuleType = import_program("vllm", self.title)
        arguments = self._vllm.EngineArgs(
            model=str(self._model),
            skip_tokenizer_init=True,
            max_model_len=self._context_length,
            max_num_seqs=1,
            tensor_parallel_size=self._record.tensor_parallel,
            pipeline_parallel_size=self._record.pipeline_parallel,
            disable_log_stats=True,
        )
        self._engine: VllmEngine = self._vllm.LLMEngine.from_engine_args(arguments)

    def steps(self, prompt: Sequence[int], options: GenerationOptions, limit: int) -> Generator[Step, None, None]:
        self._requests += 1
        request = str(self._requests)
        self._engine.add_request(request, {"prompt_token_ids": list(prompt)}, self._sampling(options, limit))
        finished = False
        try:
            while not finished:
                for output in self._engine.step():
                    if output.request_id != request:
                        continue  # the last words of one that was aborted
                    completion, finished = output.outputs[0], output.finished
                    yield Step(
                        token_ids=completion.token_ids,
                        reused_tokens=output.num_cached_tokens or 0,
                        reason=REASONS.get(completion.finish_reason, "cancelled") if finished else None,
                    )
        finally:
            if not finished:
                self._engine.abort_request([request])

    def _sampling(self, options: GenerationOptions, limit: int) -> object:
        asked = options.sampling
        greedy = asked.temperature < GREEDY_BELOW
        return self._vllm.SamplingParams(
            temperature=0.0 if greedy else asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            min_p=asked.min_p,
            repetition_penalty=asked.repetition_penalty,
            seed=None if greedy else seed_of(asked),
            max_tokens=limit,
            # The ids that end a text are the bundle's, not those that vLLM would add from generation_config.json.
            ignore_eos=True,
            stop_token_ids=list(options.eos_token_ids),
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.DELTA,
        )
