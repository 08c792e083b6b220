"""The engines that are programs of their own, TensorRT-LLM and vLLM: what they share, around two thin adapters.

They hold the model, its KV cache and the sampler. Text, templates, defaults and stop strings stay here, so that a
bundle answers alike wherever it runs.
"""

import importlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from .choice import Program
from .errors import BundleError, MissingRequirement, UnusableBundle
from .generate import FinishReason, GenerationOptions, Token
from .manifest import Manifest
from .requirements import Device
from .sampling import Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What torch, vLLM and TensorRT-LLM call a GPU that is too small.
OUT_OF_MEMORY = ("out of memory", "no available memory", "free memory on device")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a program computed since the last step. `reason` is there at the end.

    `reused_tokens` of the prompt were still in its cache.
    """

    token_ids: Sequence[int]
    reused_tokens: int
    reason: FinishReason | None


class LlmProgram(Protocol):
    """An adapter: the program's own calls, and nothing that both programs need."""

    title: str

    def check(self, options: GenerationOptions) -> None: ...
    def open(self) -> None: ...
    def steps(self, prompt: Sequence[int], options: GenerationOptions, limit: int) -> Generator[Step, None, None]:
        """At most `limit` new ids, the one that ends the text included or not. Closing it aborts the request."""
        ...


class LlmEngine:
    """An `engine.Engine` over one of the programs: one generation at a time, the one that began last."""

    device: Device = "cuda"

    def __init__(self, program: LlmProgram, context_length: int) -> None:
        self._program = program
        self._context_length = context_length
        self._opening = threading.Lock()
        self._is_open = False
        self.turn = threading.RLock()  # one that nobody reads any more may be closed while another one computes
        self.current: LlmGeneration | None = None

    def check(self, options: GenerationOptions) -> None:
        for name, asked in (
            ("log-probabilities", options.logprobs is not None),
            ("a constrained answer", options.constraint is not None),
            ("speculation", options.speculation is not None),
            ("a sliding context", options.overflow == "slide"),
        ):
            if asked:
                raise UnusableBundle(
                    f"this runtime has {name} in onnxruntime only, and not through {self._program.title}",
                    hint="ask the program itself for it, or build the bundle with --backend onnx",
                )
        self._program.check(options)

    def open(self) -> None:
        with self._opening:
            if not self._is_open:
                # They greet on stdout, which belongs to the answer.
                with _errors_of(self._program.title, "cannot open the model"), redirect_stdout(sys.stderr):
                    self._program.open()
                self._is_open = True

    def generate(self, prompt: Sequence[int], options: GenerationOptions, cancel: threading.Event) -> "LlmGeneration":
        return LlmGeneration(self, prompt, options, cancel)

    def steps(self, prompt: Sequence[int], options: GenerationOptions) -> Generator[Step, None, None]:
        """What the program computes, with its errors as ours."""
        self.open()
        limit = options.limit(self._context_length - len(prompt))
        if limit == 0:
            yield Step(token_ids=(), reused_tokens=0, reason="length")
            return
        with closing(self._program.steps(prompt, options, limit)) as steps:
            while True:
                with _errors_of(self._program.title, "stopped"):
                    step = next(steps, None)
                if step is None:
                    raise UnusableBundle(f"{self._program.title} ended the answer without saying why")
                yield step

    def score(self, ids: Sequence[int], first: int = 0) -> "NDArray[np.float32]":
        raise UnusableBundle(
            f"{self._program.title} gives new tokens, and no logits of a text's own",
            hint="`edgeforge validate` reads the weights of such a bundle itself",
        )


class LlmGeneration:
    """A `generate.Generation` of a program. It begins when it is first asked; an older one that goes on is told so."""

    def __init__(
        self, engine: LlmEngine, prompt: Sequence[int], options: GenerationOptions, cancel: threading.Event
    ) -> None:
        self.reused_tokens = 0
        self._engine = engine
        self._eos = options.eos_token_ids
        self._cancel = cancel
        self._given_up = False
        self._deadline = None if options.timeout_s is None else time.monotonic() + options.timeout_s
        self._steps = engine.steps(prompt, options)
        self._began = False
        self._unread: deque[int] = deque()
        self._reason: FinishReason | None = None

    def poll(self) -> Token | FinishReason | None:
        with self._engine.turn:
            told = self._told()
            if isinstance(told, str):
                self._steps.close()
            return told

    def cancel(self) -> None:
        self._given_up = True
        if self._engine.turn.acquire(blocking=False):  # else whoever computes is about to look
            try:
                self._steps.close()
            finally:
                self._engine.turn.release()

    def _told(self) -> Token | FinishReason | None:
        if self._given_up or self._cancel.is_set():
            return "cancelled"
        if self._deadline is not None and time.monotonic() > self._deadline:
            return "timeout"
        if self._unread:
            token = self._unread.popleft()
            return "stop" if token in self._eos else Token(id=token)
        if self._reason is not None:
            return self._reason
        self._take_turn()
        step = next(self._steps)
        self.reused_tokens = step.reused_tokens
        self._unread.extend(step.token_ids)
        self._reason = step.reason
        return None

    def _take_turn(self) -> None:
        if not self._began:
            if self._engine.current is not None:
                self._engine.current._steps.close()  # one that was left in the middle; a finished one does not mind
            self._engine.current, self._began = self, True
        elif self._engine.current is not self:
            raise UnusableBundle(
                "another generation was started on this model before this one ended",
                hint="finish or close one before the next, or load the model twice",
            )


def open_program(program: Program, version: str, bundle: Path, manifest: Manifest) -> LlmProgram:
    """The adapter for what `choice.choose` chose. Imports none of them yet."""
    record = manifest.engine
    assert record is not None, "a bundle with a graph"
    if program == "vllm":
        from .vllm_program import Vllm

        return Vllm(bundle / "model", record, manifest.model.context_length)
    from .tensorrt_llm_program import TensorRtLlm

    engine = next((path for path in manifest.files if path.endswith("/rank0.engine")), None)
    if program == "tensorrt" and engine is None:
        raise UnusableBundle("this bundle says that its engine is built, and has no rank0.engine")
    folder = bundle / engine.rpartition("/")[0] if program == "tensorrt" and engine else bundle / "model"
    return TensorRtLlm(folder, record, manifest.model.context_length, version=version)


def import_program(name: str, title: str) -> ModuleType:
    """The installed package, or MissingRequirement with the reason that it cannot be imported."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise MissingRequirement(
            f"{title} is installed and cannot be imported: {_one_line(error)}",
            hint="check `nvidia-smi`, and that its CUDA libraries are those that it was built for",
        ) from None


def seed_of(sampling: Sampling) -> int:
    """The seed asked for, or one from the system: the programs' own default is the same at every start."""
    return int.from_bytes(os.urandom(4), "little") if sampling.seed is None else sampling.seed


@contextmanager
def _errors_of(title: str, what: str) -> Iterator[None]:
    """What a program raises, as the runtime's errors. It has dozens of classes that share no base but Exception."""
    try:
        yield
    except (BundleError, MemoryError):
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = _one_line(cause)
        if any(words in reason.lower() for words in OUT_OF_MEMORY):
            raise MemoryError(reason) from error
        raise UnusableBundle(f"{title} {what}: {reason}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
