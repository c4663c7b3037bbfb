"""`/v1/responses`, stateless: each request has its whole conversation, and stands for one native chat request."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from run_gpt.api.answers import Answer, Body, ChatAnswer
from run_gpt.api.chat import (
    MAX_MESSAGES,
    MAX_TOOLS,
    Function,
    JsonSchemaFormat,
    Message,
    NamedTool,
    ResponseFormat,
    Tool,
    ToolMode,
    ToolName,
    check_tools,
)
from run_gpt.api.openai.base import DEFAULT_MAX_TOKENS, LEAST_TOP_P, MAX_TOKENS, EventWriter, OpenAIRequest
from run_gpt.api.openai.chat import HOSTED, LONGER, NOT_STORED
from run_gpt.api.openai.response_events import ResponseWriter, response_of
from run_gpt.api.openai.response_items import Item, items_of
from run_gpt.api.schema import ADAPTER, CACHE_SALT, CacheSalt, ChatRequest
from run_gpt.api.values import INT32_MAX, JsonObject, Name, OnlyFalse, Text
from run_gpt.errors import InvalidRequest

LOGPROBS = "message.output_text.logprobs"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ResponseTool(_Part):
    """A function that the model may call."""

    type: Literal["function"]
    name: ToolName
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None

    def tool(self) -> Tool:
        """Return this function as a tool of a chat."""
        function = Function(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict
        )
        return Tool(type="function", function=function)


class NamedResponseTool(_Part):
    """The one function that the model must call."""

    type: Literal["function"]
    name: ToolName


def _mode_or_named(value: Any) -> str:
    return "(named)" if isinstance(value, dict | NamedResponseTool) else "(mode)"


class TextFormat(_Part):
    """Form of the text; all its fields are on one level."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_by_name=True, serialize_by_alias=True)

    type: Literal["text", "json_object", "json_schema"]
    name: Text | None = None
    description: Text | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None

    def response_format(self) -> ResponseFormat:
        """Return this form as that of a chat's answer. Raises InvalidRequest."""
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise InvalidRequest(f"text.format: the type {self.type!r} and `schema` do not fit", param="text.format")
        schema = None if self.schema_ is None else JsonSchemaFormat(schema=self.schema_, name=self.name)
        return ResponseFormat(type=self.type, json_schema=schema)


class TextOptions(_Part):
    """Options for the text."""

    format: TextFormat | None = None


class ResponseStreamOptions(_Part):
    """Information in a stream beside the text; this server offers none."""

    include_obfuscation: OnlyFalse | None = None


class ResponseRequest(OpenAIRequest):
    """Answer a conversation."""

    REFUSED: ClassVar = {
        "access_programs": "there are none here",
        "background": "every request is answered at once",
        "background_options": "every request is answered at once",
        "context_management": "shorten the input yourself",
        "conversation": NOT_STORED,
        "image": "models here read and write text only",
        "max_tool_calls": HOSTED,
        "moderation": "nothing is moderated here",
        "previous_response_id": f"{NOT_STORED}: send the whole conversation as input",
        "prompt": "there are no prompt templates here",
        "prompt_cache_key": "prefixes are reused within a key of this server; `cache_salt` divides them further",
        "prompt_cache_options": "prefixes are reused while there is room",
        "prompt_cache_retention": "prefixes are reused while there is room",
        "reasoning": "models here do not reason apart from their answer",
        "safety_identifier": "this is `user` here",
        "service_tier": "all requests are served alike",
    }
    GRANTED: ClassVar = {"background": (False,), "service_tier": ("auto", "default")}
    DIFFERS: ClassVar = {
        **OpenAIRequest.DIFFERS,
        "include": "OpenAI's: what hosted tools, images and reasoning leave, too.",
        "input": "OpenAI's: images, files, calls of hosted tools and references to stored items, too.",
        "max_output_tokens": LONGER,
        "metadata": "OpenAI's is stored.",
        "store": "OpenAI's default: true.",
        "stream_options": "OpenAI's default: true.",
        "text": "OpenAI's enforces a schema with `strict` only, and has `verbosity`.",
        "tool_choice": "OpenAI's: `allowed_tools` and hosted tools, too.",
        "tools": "OpenAI's: hosted and custom tools, too.",
        "truncation": "OpenAI's: `auto`, too.",
    }
    NATIVE_NAMES: ClassVar = {
        "messages": "input",
        "max_new_tokens": "max_output_tokens",
        "response_format": "text.format",
    }

    input: Annotated[
        list[Item],
        Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
        BeforeValidator(items_of, json_schema_input_type=Text | list[Item]),
    ] = Field(description="A text, or items: messages (with text), function_call, function_call_output.")
    instructions: Text | None = Field(None, description="A system message before the input.")
    max_output_tokens: int | None = Field(None, ge=1, le=INT32_MAX, description=MAX_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2, description="Default 1; 0 is greedy.")
    top_p: float | None = Field(None, ge=0, le=1, description="Sample from the likeliest tokens of this total mass.")
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = Field(
        None, description="Functions that the model may call; no hosted tools."
    )
    tool_choice: (
        Annotated[
            Annotated[ToolMode, Tag("(mode)")] | Annotated[NamedResponseTool, Tag("(named)")],
            Discriminator(_mode_or_named),
        ]
        | None
    ) = Field(None, description="`auto`, `none`, `required`, or one function; the last two are enforced.")
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call; default true.")
    text: TextOptions | None = Field(None, description="`format`: `text`, `json_object` or `json_schema`. Enforced.")
    include: Annotated[list[Literal["message.output_text.logprobs"]], Field(max_length=16, fail_fast=True)] | None = (
        Field(None, description=f"`{LOGPROBS}` and nothing else.")
    )
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Alternatives to each token of the text.")
    store: OnlyFalse | None = Field(None, description=f"Only false, which is the default here: {NOT_STORED}.")
    truncation: Literal["disabled"] | None = Field(None, description="Only `disabled`: too long an input is a 400.")
    metadata: dict[str, Text] | None = Field(None, description="Given back in the answer.", max_length=16)
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: ResponseStreamOptions | None = Field(None, description="`include_obfuscation`: only false.")
    adapter: Name | None = Field(None, description=f"Beyond OpenAI's: {ADAPTER}")
    cache_salt: CacheSalt | None = Field(None, description=f"Beyond OpenAI's: {CACHE_SALT}")

    @model_validator(mode="after")
    def _possible_tools(self) -> "ResponseRequest":
        check_tools(self._tools(), self._choice())
        return self

    def make_natives(self) -> Sequence[ChatRequest]:
        """See OpenAIRequest."""
        wants_logprobs = bool(self.include) or self.top_logprobs is not None
        fields = {
            "model": self.model,
            "adapter": self.adapter,
            "cache_salt": self.cache_salt,
            "messages": self._messages(),
            "max_new_tokens": self.max_output_tokens or DEFAULT_MAX_TOKENS,
            "temperature": 1.0 if self.temperature is None else float(self.temperature),
            "top_p": None if self.top_p is None else max(LEAST_TOP_P, self.top_p),
            "logprobs": (self.top_logprobs or 0) if wants_logprobs else None,
            "tools": self._tools(),
            "tool_choice": self._choice(),
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": self.text.format.response_format() if self.text and self.text.format else None,
        }
        return [ChatRequest.parse(fields, stream=bool(self.stream))]

    def join(self, answers: Sequence[Answer]) -> Body:
        """See OpenAIRequest."""
        return response_of(cast("ChatAnswer", answers[0]), self.echoed())

    def writer(self) -> EventWriter:
        """See OpenAIRequest."""
        return ResponseWriter(self.echoed())

    def echoed(self) -> dict[str, Any]:
        """Return the fields of the request that the answer repeats."""
        tool_choice = self.tool_choice.model_dump() if isinstance(self.tool_choice, BaseModel) else self.tool_choice
        form = self.text.format if self.text else None
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "tool_choice": tool_choice or ("auto" if self.tools else "none"),
            "tools": [tool.model_dump() for tool in self.tools or ()],
            "text": {"format": form.model_dump(exclude_none=True) if form else {"type": "text"}},
            "top_logprobs": self.top_logprobs or 0,
            "user": self.user,
        }

    def _messages(self) -> list[Message]:
        """Return the conversation. Successive calls, and the text before them, become one message."""
        messages = [] if self.instructions is None else [Message(role="system", content=self.instructions)]
        for item in self.input:
            message, before = item.message(), messages[-1] if messages else None
            if message.tool_calls and before is not None and before.role == "assistant":
                calls = [*(before.tool_calls or ()), *message.tool_calls]
                messages[-1] = Message(role="assistant", content=before.content, tool_calls=calls)
            else:
                messages.append(message)
        return messages

    def _tools(self) -> list[Tool] | None:
        return None if self.tools is None else [tool.tool() for tool in self.tools]

    def _choice(self) -> str | NamedTool | None:
        if isinstance(self.tool_choice, NamedResponseTool):
            return NamedTool.model_validate({"type": "function", "function": {"name": self.tool_choice.name}})
        return self.tool_choice
