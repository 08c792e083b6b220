"""What computes under a `Model`: token ids go in, token ids come out. Here for graphs, in onnxruntime."""

import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import UnusableBundle
from .generate import FinishReason, GenerationOptions, generate
from .graph import Graph, open_graph
from .growing import GrowingCacheDecoder
from .manifest import ModelRecord
from .requirements import Device
from .session import Decoder, Scorer, SharedCacheDecoder, shared_prefix


class Engine(Protocol):
    """One generation at a time; the model is read by `open`, or by the first thing that needs it."""

    @property
    def device(self) -> Device: ...
    @property
    def reused_tokens(self) -> int:
        """How many tokens of the prompt the cache held, of the generation that began last."""
        ...

    def open(self) -> None:
        """Read the weights, if that was not done yet."""
        ...

    def check(self, options: GenerationOptions) -> None:
        """UnusableBundle for an option that this engine would silently ignore."""
        ...

    def generate(
        self, prompt: Sequence[int], options: GenerationOptions, cancel: threading.Event | None
    ) -> Generator[int, None, FinishReason]:
        """New ids, as `generate.generate` yields them."""
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
        self.reused_tokens = 0
        self._bundle = bundle
        self._model = model
        self._threads = threads
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
        """Every option is this package's own."""

    def generate(
        self, prompt: Sequence[int], options: GenerationOptions, cancel: threading.Event | None
    ) -> Generator[int, None, FinishReason]:
        decoder = self.decoder
        self.reused_tokens = shared_prefix(decoder.cached_ids, prompt)
        return generate(decoder, prompt, options, vocab_size=self._model.vocab_size, cancel=cancel)

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
