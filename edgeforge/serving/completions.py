"""/v1/completions: texts go on."""

from collections.abc import Iterator

from edgeforge.runtime.stream import Chunk, Stream
from edgeforge.serving.forms import Head, Served, check_length, ended, open_stream
from edgeforge.serving.problems import Refusal
from edgeforge.serving.requests import CompletionRequest
from edgeforge.serving.responses import Completion, CompletionChoice, CompletionLogprobs, Usage
from edgeforge.serving.tokens import TokenTexts

USUAL_TOKENS = 16  # OpenAI's default for this endpoint


class CompletionForm:
    """A request to /v1/completions; satisfies `forms.Form`."""

    def __init__(self, served: Served, request: CompletionRequest) -> None:
        if request.echo and request.logprobs is not None:
            said = "echo together with logprobs is not supported: this server gives no log-probabilities of prompts"
            raise Refusal(400, said, param="echo", code="unsupported_parameter")
        self.request = request
        self.is_constrained = False
        self.answers_per_prompt = request.n or 1
        self._prompts = _prompts(request)
        self._head = Head.of(served, "cmpl-")
        self._model = served.model
        self._texts = TokenTexts(served.model)
        self._pieces: list[list[CompletionChoice]] = [[] for _ in range(self.answers)]

    @property
    def answers(self) -> int:
        return len(self._prompts) * self.answers_per_prompt

    def open(self, *, timeout_s: float) -> list[Stream]:
        return [stream for prompt in self._prompts for stream in self._continuations(prompt, timeout_s)]

    def take(self, index: int, chunk: Chunk) -> Iterator[Completion]:
        pieces = self._pieces[index]
        begun = sum(len(piece.text) for piece in pieces)
        echoed = self._echo(index) if not pieces else ""
        piece = CompletionChoice(
            index=index,
            text=echoed + chunk.text,
            logprobs=self._logprobs(chunk, offset=begun),
            finish_reason=ended(chunk),
        )
        pieces.append(piece)
        yield self._completion([piece])

    def whole(self, usage: Usage) -> Completion:
        return self._completion([_joined(pieces) for pieces in self._pieces], usage)

    def closing(self, usage: Usage) -> Completion:
        return self._completion([], usage)

    def _continuations(self, prompt: str | list[int], timeout_s: float) -> Iterator[Stream]:
        ids = self._model.encode(prompt) if isinstance(prompt, str) else prompt
        check_length(self._model, ids, param="prompt")
        for number in range(self.answers_per_prompt):
            yield open_stream(
                self._model,
                self.request,
                ids,
                number=number,
                max_new_tokens=self.request.max_tokens or USUAL_TOKENS,
                logprobs=self.request.logprobs,
                constraint=None,
                timeout_s=timeout_s,
            )

    def _echo(self, index: int) -> str:
        if not self.request.echo:
            return ""
        prompt = self._prompts[index // self.answers_per_prompt]
        return prompt if isinstance(prompt, str) else self._model.decode(prompt)

    def _logprobs(self, chunk: Chunk, *, offset: int) -> CompletionLogprobs | None:
        if chunk.logprobs is None:
            return None
        tokens = [self._texts.text(each.token_id) for each in chunk.logprobs]
        return CompletionLogprobs(
            tokens=tokens,
            token_logprobs=[each.logprob for each in chunk.logprobs],
            top_logprobs=[{self._texts.text(id): value for id, value in each.alternatives} for each in chunk.logprobs],
            text_offset=[offset + len("".join(tokens[:place])) for place in range(len(tokens))],
        )

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(
            id=self._head.id,
            object="text_completion",
            created=self._head.created,
            model=self._head.model,
            system_fingerprint=self._head.fingerprint,
            choices=choices,
            usage=usage,
        )


def _prompts(request: CompletionRequest) -> list[str | list[int]]:
    """One text, several, one list of ids, or several."""
    if isinstance(request.prompt, str):
        return [request.prompt]
    ids = [each for each in request.prompt if isinstance(each, int)]
    return [ids] if ids else [each for each in request.prompt if not isinstance(each, int)]


def _joined(pieces: list[CompletionChoice]) -> CompletionChoice:
    logprobs = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    return CompletionChoice(
        index=pieces[0].index,
        text="".join(piece.text for piece in pieces),
        logprobs=CompletionLogprobs(
            tokens=[token for each in logprobs for token in each.tokens],
            token_logprobs=[value for each in logprobs for value in each.token_logprobs],
            top_logprobs=[likeliest for each in logprobs for likeliest in each.top_logprobs],
            text_offset=[offset for each in logprobs for offset in each.text_offset],
        )
        if logprobs
        else None,
        finish_reason=pieces[-1].finish_reason,
    )
