"""`/v1/chat/completions`: chats, answered with text or with calls of tools."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, cast

from pydantic import BaseModel, Field, model_validator

from run_gpt.api import answers as native
from run_gpt.api.answers import Answer, ChatEvent, FinishReason, TokenLogprob, ToolCallDelta, Usage, absent
from run_gpt.api.chat import Messages, ToolCall, ToolChoice, Tools, check_tools
from run_gpt.api.openai.base import DEFAULT_MAX_TOKENS, MAX_TOKENS, EventWriter, OpenAIAnswer, SamplingRequest, UsageSum
from run_gpt.api.schema import CHAT_TEMPLATE, ChatRequest, ChatTemplate
from run_gpt.api.sse import TEXT, PlainEvent
from run_gpt.api.timings import Timings
from run_gpt.api.values import INT32_MAX
from run_gpt.errors import InvalidRequest

TEXT_ONLY = "models here read and write text only"
NOT_STORED = "nothing is stored here"
LONGER = "OpenAI's default: what the context leaves."
HOSTED = "there are no hosted tools here"


class ChatCompletionRequest(SamplingRequest):
    """Answer the last message of a chat."""

    REFUSED: ClassVar = {
        "audio": TEXT_ONLY,
        "function_call": "this is `tool_choice` now",
        "functions": "this is `tools` now",
        "metadata": NOT_STORED,
        "modalities": TEXT_ONLY,
        "moderation": "nothing is moderated here",
        "prediction": "speculation here drafts from the prompt",
        "prompt_cache_key": "prefixes are reused within a key of this server; `cache_salt` divides them further",
        "prompt_cache_options": "prefixes are reused while there is room",
        "prompt_cache_retention": "prefixes are reused while there is room",
        "reasoning_effort": "models here do not reason apart from their answer",
        "safety_identifier": "this is `user` here",
        "service_tier": "all requests are served alike",
        "store": NOT_STORED,
        "verbosity": "no model here has it: say it in the messages",
        "web_search_options": HOSTED,
    }

    GRANTED: ClassVar = {
        "modalities": (["text"],),
        "reasoning_effort": ("none",),
        "service_tier": ("auto", "default"),
        "store": (False,),
    }
    DIFFERS: ClassVar = {
        **SamplingRequest.DIFFERS,
        "max_completion_tokens": LONGER,
        "max_tokens": LONGER,
        "messages": "OpenAI's: images, audio and files, too.",
        "response_format": "OpenAI's enforces a schema with `strict` only.",
        "tool_choice": "OpenAI's: `allowed_tools` and custom tools, too.",
        "tools": "OpenAI's: custom tools, too.",
    }

    messages: Messages = Field(
        description="The chat so far. Roles: system, developer (as system), user, assistant, tool; contents: text."
    )
    max_completion_tokens: int | None = Field(None, ge=1, le=INT32_MAX, description=MAX_TOKENS)
    max_tokens: int | None = Field(None, ge=1, le=INT32_MAX, description="The same, by its older name.")
    logprobs: bool | None = Field(None, description="Log-probabilities of the answer's tokens.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="With so many alternatives each.")
    tools: Tools | None = Field(None, description="Functions that the model may call.")
    tool_choice: ToolChoice | None = Field(
        None, description="`auto`, `none`, `required`, or one function; the last two are enforced."
    )
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call; default true.")
    chat_template: ChatTemplate | None = Field(None, description=CHAT_TEMPLATE)

    @model_validator(mode="after")
    def _possible_chat(self) -> "ChatCompletionRequest":
        check_tools(self.tools, self.tool_choice)
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs: this goes with logprobs only", param="top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            message = f"max_tokens = {self.max_tokens} and max_completion_tokens = {self.max_completion_tokens}"
            raise InvalidRequest(f"{message} mean the same: give one of them", param="max_tokens")
        return self

    def make_natives(self) -> Sequence[ChatRequest]:
        """See OpenAIRequest."""
        fields = {
            **self.sampling(),
            "messages": self.messages,
            "max_new_tokens": self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS,
            "logprobs": (self.top_logprobs or 0) if self.logprobs else None,
            "tools": self.tools,
            "tool_choice": self.tool_choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "chat_template": self.chat_template,
        }
        return [ChatRequest.parse(fields, stream=bool(self.stream))]

    def join(self, answers: Sequence[Answer]) -> Answer:
        """See OpenAIRequest."""
        whole = cast("native.ChatAnswer", answers[0])
        choices = [
            AnswerChoice(
                index=choice.index,
                message=_message(choice.message),
                logprobs=_logprobs(choice.logprobs),
                finish_reason=choice.finish_reason,
            )
            for choice in whole.choices
        ]
        usage = UsageSum.of(answers)
        about = _about(whole, "chat.completion")
        return ChatCompletion(**about, choices=choices, usage=usage.total(), **usage.timings())

    def writer(self) -> EventWriter:
        """See OpenAIRequest."""
        return _Writer(self)


class ChoiceLogprobs(BaseModel):
    """Log-probabilities of the tokens of one choice."""

    content: list[TokenLogprob]
    refusal: None


class ChatCompletionMessage(BaseModel):
    """The answer to a chat."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = absent()


class AnswerChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatCompletionMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletion(OpenAIAnswer):
    """The answer to `/v1/chat/completions`."""

    object: Literal["chat.completion"]
    choices: list[AnswerChoice]
    usage: Usage
    timings: Timings | None = absent()


class ChoiceDelta(BaseModel):
    """New part of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(BaseModel):
    """New part of one answer, with its number."""

    index: int
    delta: ChoiceDelta
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(OpenAIAnswer):
    """An event of the stream of `/v1/chat/completions`."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]
    usage: Usage | None = None
    timings: Timings | None = absent()


class _Writer:
    """Writer of the stream: for each choice first the role, then texts and calls, and last the finish reason alone."""

    def __init__(self, request: ChatCompletionRequest):
        self._request = request
        self._usage = UsageSum()
        self._begun: set[int] = set()
        self._plain: dict[int, PlainEvent] = {}
        self._last: ChatEvent | None = None

    def events(self, which: int, event: Answer) -> Iterator[Answer]:
        """See EventWriter."""
        self._last = chunk = cast("ChatEvent", event)
        self._usage.add(which, event)
        for choice in chunk.choices:
            if choice.index not in self._begun:
                self._begun.add(choice.index)
                text_first = choice.delta.content or not choice.delta.tool_calls
                yield self._chunk(choice.index, ChoiceDelta(role="assistant", content="" if text_first else None))
            logprobs = _logprobs(choice.logprobs)
            if choice.delta.content or logprobs:
                delta = ChoiceDelta(content=choice.delta.content) if choice.delta.content else ChoiceDelta()
                yield self._chunk(choice.index, delta, logprobs)
            if choice.delta.tool_calls:
                yield self._chunk(choice.index, ChoiceDelta(tool_calls=choice.delta.tool_calls))
            if choice.finish_reason is not None:
                yield self._chunk(choice.index, ChoiceDelta(), finish_reason=choice.finish_reason)

    def plain(self, which: int, index: int, text: str) -> bytes | None:
        """See EventWriter."""
        if index not in self._begun:
            return None
        if index not in self._plain:
            self._plain[index] = PlainEvent(self._chunk(index, ChoiceDelta(content=TEXT)))
        return self._plain[index].write(text)

    def end(self) -> Iterator[Answer]:
        """See EventWriter."""
        if self._request.has_last_event:
            yield self._event([], self._usage)

    def _chunk(
        self,
        index: int,
        delta: ChoiceDelta,
        logprobs: ChoiceLogprobs | None = None,
        finish_reason: FinishReason | None = None,
    ) -> ChatCompletionChunk:
        return self._event([ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason)])

    def _event(self, choices: list[ChunkChoice], usage: UsageSum | None = None) -> ChatCompletionChunk:
        """Make an event. `usage` is given for the last event only."""
        about = _about(cast("Answer", self._last), "chat.completion.chunk")
        event = ChatCompletionChunk(**about, choices=choices, **(usage.timings() if usage else {}))
        if self._request.includes_usage:
            event.usage = usage.total() if usage else None
        return event


def _about(answer: Answer, kind: str) -> dict[str, Any]:
    return {"id": answer.id, "object": kind, "created": answer.created, "model": answer.model}


def _message(message: native.ChatMessage) -> ChatCompletionMessage:
    return ChatCompletionMessage(role="assistant", content=message.content, refusal=None, tool_calls=message.tool_calls)


def _logprobs(logprobs: native.Logprobs | None) -> ChoiceLogprobs | None:
    return None if logprobs is None else ChoiceLogprobs(content=logprobs.content, refusal=None)
