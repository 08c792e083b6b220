"""What computes under a `Model`: token ids go in, token ids come out. Here for graphs, in onnxruntime."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import UnusableBundle
from .generate import FinishReason, Generation, GenerationOptions, Token, TokenLogprob
from .graph import Graph, open_graph
from .growing import GrowingCacheDecoder
from .manifest import ModelRecord
from .requirements import Device
from .sampling import Sampler, logprobs
from .session import Decoder, Scorer, SharedCacheDecoder, shared_prefix


class Engine(Protocol):
    """The model is read by `open`, or by the first thing that needs it."""

    @property
    def device(self) -> Device: ...

    def open(self) -> None:
        """Read the weights, if that was not done yet."""
        ...

    def check(self, options: GenerationOptions) -> None:
        """UnusableBundle for an option that this engine would silently ignore."""
        ...

    def generate(self, prompt: Sequence[int], options: GenerationOptions, cancel: threading.Event) -> Generation:
        """A generation that begins when it is first asked for a token; setting `cancel` ends it."""
        ...

    def score(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """float32 [T - first, V]: row t holds the logits for token first + t + 1. UnusableBundle where the engine gives
        none.
        """
        ...


class OnnxEngine:
    """A bundle's graphs in onnxruntime. A prompt that begins like what the cache holds is computed from where it
    differs.
    """

    def __init__(self, bundle: Path, model: ModelRecord, *, device: Device, threads: int | None) -> None:
        self.device: Device = device
        self._bundle = bundle
        self._model = model
        self._threads = threads
        self.lock = threading.RLock()
        self._opening = threading.RLock()
        self._decoder: Decoder | None = None
        self._scorer: Scorer | GrowingCacheDecoder | None = None

    @property
    def decoder(self) -> Decoder:
        """Ids in, logits out: the layer under generation. Opened at its first use."""
        with self._opening:
            if self._decoder is None:
                open_decoder = SharedCacheDecoder if self._model.backend == "onnx" else GrowingCacheDecoder
                self._decoder = open_decoder(self._open_graph(self._model.graph), self._model, self.device)
            return self._decoder

    def open(self) -> None:
        _ = self.decoder

    def check(self, options: GenerationOptions) -> None:
        if options.speculation is not None or options.overflow == "slide":
            raise UnusableBundle("speculation and a sliding context are not there yet")

    def generate(self, prompt: Sequence[int], options: GenerationOptions, cancel: threading.Event) -> Generation:
        return _Plain(self, prompt, options, cancel)

    def score(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        with self._opening:
            if self._scorer is None:
                open_scorer = Scorer if self._model.backend == "onnx" else GrowingCacheDecoder
                self._scorer = open_scorer(self._open_graph(self._model.scoring_graph), self._model, self.device)
            return self._scorer.score(ids, first)

    def _open_graph(self, path: str | None) -> Graph:
        if path is None:
            raise UnusableBundle(f"a bundle of backend {self._model.backend} has no graph to run")
        return open_graph(self._bundle / path, device=self.device, threads=self._threads)


class _Plain:
    def __init__(
        self, engine: OnnxEngine, prompt: Sequence[int], options: GenerationOptions, cancel: threading.Event
    ) -> None:
        self.reused_tokens = 0
        self._engine = engine
        self._prompt = list(prompt)
        self._options = options
        self._cancel = cancel
        self._given_up = False
        self._deadline = None if options.timeout_s is None else time.monotonic() + options.timeout_s
        self._sampler = Sampler(options.sampling, prompt, engine._model.vocab_size)
        self._ids: list[int] = []
        self._limit = options.limit(engine._model.context_length - len(prompt))

    def cancel(self) -> None:
        self._given_up = True

    def poll(self) -> Token | FinishReason | None:
        if self._given_up or self._cancel.is_set():
            return "cancelled"
        if self._deadline is not None and time.monotonic() > self._deadline:
            return "timeout"
        if len(self._ids) >= self._limit:
            return "length"
        with self._engine.lock:
            decoder = self._engine.decoder
            ids = self._prompt + self._ids
            known = shared_prefix(decoder.cached_ids, ids)
            if not self._ids:
                self.reused_tokens = known
            decoder.rewind(known)
            logits = decoder.append(ids[known:])
            constraint = self._options.constraint
            token = self._sampler.choose(logits, None if constraint is None else constraint.mask())
        if token in self._options.eos_token_ids:
            return "stop"
        if constraint is not None:
            constraint.accept(token)
        self._ids.append(token)
        known_logprob = None
        if self._options.logprobs is not None:
            told = logprobs(logits, token, self._options.logprobs)
            known_logprob = TokenLogprob(
                token_id=token,
                logprob=told.chosen.logprob,
                alternatives=tuple((each.token, each.logprob) for each in told.likeliest),
            )
        return Token(id=token, logprob=known_logprob)
