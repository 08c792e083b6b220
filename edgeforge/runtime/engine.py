"""What computes under a `Model`: token ids go in, token ids come out. Here for graphs, in onnxruntime."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .batch import Batch
from .errors import UnusableBundle
from .generate import Generation, GenerationOptions
from .graph import open_graph
from .manifest import ModelRecord
from .request import Request
from .requirements import Device
from .session import Decoder, Scorer, SlotDecoder
from .slots import Caches, Slots, one_context_bytes

# Sequences that are computed together, where the caller does not say. On a GPU their caches take memory at once.
CPU_BATCH = 8


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
    """A bundle's graphs in onnxruntime."""

    def __init__(
        self,
        bundle: Path,
        model: ModelRecord,
        *,
        device: Device,
        threads: int | None,
        batch: int | None,
        prefix_cache_bytes: int | None,
        exact: bool,
    ) -> None:
        self.device: Device = device
        self._bundle = bundle
        self._model = model
        self._threads = threads
        self._slots = batch or (CPU_BATCH if device == "cpu" else 1)
        self._prefix_cache_bytes = one_context_bytes(model) if prefix_cache_bytes is None else prefix_cache_bytes
        self._exact = exact
        self._opening = threading.RLock()
        self._scoring = threading.Lock()
        self._batch: Batch | None = None
        self._decoder: Decoder | None = None
        self._scorer: Scorer | None = None

    def open(self) -> None:
        _ = self.batch

    @property
    def batch(self) -> Batch:
        """What generations share. Opened at its first use."""
        with self._opening:
            if self._batch is None:
                caches = self._new_caches(slots=self._slots)
                self._batch = Batch(caches, self._prefix_cache_bytes, exact=self._exact)
            return self._batch

    @property
    def decoder(self) -> Decoder:
        """Ids in, logits out: the layer under generation. Opened at its first use."""
        with self._opening:
            if self._decoder is None:
                self._decoder = self.new_decoder()
            return self._decoder

    def new_decoder(self) -> Decoder:
        """A decoder with a cache of its own."""
        return SlotDecoder(self._new_caches())

    def check(self, options: GenerationOptions) -> None:
        if options.speculation is None:
            return
        if self._model.backend == "onnx" and self._model.runtime_graph is None:
            raise UnusableBundle(
                "this bundle has no graph that checks several guessed tokens at once, which speculation needs",
                hint="build it again with this version of EdgeForge",
            )
        draft = options.speculation.draft
        if draft is not None and draft.manifest.model.vocab_size != self._model.vocab_size:
            raise UnusableBundle(
                f"the draft model has a vocabulary of {draft.manifest.model.vocab_size} tokens, "
                f"and the model that it drafts for one of {self._model.vocab_size}"
            )

    def generate(self, prompt: Sequence[int], options: GenerationOptions, cancel: threading.Event) -> Generation:
        return Request(
            prompt,
            options,
            cancel,
            advance=lambda request: self.batch.advance(request),
            context_length=self._model.context_length,
            vocab_size=self._model.vocab_size,
        )

    def score(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        with self._scoring:
            if self._scorer is None:
                self._scorer = Scorer(self._new_caches(scores=True))
            return self._scorer.score(ids, first)

    def _new_caches(self, *, slots: int = 1, scores: bool = False) -> Caches:
        model = self._model
        path = model.runtime_graph or (model.scoring_graph if scores else model.graph)
        if path is None:
            raise UnusableBundle(f"a bundle of backend {model.backend} has no graph to run")
        graph = open_graph(self._bundle / path, device=self.device, threads=self._threads)
        if model.backend == "onnx":
            return Slots(graph, model, self.device, slots=slots)
        from .growing import GrowingCache  # which bundles of backend onnx do not carry

        return GrowingCache(graph, model, self.device)
