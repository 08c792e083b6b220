"""/v1/chat/completions: a conversation is answered, in a form or with tools where that is asked for."""

import secrets
from collections.abc import Iterator, Mapping, Sequence

from edgeforge.runtime import guidance
from edgeforge.runtime.ending import EndingGuide
from edgeforge.runtime.errors import BundleError
from edgeforge.runtime.guidance import Guide
from edgeforge.runtime.stream import Chunk, Stream
from edgeforge.serving.forms import Head, Served, check_length, ended, open_stream
from edgeforge.serving.problems import Refusal, unusable
from edgeforge.serving.requests import (
    AssistantMessage,
    ChatMessage,
    ChatRequest,
    Content,
    JsonObjectFormat,
    JsonSchemaFormat,
    ToolMessage,
)
from edgeforge.serving.responses import (
    AnsweredFunction,
    AnsweredToolCall,
    AnswerMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprob,
    ChatLogprobs,
    StreamedToolCall,
    TopLogprob,
    Usage,
)
from edgeforge.serving.tokens import TokenTexts
from edgeforge.serving.tool_prompts import prompt_ids
from edgeforge.serving.tools import CallReader, ToolCall, ToolUse, call_guide, read_tool_use


class ChatForm:
    """A request to /v1/chat/completions; satisfies `forms.Form`."""

    def __init__(self, served: Served, request: ChatRequest) -> None:
        _check(request)
        self.request = request
        self.answers = self.answers_per_prompt = request.n or 1
        self._tool_use = _tool_use(request)
        self.is_constrained = self._tool_use.must_call or _asks_for_json(request)
        self._head = Head.of(served, "chatcmpl-")
        self._model = served.model
        self._texts = TokenTexts(served.model)
        self._calls = [CallReader(self._tool_use) for _ in range(self.answers)]
        self._pieces: list[list[ChatChunkChoice]] = [[] for _ in range(self.answers)]

    def open(self, *, timeout_s: float) -> list[Stream]:
        ids = prompt_ids(self._model, [_message(each) for each in self.request.messages], self._tool_use.tools)
        check_length(self._model, ids, param="messages")
        most = self.request.max_completion_tokens or self.request.max_tokens
        guides = self._guides(min(most or self._model.context_length, self._model.context_length - len(ids)))
        return [
            open_stream(
                self._model,
                self.request,
                ids,
                number=number,
                max_new_tokens=most,
                logprobs=(self.request.top_logprobs or 0) if self.request.logprobs else None,
                constraint=guides[number],
                timeout_s=timeout_s,
            )
            for number in range(self.answers)
        ]

    def take(self, index: int, chunk: Chunk) -> Iterator[ChatCompletionChunk]:
        for piece in self._new_pieces(index, chunk):
            self._pieces[index].append(piece)
            yield self._chunk([piece])

    def whole(self, usage: Usage) -> ChatCompletion:
        return ChatCompletion(
            id=self._head.id,
            object="chat.completion",
            created=self._head.created,
            model=self._head.model,
            system_fingerprint=self._head.fingerprint,
            choices=[_joined(pieces) for pieces in self._pieces],
            usage=usage,
        )

    def closing(self, usage: Usage) -> ChatCompletionChunk:
        return self._chunk([], usage)

    def _guides(self, most_tokens: int) -> Sequence[EndingGuide | None]:
        """One for each answer; JSON that comes near its limit of tokens is brought to an end."""
        guide = self._guide()
        if guide is None:
            return [None] * self.answers
        first = EndingGuide(guide, most_tokens)
        return [first, *(first.clone() for _ in range(self.answers - 1))]

    def _guide(self) -> Guide | None:
        match self.request.response_format:
            case JsonObjectFormat():
                return guidance.json_object(self._model)
            case JsonSchemaFormat(json_schema=named):
                try:
                    return guidance.json_schema(self._model, named.schema_)
                except BundleError as error:
                    raise unusable(error, param="response_format.json_schema.schema") from None
        return call_guide(self._model, self._tool_use.tools) if self._tool_use.must_call else None

    def _new_pieces(self, index: int, chunk: Chunk) -> Iterator[ChatChunkChoice]:
        if not self._pieces[index]:
            yield ChatChunkChoice(
                index=index, delta=ChatDelta(role="assistant", content=""), logprobs=None, finish_reason=None
            )
        text = self._calls[index].push(chunk.text)
        calls: Sequence[ToolCall] = ()
        if chunk.finish_reason is not None:
            rest, calls = self._calls[index].finish()
            text += rest
        logprobs = self._logprobs(chunk)
        if text or logprobs is not None:
            yield ChatChunkChoice(index=index, delta=ChatDelta(content=text), logprobs=logprobs, finish_reason=None)
        if self.request.parallel_tool_calls is False:
            calls = calls[:1]
        for place, call in enumerate(calls):
            yield ChatChunkChoice(index=index, delta=_call_delta(place, call), logprobs=None, finish_reason=None)
        if (reason := ended(chunk)) is not None:
            yield ChatChunkChoice(
                index=index,
                delta=ChatDelta(),
                logprobs=None,
                finish_reason="tool_calls" if calls and reason == "stop" else reason,
            )

    def _logprobs(self, chunk: Chunk) -> ChatLogprobs | None:
        if not chunk.logprobs:
            return None
        content = [
            ChatLogprob(
                token=self._texts.text(each.token_id),
                logprob=each.logprob,
                bytes=self._texts.bytes(each.token_id),
                top_logprobs=[self._top(id, value) for id, value in each.alternatives],
            )
            for each in chunk.logprobs
        ]
        return ChatLogprobs(content=content, refusal=None)

    def _top(self, id: int, value: float) -> TopLogprob:
        return TopLogprob(token=self._texts.text(id), logprob=value, bytes=self._texts.bytes(id))

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | None = None) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._head.id,
            object="chat.completion.chunk",
            created=self._head.created,
            model=self._head.model,
            system_fingerprint=self._head.fingerprint,
            choices=choices,
            usage=usage,
        )


def _check(request: ChatRequest) -> None:
    """What each field by itself does not show."""
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise Refusal(400, "give max_completion_tokens or max_tokens, not both", param="max_tokens")
    if request.top_logprobs is not None and not request.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    if _asks_for_json(request) and request.tools and request.tool_choice != "none":
        raise Refusal(
            400, "an answer has a form or calls tools, not both: set tool_choice to none", param="response_format"
        )


def _asks_for_json(request: ChatRequest) -> bool:
    return isinstance(request.response_format, JsonObjectFormat | JsonSchemaFormat)


def _tool_use(request: ChatRequest) -> ToolUse:
    tools = None if request.tools is None else [tool.model_dump(exclude_unset=True) for tool in request.tools]
    choice = request.tool_choice
    try:
        return read_tool_use(tools, choice if choice is None or isinstance(choice, str) else choice.model_dump())
    except BundleError as error:
        raise unusable(error, param="tools" if choice is None else "tool_choice") from None


def _message(message: ChatMessage) -> Mapping[str, object]:
    """As chat templates know it."""
    role = "system" if message.role == "developer" else message.role
    plain: dict[str, object] = {"role": role, "content": _text(message.content)}
    if isinstance(message, ToolMessage):
        plain["tool_call_id"] = message.tool_call_id
    if isinstance(message, AssistantMessage) and message.tool_calls:
        plain["tool_calls"] = [call.model_dump(exclude={"index"}) for call in message.tool_calls]
    return plain


def _text(content: Content | None) -> str:
    if content is None:
        return ""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _call_delta(place: int, call: ToolCall) -> ChatDelta:
    return ChatDelta(
        tool_calls=[
            StreamedToolCall(
                index=place,
                id=f"call_{secrets.token_hex(12)}",
                type="function",
                function=AnsweredFunction(name=call.name, arguments=call.arguments),
            )
        ]
    )


def _joined(pieces: Sequence[ChatChunkChoice]) -> ChatChoice:
    text = "".join(piece.delta.content or "" for piece in pieces)
    calls = [
        AnsweredToolCall(id=call.id, type="function", function=call.function)
        for piece in pieces
        for call in piece.delta.tool_calls
    ]
    logprobs = [each for piece in pieces if piece.logprobs is not None for each in piece.logprobs.content]
    reason = pieces[-1].finish_reason
    assert reason is not None
    message = (
        AnswerMessage(role="assistant", content=text or None, refusal=None, tool_calls=calls)
        if calls
        else AnswerMessage(role="assistant", content=text, refusal=None)
    )
    return ChatChoice(
        index=pieces[0].index,
        message=message,
        logprobs=ChatLogprobs(content=logprobs, refusal=None) if logprobs else None,
        finish_reason=reason,
    )
