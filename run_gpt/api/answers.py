"""Answers, as pydantic models: what both doors, the Python model and the client give."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field

from run_gpt.api.chat import ToolCall
from run_gpt.api.values import Bytes


def absent() -> Any:
    """A field that is left out of the wire's JSON when it is None; one without this stays there as null."""
    return Field(None, exclude_if=lambda value: value is None)


FinishReason = Literal["stop", "length", "tool_calls"]


class TopLogprob(BaseModel):
    """A token that could have stood here."""

    token: str
    logprob: float
    bytes: list[int] | None = absent()
    """Its bytes in UTF-8: a token may be a part of a character."""


class TokenLogprob(BaseModel):
    """A token, its log-probability before any penalty or temperature, and the likeliest tokens."""

    token: str
    logprob: float | None
    """None for the first token of a prompt, which nothing comes before."""
    bytes: list[int] | None = absent()
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """The log-probabilities of the tokens of one choice, in OpenAI's chat shape; with `echo`, the prompt's first."""

    content: list[TokenLogprob]


class PromptTokensDetails(BaseModel):
    """What became of the prompt's tokens, in OpenAI's shape."""

    cached_tokens: int = 0
    """Those that an earlier prompt or answer had left in the cache, so that they were not run again."""


class Usage(BaseModel):
    """Tokens counted so far."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    # Other servers leave it out, or say null.
    prompt_tokens_details: Annotated[
        PromptTokensDetails, BeforeValidator(lambda value: {} if value is None else value)
    ] = PromptTokensDetails()


class Choice(BaseModel):
    """One answer to `generate`, or what is new of it."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = absent()


class ChatMessage(BaseModel):
    """The answer to a chat."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    """None for an answer that is nothing but calls."""
    tool_calls: list[ToolCall] | None = absent()


class FunctionDelta(BaseModel):
    """What is new of a call: its name, or a piece of its arguments."""

    name: str | None = absent()
    arguments: str | None = absent()


class ToolCallDelta(BaseModel):
    """What is new of a call: first its id, type and name, then the pieces of its arguments."""

    index: int
    id: str | None = absent()
    type: Literal["function"] | None = absent()
    function: FunctionDelta


class Delta(BaseModel):
    """What is new of the answer to a chat; `role` comes first, alone or with the first text."""

    role: Literal["assistant"] | None = absent()
    content: str | None = absent()
    tool_calls: list[ToolCallDelta] | None = absent()


class ChatChoice(BaseModel):
    """One answer to `chat`."""

    index: int
    message: ChatMessage
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = absent()


class ChatChunkChoice(BaseModel):
    """What is new of one answer to `chat`."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = absent()


class Body(BaseModel):
    """What goes over the wire: an answer, or an event of a stream."""

    def to_json(self) -> str:
        """The wire's JSON."""
        return self.model_dump_json()


class Answer(Body):
    """What every answer of a model has, and every event of its streams."""

    id: str
    created: int
    model: str


class Generation(Answer):
    """An answer that is a text, or what is new of it."""

    usage: Usage

    @property
    def text(self) -> str:
        """The text of the first choice (in a stream: what is new of it)."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.text


class Completion(Generation):
    """The answer to `generate`; as an event of a stream, `choices` holds the new text only."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[Choice]
    prompt: str | None = absent()

    @property
    def text(self) -> str:
        return self.choices[0].text if self.choices else ""


class ChatCompletion(Generation):
    """The answer to `chat`."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]

    @property
    def text(self) -> str:
        return (self.choices[0].message.content or "") if self.choices else ""


class ChatCompletionChunk(Generation):
    """An event of a streamed answer to `chat`."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]

    @property
    def text(self) -> str:
        return (self.choices[0].delta.content or "") if self.choices else ""


class Status(BaseModel):
    """What an executor says of itself on `/status`."""

    state: Literal["ready", "draining", "dead", "unloaded", "loading"]
    model: str
    running: int
    """Sequences that are being decoded."""
    waiting: int
    """Sequences that wait for a place."""
    context_length: int | None = None
    """Tokens of prompt and answer together that the model holds."""
    started: float | None = None
    """When its process began to serve, in seconds since 1970: another number is another process."""
    memory: Bytes | None = None
    """Bytes that the model's weights and its cache take at most, once it is loaded; None: not known."""
    unload_after: float | None = None
    """Seconds without a request after which the model is to be unloaded; None: never."""
    step: str | None = None
    """What it does while it is loading."""
    done: Bytes = 0
    """Bytes of this step that are done."""
    total: Bytes | None = None
    """Bytes of this step; None: not known."""
    why: str | None = None
    """Why it could not be loaded the last time that this was tried."""


class Metrics(BaseModel):
    """What an executor answers on `/metrics`."""

    text: str
    """In Prometheus' text form, version 0.0.4."""


AnyAnswer = TypeVar("AnyAnswer", bound=Answer)
