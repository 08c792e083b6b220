"""lm-eval's model class over a bundle: the same requests give what lm-eval's own transformers backend gives.

Tokenization, special tokens, truncation and stop strings follow `lm_eval.models.huggingface.HFLM`. Importing this
module imports lm-eval; `python -m edgeforge.validation.tasks` makes it known there as the model `edgeforge`.

`batch_size` is accepted and ignored: the graphs take one sequence at a time. All requests of a kind are taken together
instead, sorted, and what they share at their beginnings (a few-shot prompt, a question and its choices) is computed
once and kept in the KV cache.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from edgeforge import runtime
from edgeforge.errors import UnusableInput, UsageError
from edgeforge.runtime.chat import render
from edgeforge.runtime.errors import UnusableBundle
from edgeforge.runtime.model import Model
from edgeforge.validation.responses import Answer, Responses
from edgeforge.validation.tasks.likelihood import Continuation, Likelihood, continuation, likelihoods

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

MAX_GEN_TOKS = 256  # HFLM's, where a task does not say
Tokens = list[int]
Pair = tuple[float, bool]


def _nothing() -> None:
    """Progress that nobody watches."""


class BundleLM(TemplateLM):  # type: ignore[misc]  # lm-eval is untyped
    """`--model_args bundle=DIR[,device=cpu][,threads=N][,max_length=N][,max_gen_toks=N]`.

    Within EdgeForge it is made with `of`, which takes an open model and a journal of answers.
    """

    def __init__(
        self,
        bundle: str | None = None,
        *,
        device: str | None = None,
        threads: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = MAX_GEN_TOKS,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
    ) -> None:
        if bundle is None:
            raise UsageError("no bundle is named", hint="--model_args bundle=DIR")
        self._start(runtime.load(Path(bundle), device=_device(device), threads=threads), max_length, max_gen_toks)

    @classmethod
    def of(
        cls, model: Model, *, responses: Responses | None = None, answered: Callable[[], None] = _nothing
    ) -> "BundleLM":
        """Over an open model. Answers that `responses` knows are not computed; `answered` is called at each answer."""
        self = cls.__new__(cls)
        self._start(model, None, MAX_GEN_TOKS)
        self._responses = responses
        self._answered = answered
        return self

    def _start(self, model: Model, max_length: int | None, max_gen_toks: int) -> None:
        super().__init__()
        self.model = model
        self.max_length = min(max_length or model.context_length, model.context_length)
        self.max_gen_toks = max_gen_toks
        self.computed = 0  # requests that no journal knew
        self._responses: Responses | None = None
        self._answered: Callable[[], None] = _nothing
        record = model.manifest.model
        self._bos, self._eos = self._id(record.bos_token), self._id(record.eos_token)
        self._eos_text = record.eos_token
        prefix = self._eos if self._bos is None else self._bos
        if prefix is None:
            raise UnusableInput(
                "the bundle's tokenizer has neither a first nor a last token of a text", hint="lm-eval needs one"
            )
        self._prefix: int = prefix
        self._prefix_text = self.tok_decode([prefix], skip_special_tokens=False)

    def _id(self, token: str | None) -> int | None:
        if token is None:
            return None
        found: int | None = self.model.tokenizer.token_to_id(token)
        return found

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text; where the tokenizer has none, the one that begins it."""
        return self._prefix if self._eos is None else self._eos

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: BOS, else EOS."""
        return self._prefix

    @property
    def tokenizer_name(self) -> str:
        """Names tokenizer and chat template in lm-eval's cache of requests."""
        template = self.model.chat_template or ""
        text = self.model.tokenizer.to_str() + template
        return "edgeforge-" + hashlib.sha256(text.encode()).hexdigest()[:16]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The bundle's one template; None where none is to be applied."""
        return self.model.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text. Without a generation prompt the last message is left open, to be continued.

        A template that refuses the system's message gets the others, as in HFLM.
        """
        template = self.model.chat_template
        if template is None:
            raise UnusableBundle("this model has no chat template", hint="leave out --apply-chat-template")
        record = self.model.manifest.model
        others = [message for message in chat_history if message["role"] != "system"]
        for messages in (chat_history, others):
            try:
                text = render(
                    template,
                    messages,
                    bos_token=record.bos_token,
                    eos_token=record.eos_token,
                    add_generation_prompt=add_generation_prompt,
                )
            except UnusableBundle:
                if len(others) == len(messages):
                    raise
                continue
            break
        if add_generation_prompt:
            return text
        end = messages[-1]["content"]
        end = end if end in text else end.strip()
        return text[: text.rindex(end) + len(end)]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> Tokens:
        """Ids, with what the tokenizer puts in front unless the text begins with it already."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self._prefix_text)
        return self.model.encode(string, add_special_tokens=add_special_tokens)

    def tok_decode(self, tokens: Iterable[int], skip_special_tokens: bool = True) -> str:
        return str(self.model.tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))

    def loglikelihood(self, requests: "Sequence[Instance]", disable_tqdm: bool = True) -> list[Pair]:
        """Each continuation's log-probability in nats, and whether greedy generation would give it."""
        pairs: list[Pair] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return pairs

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], Tokens, Tokens]], disable_tqdm: bool = False
    ) -> list[Pair]:
        arguments: list[Sequence[object]] = [pair for pair, _, _ in requests]
        asked = [continuation(context, end, max_length=self.max_length) for _, context, end in requests]
        return [_pair(answer) for answer in self._likelihoods("loglikelihood", arguments, [[one] for one in asked])]

    def loglikelihood_rolling(self, requests: "Sequence[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Whole texts, in windows as long as the context, each token once."""
        windows = [self._windows(instance.args[0]) for instance in requests]
        arguments: list[Sequence[object]] = [instance.args for instance in requests]
        answers = [_pair(answer)[0] for answer in self._likelihoods("loglikelihood_rolling", arguments, windows)]
        for instance, value in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", instance.args, value)
        return answers

    def _windows(self, text: str) -> list[Continuation]:
        pairs = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        disjoint = map(make_disjoint_window, pairs)
        return [continuation(context, end, max_length=self.max_length) for context, end in disjoint]

    def _likelihoods(
        self, kind: str, arguments: Sequence[Sequence[object]], parts: Sequence[Sequence[Continuation]]
    ) -> list[Answer]:
        """The sum over each request's parts; a request is answered when its last part is."""
        settings = [self.max_length]
        answers = [self._known(kind, [*settings, *each]) for each in arguments]
        todo = [number for number, answer in enumerate(answers) if answer is None]
        owners = [number for number in todo for _ in parts[number]]
        found: dict[int, list[Likelihood]] = {number: [] for number in todo}

        def answered(place: int, likelihood: Likelihood) -> None:
            number = owners[place]
            found[number].append(likelihood)
            if len(found[number]) == len(parts[number]):
                total = sum(each.log_probability for each in found[number])
                answers[number] = [total, all(each.is_greedy for each in found[number])]
                self._keep(kind, [*settings, *arguments[number]], answers[number])
                if kind == "loglikelihood":
                    self.cache_hook.add_partial(kind, arguments[number], _pair(answers[number]))

        likelihoods(self.model, [part for number in todo for part in parts[number]], answered)
        return [[0.0, True] if answer is None else answer for answer in answers]  # an empty text has no parts

    def generate_until(self, requests: "Sequence[Instance]", disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string, greedy unless the task samples."""
        prompts = [self._prompt(*instance.args) for instance in requests]
        answers: dict[int, str] = {}
        for number in sorted(range(len(requests)), key=lambda place: prompts[place]):
            context, options = requests[number].args
            kept = [self.max_length, self.max_gen_toks, context, options]
            sampled = bool(normalize_gen_kwargs(options, self.max_gen_toks).get("do_sample"))
            known = None if sampled else self._known("generate_until", kept)
            if known is None:
                known = self._generate(prompts[number], options)
                self._keep("generate_until", kept, known, store=not sampled)
                self.cache_hook.add_partial("generate_until", (context, options), known)
            answers[number] = str(known)
        return [answers[number] for number in range(len(requests))]

    def _prompt(self, context: str, options: dict[str, Any]) -> Tokens:
        """The context's end that leaves room for the answer."""
        new_tokens = normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
        room = self.max_length - new_tokens
        if room < 1:
            raise UnusableInput(
                f"the task asks for {new_tokens} new tokens, and the bundle's context is {self.max_length}",
                hint="build the bundle with a longer --context",
            )
        bos = self.model.manifest.model.bos_token
        begun = bos is not None and context.startswith(bos)
        return self.model.encode(context, add_special_tokens=not begun)[-room:]

    def _generate(self, prompt: Tokens, options: dict[str, Any]) -> str:
        settings = normalize_gen_kwargs(options, self.max_gen_toks)
        until = handle_stop_sequences(list(settings["until"]), eos=self._eos_text)
        sampled = bool(settings.get("do_sample"))
        chunks = self.model.generate(
            prompt,
            max_new_tokens=settings["max_gen_toks"],
            temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
            top_k=settings.get("top_k"),
            top_p=settings.get("top_p"),
            stop=until,
        )
        # A special token has no text in the chunks, and may be a stop string all the same.
        ends = {self._id(text) for text in until} - {None}
        tokens: Tokens = []
        for chunk in chunks:
            tokens += chunk.token_ids
            if not ends.isdisjoint(chunk.token_ids):
                tokens = tokens[: next(place for place, token in enumerate(tokens) if token in ends)]
                break
        return str(postprocess_generated_text(self.tok_decode(tokens), until, None))

    def _known(self, kind: str, arguments: Sequence[object]) -> Answer | None:
        known = None if self._responses is None else self._responses.get(kind, arguments)
        if known is not None:
            self._answered()
        return known

    def _keep(self, kind: str, arguments: Sequence[object], answer: Answer | None, *, store: bool = True) -> None:
        self.computed += 1
        if store and self._responses is not None and answer is not None:
            self._responses.add(kind, arguments, answer)
        self._answered()


def _device(name: str | None) -> Literal["cpu", "cuda"] | None:
    """The runtime's name for one of lm-eval's devices; None: what the bundle was built for.

    lm-eval's command line says `cuda:0` where its user says nothing, so that cannot mean more than a bundle's own.
    """
    if name is None or name == "cuda:0":
        return None
    if name != "cpu" and not name.startswith("cuda"):
        raise UsageError(f"there is no device {name} for a bundle", hint="device=cpu or device=cuda")
    return "cpu" if name == "cpu" else "cuda"


def _pair(answer: Answer | None) -> Pair:
    if not isinstance(answer, list):
        raise UnusableInput("an answer in the cache is no log-likelihood", hint="edgeforge cache prune validation")
    return float(answer[0]), bool(answer[1])
