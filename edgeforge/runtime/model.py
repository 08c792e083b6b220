"""A loaded bundle: text in, text out."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .chat import Message, render
from .constraint import Constraint
from .engine import Engine, OnnxEngine
from .errors import UnusableBundle
from .generate import GenerationOptions, Overflow
from .manifest import Manifest
from .parity import open_tokenizer
from .sampling import Sampling
from .session import Decoder
from .speculate import Speculation
from .stream import Stream
from .text import Detokenizer, StopFilter

N = TypeVar("N", int, float)


class Model:
    """A bundle that answers. Made by `runtime.load`; the weights are read when first needed (`warm_up` reads them now).

    Any number of threads and tasks may generate at once.
    """

    def __init__(self, bundle: Path, manifest: Manifest, engine: Engine) -> None:
        self.bundle = bundle
        self.manifest = manifest
        self.device = engine.device
        self._engine = engine
        self.tokenizer = open_tokenizer(bundle / manifest.model.tokenizer)
        self.chat_template = _read_template(bundle, manifest.model.chat_template)
        # Ids without text, exactly those that decoding skips.
        self._special = frozenset(
            id for id, token in self.tokenizer.get_added_tokens_decoder().items() if token.special
        )

    @property
    def context_length(self) -> int:
        return self.manifest.model.context_length

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; BOS in front if the tokenizer adds one and `add_special_tokens`."""
        return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def warm_up(self) -> None:
        """Read the weights now rather than at the first token."""
        self._engine.open()

    def chat_ids(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, object]] = ()) -> list[int]:
        """The prompt that the bundle's chat template makes of messages ({"role": ..., "content": ...}) and of tools
        (`chat.render`), up to the answer.
        """
        if self.chat_template is None:
            raise UnusableBundle(
                "this model has no chat template: it continues texts, it was not trained to answer",
                hint="generate from a plain prompt",
            )
        model = self.manifest.model
        text = render(self.chat_template, messages, bos_token=model.bos_token, eos_token=model.eos_token, tools=tools)
        return self.encode(text, add_special_tokens=False)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        cancel: threading.Event | None = None,
        logprobs: int | None = None,
        constraint: Constraint | None = None,
        timeout_s: float | None = None,
        speculate: Speculation | None = None,
        overflow: Overflow = "error",
    ) -> Stream:
        """Answer the last of `messages`; the keywords are those of `generate`."""
        return self.generate(
            self.chat_ids(messages),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
            cancel=cancel,
            logprobs=logprobs,
            constraint=constraint,
            timeout_s=timeout_s,
            speculate=speculate,
            overflow=overflow,
        )

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        cancel: threading.Event | None = None,
        logprobs: int | None = None,
        constraint: Constraint | None = None,
        timeout_s: float | None = None,
        speculate: Speculation | None = None,
        overflow: Overflow = "error",
        ignore_eos: bool = False,
    ) -> Stream:
        """Continue `prompt`, a text or token ids. Checked at once; computed as the chunks are asked for.

        None means what the model's authors recommend in generation_config.json: greedy unless they sample. temperature
        0 is greedy. `max_new_tokens` None: until the text or the context ends. The chunks' text never contains a string
        of `stop`; setting `cancel` (from any thread) ends the answer, as `Stream.cancel` does.

        logprobs     how likely each token was, and this many alternatives to it (0: none of these)
        constraint   which form the answer must have (`guidance`); it serves one answer
        timeout_s    seconds from now after which the answer ends with finish_reason "timeout"
        speculate    guess tokens and check them together: the same answer in less time, if guesses come true
        overflow     where the context is full: "error" refuses a longer prompt and ends the answer (finish_reason
                     "length"); "slide" forgets the middle: the first tokens and the newer half stay, and are computed
                     anew

        UnusableBundle for a prompt longer than the context, a value out of range, or an option that the bundle's engine
        does not have.
        """
        options = GenerationOptions(
            sampling=self._sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed),
            eos_token_ids=() if ignore_eos else self.manifest.model.eos_token_ids,
            max_new_tokens=max_new_tokens,
            logprobs=logprobs,
            constraint=constraint,
            timeout_s=timeout_s,
            speculation=speculate,
            overflow=overflow,
        )
        self._engine.check(options)
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        self._check(ids, slides=overflow == "slide")
        return Stream(
            self._engine.generate(ids, options, cancel or threading.Event()),
            Detokenizer(self.decode, self._special),
            StopFilter(stop),
            prompt_tokens=len(ids),
            logprobs=logprobs is not None,
        )

    def score(self, ids: Sequence[int], *, first: int = 0) -> NDArray[np.float32]:
        """Logits float32 [T - first, V] for T ids: row t is what the model expects after ids[: first + t + 1].

        What precedes `first` is computed only where it differs from the last call's ids. UnusableBundle where the
        bundle's engine gives no logits, or `first` leaves no row.
        """
        if not 0 <= first < max(len(ids), 1):
            raise UnusableBundle(f"there is no row {first} among the logits of {len(ids)} tokens")
        self._check(ids)
        return self._engine.score(list(ids), first)

    def _sampling(
        self,
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
        min_p: float | None,
        repetition_penalty: float | None,
        seed: int | None,
    ) -> Sampling:
        """What the caller asked for, else what the model's authors did, else greedy."""
        theirs = self.manifest.model.generation
        usual = _first(theirs.temperature, 1.0) if theirs.do_sample else 0.0
        return Sampling(
            temperature=_first(temperature, usual),
            top_k=_first(top_k, theirs.top_k, 0),
            top_p=_first(top_p, theirs.top_p, 1.0),
            min_p=_first(min_p, 0.0),
            repetition_penalty=_first(repetition_penalty, theirs.repetition_penalty, 1.0),
            seed=seed,
        )

    def _check(self, ids: Sequence[int], *, slides: bool = False) -> None:
        model = self.manifest.model
        if not ids:
            raise UnusableBundle("the prompt is empty", hint="give the model at least one token to start from")
        if len(ids) > model.context_length and not slides:
            raise UnusableBundle(
                f"the prompt has {len(ids)} tokens, more than the bundle's context of {model.context_length}",
                hint="shorten it, let it slide (overflow), or build the bundle with a longer --context",
            )
        if min(ids) < 0 or max(ids) >= model.vocab_size:
            raise UnusableBundle(f"the prompt has a token id outside the vocabulary of {model.vocab_size}")

    @property
    def decoder(self) -> Decoder:
        """Ids in, logits out: the layer under generation, where the bundle holds a graph. With a cache of its own, for
        one thread.
        """
        return self._graphs().decoder

    def new_decoder(self) -> Decoder:
        """Another `decoder`, that nobody else uses."""
        return self._graphs().new_decoder()

    def _graphs(self) -> OnnxEngine:
        if not isinstance(self._engine, OnnxEngine):
            raise UnusableBundle(f"a bundle of backend {self.manifest.model.backend} has no graph to step through")
        return self._engine


def _first(*values: N | None) -> N:
    return next(value for value in values if value is not None)


def _read_template(bundle: Path, path: str | None) -> str | None:
    return None if path is None else (bundle / path).read_text(encoding="utf-8")
