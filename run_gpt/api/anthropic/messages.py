"""`/v1/messages`: a conversation, answered with text, thinking or calls of tools; and the count of its tokens."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from run_gpt.api.answers import Answer, Body, ChatAnswer
from run_gpt.api.anthropic.answers import InputTokens, MessageWriter, message_of
from run_gpt.api.anthropic.blocks import System, Turn, messages_of
from run_gpt.api.anthropic.fields import OPTIONS, OUTPUT, REQUEST, TOOL
from run_gpt.api.chat import (
    MAX_MESSAGES,
    MAX_TOOLS,
    Function,
    JsonSchemaFormat,
    Message,
    NamedTool,
    ResponseFormat,
    TemplateValues,
    Tool,
    ToolName,
    check_tools,
)
from run_gpt.api.field_tables import HOSTED, effort_values
from run_gpt.api.fields import Intake, Sifted
from run_gpt.api.openai.base import DEFAULT_MAX_TOKENS, DEFAULT_TEMPERATURE, LEAST_TOP_P
from run_gpt.api.openai.tool_choice import Choice
from run_gpt.api.schema import ADAPTER, CACHE_SALT, TEMPLATE_VALUES, CacheSalt, ChatRequest, StopTexts, TopK
from run_gpt.api.tokens import TokenizeRequest, Tokens
from run_gpt.api.translated import EventWriter, TranslatedRequest
from run_gpt.api.values import INT32_MAX, Fault, JsonObject, Name, Text, shown
from run_gpt.errors import InvalidRequest


class UserTool(Sifted):
    """A function that the model may call."""

    FIELDS: ClassVar = TOOL

    type: Literal["custom"] | None = None
    name: ToolName
    description: Text | None = None
    input_schema: JsonObject
    strict: bool | None = None

    def tool(self) -> Tool:
        """Return this function as a tool of a chat."""
        function = Function(
            name=self.name, description=self.description, parameters=self.input_schema, strict=self.strict
        )
        return Tool(type="function", function=function)


def _is_left_out(tool: Any) -> bool:
    return isinstance(tool, dict) and isinstance(tool.get("type"), str) and tool["type"] != "custom"


def _own_tools(tools: Any, info: ValidationInfo) -> Any:
    """Return the tools without those that Anthropic's models and servers bring."""
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS or not any(map(_is_left_out, tools)):
        return tools
    intake = info.context if isinstance(info.context, Intake) else Intake()
    for at, tool in enumerate(tools):
        if _is_left_out(tool):
            if intake.rules == "strict":
                raise Fault(f"{HOSTED}, and the server has --strict-fields", at, "type")
            intake.ignore(f"tools.{tool['type']}")
    return [tool for tool in tools if not _is_left_out(tool)]


class MessageToolChoice(Sifted):
    """Choice among the tools."""

    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _named(self) -> "MessageToolChoice":
        if (self.name is None) == (self.type == "tool"):
            raise Fault(f"the type {self.type!r} {'needs' if self.type == 'tool' else 'does not take'} a name", "name")
        return self


class ThinkingOptions(Sifted):
    """Options for what the model thinks before its answer."""

    FIELDS: ClassVar = OPTIONS

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: int | None = Field(None, ge=1, le=INT32_MAX)


class OutputFormat(Sifted):
    """Form of the answer's text."""

    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(Sifted):
    """Effort of the answer, and its form."""

    FIELDS: ClassVar = OUTPUT

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class RequestMetadata(Sifted):
    """Facts about the request."""

    user_id: Text | None = None


class CountTokensRequest(TranslatedRequest):
    """Count the tokens of a conversation."""

    FIELDS: ClassVar = REQUEST
    NATIVE_NAMES: ClassVar = {"max_new_tokens": "max_tokens", "stop": "stop_sequences"}

    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] = Field(
        description="The conversation so far; contents: a text, or blocks `text`, `tool_use`, `tool_result`, "
        "`thinking`. If the last turn is the assistant's, the answer continues it."
    )
    system: System | None = Field(None, description="Instructions: a text, or blocks with texts.")
    tools: (
        Annotated[list[UserTool], Field(max_length=MAX_TOOLS, fail_fast=True), BeforeValidator(_own_tools)] | None
    ) = Field(None, description="Functions that the model may call. Tools of other types than `custom` are left out.")
    tool_choice: MessageToolChoice | None = Field(
        None, description="`auto`, `any`, `tool` with a `name`, `none`; `disable_parallel_tool_use`. Enforced."
    )
    thinking: ThinkingOptions | None = Field(
        None,
        description="`enabled` or `adaptive`, with at most `budget_tokens`, or `disabled`, for models that think apart "
        "from their answers; default: what the model does.",
    )
    output_config: OutputConfig | None = Field(
        None, description="`effort`, for a model whose template reads it; `format`: a JSON schema, which is enforced."
    )
    chat_template_kwargs: TemplateValues | None = Field(None, description=f"Beyond Anthropic's: {TEMPLATE_VALUES}")

    @model_validator(mode="after")
    def _possible_tools(self) -> "CountTokensRequest":
        check_tools(self._tools(), self._choice())
        return self

    def make_natives(self) -> Sequence[ChatRequest | TokenizeRequest]:
        """See TranslatedRequest."""
        return [TokenizeRequest.parse({"model": self.model, "tools": self._tools(), **self.chat()})]

    def join(self, answers: Sequence[Answer]) -> Body:
        """See TranslatedRequest."""
        return InputTokens(input_tokens=cast("Tokens", answers[0]).count)

    def chat(self) -> dict[str, Any]:
        """Return the native fields from which the prompt is made, beside the tools."""
        messages = messages_of(self.system or (), self.messages)
        return {
            "messages": messages,
            "continue_final_message": True if _is_begun(messages[-1]) else None,
            "chat_template_kwargs": self._template_values(),
        }

    def _tools(self) -> list[Tool] | None:
        return [tool.tool() for tool in self.tools] if self.tools else None

    def _choice(self) -> Choice:
        """Return the native choice among the tools."""
        choice = self.tool_choice
        if choice is None or (choice.type == "auto" and not self.tools):
            return None
        if choice.type == "tool":
            return NamedTool.model_validate({"type": "function", "function": {"name": choice.name}})
        return cast("Choice", {"any": "required"}.get(choice.type, choice.type))

    def _template_values(self) -> dict[str, Any] | None:
        values: dict[str, Any] = {}
        if self.output_config and self.output_config.effort:
            values |= effort_values(self.output_config.effort)
        if self.thinking:
            values["enable_thinking"] = self.thinking.type != "disabled"
        return {**values, **(self.chat_template_kwargs or {})} or None


class MessagesRequest(CountTokensRequest):
    """Answer a conversation."""

    max_tokens: int | None = Field(
        None, ge=1, le=INT32_MAX, description=f"Most tokens in the answer; default {DEFAULT_MAX_TOKENS}."
    )
    stop_sequences: StopTexts | None = Field(None, description="Up to 16 texts that end the answer, and are not in it.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy; default: the model's, else 1.")
    top_p: float | None = Field(None, ge=0, le=1, description="Sample from the likeliest tokens of this total mass.")
    top_k: TopK | None = Field(None, description="Sample from the k likeliest tokens.")
    metadata: RequestMetadata | None = Field(
        None, description="`user_id`: it stands in the request log (`--log-requests`)."
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    adapter: Name | None = Field(None, description=f"Beyond Anthropic's: {ADAPTER}")
    cache_salt: CacheSalt | None = Field(None, description=f"Beyond Anthropic's: {CACHE_SALT}")

    @model_validator(mode="after")
    def _possible_budget(self) -> "MessagesRequest":
        budget, most = self.thinking.budget_tokens if self.thinking else None, self.max_tokens or DEFAULT_MAX_TOKENS
        if budget is not None and budget >= most:
            message = f"thinking.budget_tokens = {shown(budget)}: this must be less than max_tokens = {most}"
            raise InvalidRequest(message, param="thinking.budget_tokens")
        return self

    @property
    def asker(self) -> str | None:
        """See TranslatedRequest."""
        return self.metadata.user_id if self.metadata else None

    def make_natives(self) -> Sequence[ChatRequest]:
        """See TranslatedRequest."""
        form = self.output_config.format if self.output_config else None
        schema = None if form is None else JsonSchemaFormat(schema=form.schema_)
        one_call = self.tool_choice is not None and self.tool_choice.disable_parallel_tool_use
        fields = {
            **self.chat(),
            "model": self.model,
            "adapter": self.adapter,
            "cache_salt": self.cache_salt,
            "max_new_tokens": self.max_tokens or DEFAULT_MAX_TOKENS,
            "max_reasoning_tokens": self.thinking.budget_tokens if self.thinking else None,
            "stop": self.stop_sequences,
            "temperature": self.temperature,
            "default_temperature": DEFAULT_TEMPERATURE,
            "top_p": None if self.top_p is None else max(LEAST_TOP_P, self.top_p),
            "top_k": self.top_k,
            "tools": self._tools(),
            "tool_choice": self._choice(),
            "parallel_tool_calls": False if one_call else None,
            "response_format": None if schema is None else ResponseFormat(type="json_schema", json_schema=schema),
        }
        return [ChatRequest.parse(fields, stream=bool(self.stream))]

    def join(self, answers: Sequence[Answer]) -> Body:
        """See TranslatedRequest."""
        return message_of(cast("ChatAnswer", answers[0]))

    def writer(self) -> EventWriter:
        """See TranslatedRequest."""
        return MessageWriter()


def _is_begun(last: Message) -> bool:
    """Return True for a last message that the answer continues."""
    return last.role == "assistant" and bool(last.content) and not last.tool_calls
