"""`/v1/chat/completions`: chats, answered with text or with calls of tools."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, cast

from pydantic import BaseModel, Field, ValidationInfo, model_validator

from run_gpt.api import answers as native
from run_gpt.api.answers import Answer, ChatEvent, FinishReason, TokenLogprob, ToolCallDelta, Usage, absent
from run_gpt.api.chat import Messages, TemplateValues, Tool, ToolCall, Tools, check_tools
from run_gpt.api.field_tables import CHAT
from run_gpt.api.fields import Intake
from run_gpt.api.openai.base import (
    DEFAULT_MAX_TOKENS,
    MAX_TOKENS,
    Length,
    Metadata,
    OpenAIAnswer,
    SamplingRequest,
    UsageSum,
)
from run_gpt.api.openai.tool_choice import AllowedTools, ChatToolChoice, Choice, allowed, leave_out_tools
from run_gpt.api.schema import (
    CHAT_TEMPLATE,
    CONTINUE,
    GENERATION_PROMPT,
    MAX_REASONING_TOKENS,
    TEMPLATE_VALUES,
    ChatRequest,
    ChatTemplate,
)
from run_gpt.api.sse import TEXT, PlainEvent
from run_gpt.api.timings import Timings
from run_gpt.api.translated import EventWriter
from run_gpt.api.values import INT32_MAX
from run_gpt.errors import InvalidRequest

LONGER = "OpenAI's default: what the context leaves."


SAME = (
    *("parallel_tool_calls", "chat_template", "chat_template_kwargs", "add_generation_prompt"),
    *("continue_final_message", "max_reasoning_tokens"),
)
"""Fields that are the same in the native request."""


class ChatCompletionRequest(SamplingRequest):
    """Answer the last message of a chat."""

    FIELDS: ClassVar = CHAT
    DIFFERS: ClassVar = {
        **SamplingRequest.DIFFERS,
        "max_completion_tokens": LONGER,
        "max_tokens": LONGER,
        "messages": "OpenAI's: images, audio and files, too.",
        "response_format": "OpenAI's enforces a schema with `strict` only.",
        "metadata": "OpenAI's is stored.",
        "tool_choice": "OpenAI's: custom tools, too.",
        "tools": "OpenAI's: custom tools, too; here they are left out, as hosted ones are.",
    }

    messages: Messages = Field(
        description="The chat so far. Roles: system, developer (as system), user, assistant, tool; contents: text."
    )
    max_completion_tokens: Length | None = Field(None, description=MAX_TOKENS)
    max_tokens: Length | None = Field(None, description="The same, by its older name.")
    logprobs: bool | None = Field(None, description="Log-probabilities of the answer's tokens.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="With so many alternatives each.")
    tools: Tools | None = Field(None, description="Functions that the model may call.")
    tool_choice: ChatToolChoice | None = Field(
        None,
        description="`auto`, `none`, `required`, one function, or `allowed_tools`. Required calls are enforced.",
    )
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call; default true.")
    metadata: Metadata | None = Field(None, description="Given back in a whole answer.")
    chat_template: ChatTemplate | None = Field(None, description=f"Beyond OpenAI's: {CHAT_TEMPLATE}")
    chat_template_kwargs: TemplateValues | None = Field(None, description=f"Beyond OpenAI's: {TEMPLATE_VALUES}")
    add_generation_prompt: bool | None = Field(None, description=f"Beyond OpenAI's: {GENERATION_PROMPT}")
    continue_final_message: bool | None = Field(None, description=f"Beyond OpenAI's: {CONTINUE}")
    max_reasoning_tokens: int | None = Field(
        None, ge=0, le=INT32_MAX, description=f"Beyond OpenAI's: {MAX_REASONING_TOKENS}"
    )
    echo: bool | None = Field(
        None, description="Beyond OpenAI's: begin the answer with the last message, if it is an assistant's."
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_tools(cls, data: Any, info: ValidationInfo) -> Any:
        return leave_out_tools(data, info.context)

    @model_validator(mode="after")
    def _possible_chat(self, info: ValidationInfo) -> "ChatCompletionRequest":
        check_tools(*self._calls())
        if self.metadata and self.stream and isinstance(info.context, Intake):
            info.context.ignore("metadata")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs: this goes with logprobs only", param="top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            message = f"max_tokens = {self.max_tokens} and max_completion_tokens = {self.max_completion_tokens}"
            raise InvalidRequest(f"{message} mean the same: give one of them", param="max_tokens")
        return self

    def make_natives(self) -> Sequence[ChatRequest]:
        """See TranslatedRequest."""
        tools, choice = self._calls()
        fields = {
            **self.sampling(),
            "messages": self.messages,
            "max_new_tokens": self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS,
            "logprobs": (self.top_logprobs or 0) if self.logprobs else None,
            "tools": tools,
            "tool_choice": choice,
            **{name: getattr(self, name) for name in SAME},
        }
        return [ChatRequest.parse(fields, stream=bool(self.stream))]

    def _calls(self) -> tuple[list[Tool] | None, Choice]:
        """Return the tools that the model may call, and the native choice among them."""
        if not isinstance(self.tool_choice, AllowedTools):
            return self.tools, self.tool_choice
        named = self.tool_choice.allowed_tools
        return allowed(self.tools, named.mode, [tool.function.name for tool in named.tools])

    @property
    def echoed(self) -> str:
        """Text before each answer."""
        last = self.messages[-1]
        return last.content or "" if self.echo and last.role == "assistant" else ""

    def join(self, answers: Sequence[Answer]) -> Answer:
        """See TranslatedRequest."""
        whole = cast("native.ChatAnswer", answers[0])
        choices = [
            AnswerChoice(
                index=choice.index,
                message=_message(choice.message, self.echoed),
                logprobs=_logprobs(choice.logprobs),
                finish_reason=choice.finish_reason,
            )
            for choice in whole.choices
        ]
        usage = UsageSum.of(answers)
        about = _about(whole, "chat.completion")
        given: dict[str, Any] = {"metadata": self.metadata} if self.metadata else {}
        return ChatCompletion(**about, choices=choices, usage=usage.total(), **usage.timings(), **given)

    def writer(self) -> EventWriter:
        """See TranslatedRequest."""
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
    reasoning_content: str | None = absent()
    reasoning: str | None = absent()
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
    metadata: dict[str, str] | None = absent()
    timings: Timings | None = absent()


class ChoiceDelta(BaseModel):
    """New part of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
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
        self._always_usage = request.always_has_usage
        self._begun: set[int] = set()
        self._plain: dict[tuple[int, bool], PlainEvent] = {}
        self._last: ChatEvent | None = None

    def events(self, which: int, event: Answer) -> Iterator[Answer]:
        """See EventWriter."""
        self._last = chunk = cast("ChatEvent", event)
        self._usage.add(which, event)
        for choice in chunk.choices:
            if choice.index not in self._begun:
                self._begun.add(choice.index)
                text_first = choice.delta.content or not choice.delta.tool_calls
                before = self._request.echoed or ("" if text_first else None)
                yield self._chunk(choice.index, ChoiceDelta(role="assistant", content=before))
            if thought := choice.delta.reasoning_content:
                yield self._chunk(choice.index, ChoiceDelta(reasoning_content=thought, reasoning=thought))
            logprobs = _logprobs(choice.logprobs)
            if choice.delta.content or logprobs:
                delta = ChoiceDelta(content=choice.delta.content) if choice.delta.content else ChoiceDelta()
                yield self._chunk(choice.index, delta, logprobs)
            if choice.delta.tool_calls:
                yield self._chunk(choice.index, ChoiceDelta(tool_calls=choice.delta.tool_calls))
            if choice.finish_reason is not None:
                yield self._chunk(choice.index, ChoiceDelta(), finish_reason=choice.finish_reason)

    def plain(self, which: int, index: int, text: str, *, thought: bool) -> bytes | None:
        """See EventWriter."""
        if index not in self._begun or self._always_usage:
            return None
        if (written := self._plain.get((index, thought))) is None:
            delta = ChoiceDelta(reasoning_content=TEXT, reasoning=TEXT) if thought else ChoiceDelta(content=TEXT)
            written = self._plain[index, thought] = PlainEvent(self._chunk(index, delta))
        return written.write(text)

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
            event.usage = self._usage.total() if usage or self._always_usage else None
        return event


def _about(answer: Answer, kind: str) -> dict[str, Any]:
    return {"id": answer.id, "object": kind, "created": answer.created, "model": answer.model}


def _message(message: native.ChatMessage, before: str) -> ChatCompletionMessage:
    content = before + (message.content or "") if before else message.content
    thought = message.model_dump(include={"reasoning_content", "reasoning"}, exclude_none=True)
    return ChatCompletionMessage(
        role="assistant", content=content, refusal=None, tool_calls=message.tool_calls, **thought
    )


def _logprobs(logprobs: native.Logprobs | None) -> ChoiceLogprobs | None:
    return None if logprobs is None else ChoiceLogprobs(content=logprobs.content, refusal=None)
