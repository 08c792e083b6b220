"""What may be asked, field by field: OpenAI's chat and text completions, and a few extensions.

Fields that OpenAI has and this server does not are here with the only value that changes nothing; `SUPPORTED_ONLY`
says so to whoever sends another. A field that is not here is refused: a typing error must not go unnoticed.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

MOST_CHOICES = 128
MOST_STOPS = 16
MOST_TOP_LOGPROBS = 20
LARGEST_SEED = 2**63 - 1


def _boolean(value: object) -> object:
    """0 equals False, and is none."""
    if not isinstance(value, bool):
        raise ValueError("input should be a boolean")
    return value


Text = Annotated[str, Field(min_length=1)]
Stop = str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Object = dict[str, JsonValue]
Nothing = Annotated[dict[str, float], Field(max_length=0)]
Zero = Annotated[float, Field(ge=0, le=0)]
No = Annotated[Literal[False], BeforeValidator(_boolean)]

SUPPORTED_ONLY = {
    "audio": "this model answers in text only",
    "best_of": "best_of is not supported: ask for n answers and choose",
    "frequency_penalty": "frequency_penalty is not supported: use repetition_penalty",
    "function_call": "function_call is not supported: use tool_choice",
    "functions": "functions is not supported: use tools",
    "logit_bias": "logit_bias is not supported",
    "modalities": "this model answers in text only",
    "presence_penalty": "presence_penalty is not supported: use repetition_penalty",
    "reasoning_effort": "reasoning_effort is not supported: this model answers at once",
    "store": "this server stores nothing",
    "suffix": "suffix is not supported: this model continues texts, it does not fill gaps in them",
    "verbosity": "verbosity is not supported: ask for it in a message",
    "web_search_options": "this server does not search the web",
}


class Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class TextPart(Record):
    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class FunctionCall(Record):
    name: str
    arguments: Annotated[str, Field(description="The text of a JSON object.")]


class AssistantToolCall(Record):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class SystemMessage(Record):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Record):
    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(Record):
    role: Literal["assistant"]
    content: Content | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: list[AssistantToolCall] | None = None
    function_call: None = None
    audio: None = None
    annotations: list[JsonValue] | None = None


class ToolMessage(Record):
    role: Literal["tool"]
    content: Content
    tool_call_id: str


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class FunctionDefinition(Record):
    name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: Annotated[Object | None, Field(description="A JSON Schema.")] = None
    strict: bool | None = None


class ToolDefinition(Record):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Record):
    name: str


class NamedTool(Record):
    type: Literal["function"]
    function: FunctionName


class TextFormat(Record):
    type: Literal["text"]


class JsonObjectFormat(Record):
    type: Literal["json_object"]


class NamedSchema(Record):
    name: str = "answer"
    description: str | None = None
    schema_: Annotated[Object, Field(alias="schema", description="A JSON Schema.")]
    strict: bool | None = None


class JsonSchemaFormat(Record):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StreamOptions(Record):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class AnswerRequest(Record):
    """What both endpoints take."""

    model: Annotated[str | None, Field(description="One of /v1/models; the only one where it is left out.")] = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, description="An extension.")] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, description="An extension.")] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10, description="An extension.")] | None = None
    seed: Annotated[int, Field(ge=-LARGEST_SEED, le=LARGEST_SEED)] | None = None
    stop: Stop = None
    user: str | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Nothing | None = None


class ChatRequest(AnswerRequest):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prediction: Annotated[Object | None, Field(description="Accepted, and not used.")] = None
    store: No | None = None
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    functions: None = None
    function_call: None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None


class CompletionRequest(AnswerRequest):
    prompt: Text | Annotated[list[Text], Field(min_length=1)] | Ids | Annotated[list[Ids], Field(min_length=1)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    suffix: Literal[""] | None = None
