"""Answers, as pydantic models: both endpoints (gRPC and HTTP), the Python model and the client give them."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field

from run_gpt.api.chat import ToolCall
from run_gpt.api.timings import Timings
from run_gpt.api.values import Bytes


def absent() -> Any:
    """Return a field that the wire's JSON leaves out when it is None; without this, the JSON has a null."""
    return Field(None, exclude_if=lambda value: value is None)


FinishReason = Literal["stop", "length", "tool_calls"]


class TopLogprob(BaseModel):
    """A token that was likely in this place."""

    token: str
    logprob: float
    bytes: list[int] | None = absent()
    """The token's bytes in UTF-8: a token may be a part of a character."""


class TokenLogprob(BaseModel):
    """A token, its log-probability before any penalty or temperature, and the likeliest tokens."""

    token: str
    logprob: float | None
    """None for the first token of a prompt: no token precedes it."""
    bytes: list[int] | None = absent()
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """Log-probabilities of the tokens of one choice, in OpenAI's chat shape; with `echo`, the prompt's come first."""

    content: list[TokenLogprob]


class PromptTokensDetails(BaseModel):
    """Details about the prompt's tokens, in OpenAI's shape."""

    cached_tokens: int = 0
    """Number of tokens found in the KV cache, from an earlier prompt or answer, and so not run again."""


class CompletionTokensDetails(BaseModel):
    """Details about the answer's tokens, in OpenAI's shape."""

    reasoning_tokens: int = 0
    """Number of tokens of the model's thinking, without the marks around it."""


class Usage(BaseModel):
    """Number of tokens so far."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    # Other servers leave this field out, or send null.
    prompt_tokens_details: Annotated[
        PromptTokensDetails, BeforeValidator(lambda value: {} if value is None else value)
    ] = PromptTokensDetails()
    completion_tokens_details: CompletionTokensDetails | None = absent()
    """Set once an answer has ended, for models that think apart from their answers."""


class Choice(BaseModel):
    """One answer to `generate`, or its new part in a stream."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    stop_reason: str | None = absent()
    """Text of `stop` that ended the answer."""
    logprobs: Logprobs | None = absent()


class ChatMessage(BaseModel):
    """The answer to a chat."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    """None for an answer that consists of calls only."""
    reasoning_content: str | None = absent()
    """The model's thinking before the answer, for models that do so between marks."""
    reasoning: str | None = absent()
    """The same, by its other name."""
    tool_calls: list[ToolCall] | None = absent()


class FunctionDelta(BaseModel):
    """New part of a call: its name, or a piece of its arguments."""

    name: str | None = absent()
    arguments: str | None = absent()


class ToolCallDelta(BaseModel):
    """New part of a call: first its id, type and name, then the pieces of its arguments."""

    index: int
    id: str | None = absent()
    type: Literal["function"] | None = absent()
    function: FunctionDelta


class Delta(BaseModel):
    """New part of the answer to a chat; `role` comes first, alone or with the first text."""

    role: Literal["assistant"] | None = absent()
    content: str | None = absent()
    reasoning_content: str | None = absent()
    """New part of the model's thinking."""
    reasoning: str | None = absent()
    """The same, by its other name."""
    tool_calls: list[ToolCallDelta] | None = absent()


class ChatChoice(BaseModel):
    """One answer to `chat`."""

    index: int
    message: ChatMessage
    finish_reason: FinishReason | None = None
    stop_reason: str | None = absent()
    """Text of `stop` that ended the answer."""
    logprobs: Logprobs | None = absent()


class ChatEventChoice(BaseModel):
    """New part of one answer to `chat`."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    stop_reason: str | None = absent()
    """Text of `stop` that ended the answer."""
    logprobs: Logprobs | None = absent()


class Body(BaseModel):
    """Base of all messages to a client: an answer, or an event of a stream."""

    def to_json(self) -> str:
        """Return the wire's JSON."""
        return self.model_dump_json()


class Answer(Body):
    """Fields that every answer of a model has, and every event of its streams."""

    id: str
    created: int
    model: str


class Generation(Answer):
    """An answer that is a text, or its new part in a stream."""

    usage: Usage
    timings: Timings | None = absent()
    """Set in an answer, or in the last event of a stream, if the request asks for `timings`."""

    @property
    def text(self) -> str:
        """Text of the first choice (in an event of a stream: its new text)."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.text


class GenerateAnswer(Generation):
    """The answer to `generate`. In an event of a stream, `choices` holds the new text only."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[Choice]
    prompt: str | None = absent()

    @property
    def text(self) -> str:
        return self.choices[0].text if self.choices else ""


class ChatAnswer(Generation):
    """The answer to `chat`."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]

    @property
    def text(self) -> str:
        return (self.choices[0].message.content or "") if self.choices else ""


class ChatEvent(Generation):
    """An event of a streamed answer to `chat`."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatEventChoice]

    @property
    def text(self) -> str:
        return (self.choices[0].delta.content or "") if self.choices else ""

    @property
    def thought(self) -> str:
        """New thinking of the first choice."""
        return (self.choices[0].delta.reasoning_content or "") if self.choices else ""


# Earlier names, for programs that use them; OpenAI's API has its own answers of these names.
Completion = GenerateAnswer
ChatCompletion = ChatAnswer
ChatCompletionChunk = ChatEvent


class Status(BaseModel):
    """State of an executor, as `/status` gives it."""

    state: Literal["ready", "stuck", "draining", "dead", "unloaded", "loading"]
    """`stuck`: the engine has work and seems not to go on; it may still do so."""
    model: str
    running: int
    """Number of sequences that are being decoded."""
    waiting: int
    """Number of sequences that wait for a slot."""
    context_length: int | None = None
    """Most tokens of prompt and answer together."""
    precision: str | None = None
    """Precision of most of the model's weights, such as `bf16` or `bit4`; None: it is not loaded."""
    sampling: dict[str, Any] | None = None
    """Sampling defaults of requests, by the names of fields; None: the model is not loaded."""
    started: float | None = None
    """Time when the process began to serve, in seconds since 1970. Another number means another process."""
    number: int | None = None
    """Number of this status among those of its process: a higher one is newer, whichever arrives first."""
    memory: Bytes | None = None
    """Most bytes that the model's weights and KV cache take once it is loaded; None: not known."""
    unload_after: float | None = None
    """Seconds without a request after which the model is unloaded; None: never."""
    step: str | None = None
    """Current step of loading."""
    done: Bytes | None = None
    """Bytes of this step that are done."""
    total: Bytes | None = None
    """Bytes of this step in all; None: not known."""
    aliases: list[str] = Field(default_factory=list)
    """Further names that requests may use for the model."""
    adapters: list[str] = Field(default_factory=list)
    """Names of its LoRA adapters; of one that is not loaded, those that it is loaded with."""
    why: str | None = None
    """Reason why the last attempt to load the model failed."""


class Metrics(BaseModel):
    """An executor's answer on `/metrics`."""

    text: str
    """Metrics in Prometheus' text format, version 0.0.4."""


AnyAnswer = TypeVar("AnyAnswer", bound=Answer)
