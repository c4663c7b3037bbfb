"""`/v1/responses`, stateless: each request has its whole conversation, and stands for one native chat request."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from run_gpt.api.answers import Answer, Body, ChatAnswer
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
from run_gpt.api.field_tables import (
    LEFT_OUT_INCLUDES,
    REASONING,
    RESPONSE,
    RESPONSE_TOOL,
    STREAM_OPTIONS,
    TEXT_OPTIONS,
    effort_values,
)
from run_gpt.api.fields import Intake, Sifted
from run_gpt.api.openai.base import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_TEMPERATURE,
    LEAST_TOP_P,
    MAX_TOKENS,
    TEMPERATURE,
    Length,
    Metadata,
    OpenAIRequest,
)
from run_gpt.api.openai.chat import LONGER
from run_gpt.api.openai.response_events import ResponseWriter, response_of
from run_gpt.api.openai.response_items import Item, items_of, messages_of
from run_gpt.api.openai.tool_choice import (
    AllowedResponseTools,
    Choice,
    NamedResponseTool,
    ResponseToolChoice,
    allowed,
    leave_out_tools,
)
from run_gpt.api.schema import (
    ADAPTER,
    CACHE_KEY,
    CACHE_SALT,
    MAX_REASONING_TOKENS,
    TEMPLATE_VALUES,
    CacheSalt,
    ChatRequest,
    PromptCacheKey,
)
from run_gpt.api.translated import EventWriter
from run_gpt.api.values import INT32_MAX, Fault, JsonObject, Name, Text
from run_gpt.errors import InvalidRequest

LOGPROBS = "message.output_text.logprobs"
Includes = Annotated[list[Literal["message.output_text.logprobs"]], Field(max_length=16, fail_fast=True)]


class ResponseTool(Sifted):
    """A function that the model may call."""

    FIELDS: ClassVar = RESPONSE_TOOL

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


class TextFormat(Sifted):
    """Form of the text; all its fields are on one level."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

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


class TextOptions(Sifted):
    """Options for the text."""

    FIELDS: ClassVar = TEXT_OPTIONS

    format: TextFormat | None = None


class ResponseStreamOptions(Sifted):
    """Information in a stream beside the text; this server offers none."""

    FIELDS: ClassVar = STREAM_OPTIONS


class Reasoning(Sifted):
    """Options for what the model thinks before its answer."""

    FIELDS: ClassVar = REASONING

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


def _there(include: Any, info: ValidationInfo) -> Any:
    """Return the values of `include` without those of kinds that this server has not."""
    if not isinstance(include, list) or len(include) > len(LEFT_OUT_INCLUDES) + 16:
        return include
    left_out = [name for name in include if isinstance(name, str) and name in LEFT_OUT_INCLUDES]
    if left_out and isinstance(info.context, Intake):
        if info.context.rules == "strict":
            raise Fault(f"{left_out[0]}: there is nothing of the kind, and the server has --strict-fields")
        for name in left_out:
            info.context.ignore(f"include.{name}")
    return [name for name in include if name not in left_out]


class ResponseRequest(OpenAIRequest):
    """Answer a conversation."""

    REPEATS_PARTS = True
    FIELDS: ClassVar = RESPONSE
    DIFFERS: ClassVar = {
        **OpenAIRequest.DIFFERS,
        "include": "OpenAI's: what hosted tools, images and reasoning leave, too; here they are left out.",
        "input": "OpenAI's: images, files, calls of hosted tools and references to stored items, too.",
        "max_output_tokens": LONGER,
        "metadata": "OpenAI's is stored.",
        "reasoning": "OpenAI's has summaries.",
        "text": "OpenAI's enforces a schema with `strict` only, and has `verbosity`.",
        "tool_choice": "OpenAI's: hosted and custom tools, too.",
        "tools": "OpenAI's: hosted and custom tools, too; here they are left out.",
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
    ] = Field(description="A text, or items: messages (with text), function_call, function_call_output, reasoning.")
    instructions: Text | None = Field(None, description="A system message before the input.")
    max_output_tokens: Length | None = Field(None, description=MAX_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2, description=TEMPERATURE)
    top_p: float | None = Field(None, ge=0, le=1, description="Sample from the likeliest tokens of this total mass.")
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = Field(
        None, description="Functions that the model may call; no hosted tools."
    )
    tool_choice: ResponseToolChoice | None = Field(
        None,
        description="`auto`, `none`, `required`, one function, or `allowed_tools`. Required calls are enforced.",
    )
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call; default true.")
    text: TextOptions | None = Field(None, description="`format`: `text`, `json_object` or `json_schema`. Enforced.")
    include: Annotated[Includes, BeforeValidator(_there, json_schema_input_type=Includes)] | None = Field(
        None, description=f"`{LOGPROBS}`."
    )
    reasoning: Reasoning | None = Field(None, description="`effort`, for a model whose template reads it.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Alternatives to each token of the text.")
    metadata: Metadata | None = Field(None, description="Given back in the answer.")
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: ResponseStreamOptions | None = Field(None, description="Nothing.")
    max_reasoning_tokens: int | None = Field(
        None, ge=0, le=INT32_MAX, description=f"Beyond OpenAI's: {MAX_REASONING_TOKENS}"
    )
    adapter: Name | None = Field(None, description=f"Beyond OpenAI's: {ADAPTER}")
    cache_salt: CacheSalt | None = Field(None, description=f"Beyond OpenAI's: {CACHE_SALT}")
    prompt_cache_key: PromptCacheKey | None = Field(None, description=CACHE_KEY)
    chat_template_kwargs: TemplateValues | None = Field(None, description=f"Beyond OpenAI's: {TEMPLATE_VALUES}")

    @model_validator(mode="before")
    @classmethod
    def _leave_out_tools(cls, data: Any, info: ValidationInfo) -> Any:
        return leave_out_tools(data, info.context)

    @model_validator(mode="after")
    def _possible_tools(self) -> "ResponseRequest":
        check_tools(*self._calls())
        return self

    def make_natives(self) -> Sequence[ChatRequest]:
        """See TranslatedRequest."""
        tools, choice = self._calls()
        system = [] if self.instructions is None else [Message(role="system", content=self.instructions)]
        wants_logprobs = bool(self.include) or self.top_logprobs is not None
        fields = {
            "model": self.model,
            "adapter": self.adapter,
            "cache_salt": self.cache_salt,
            "prompt_cache_key": self.prompt_cache_key,
            "messages": [*system, *messages_of(self.input)],
            "max_new_tokens": self.max_output_tokens or DEFAULT_MAX_TOKENS,
            "max_reasoning_tokens": self.max_reasoning_tokens,
            "temperature": self.temperature,
            "default_temperature": DEFAULT_TEMPERATURE,
            "top_p": None if self.top_p is None else max(LEAST_TOP_P, self.top_p),
            "logprobs": (self.top_logprobs or 0) if wants_logprobs else None,
            "tools": tools,
            "tool_choice": choice,
            "chat_template_kwargs": self._template_values(),
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": self.text.format.response_format() if self.text and self.text.format else None,
        }
        return [ChatRequest.parse(fields, stream=bool(self.stream))]

    def join(self, answers: Sequence[Answer]) -> Body:
        """See TranslatedRequest."""
        return response_of(cast("ChatAnswer", answers[0]), self.echoed())

    def writer(self) -> EventWriter:
        """See TranslatedRequest."""
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
            "temperature": self.temperature,
            "top_p": self.top_p,
            "tool_choice": tool_choice or ("auto" if self.tools else "none"),
            "tools": [tool.model_dump() for tool in self.tools or ()],
            "text": {"format": form.model_dump(exclude_none=True) if form else {"type": "text"}},
            "top_logprobs": self.top_logprobs or 0,
            "user": self.user,
            "reasoning": {"effort": self.reasoning.effort, "summary": None} if self.reasoning else None,
            "prompt_cache_key": self.prompt_cache_key,
            "safety_identifier": self.safety_identifier,
        }

    def _calls(self) -> tuple[list[Tool] | None, Choice]:
        """Return the tools that the model may call, and the native choice among them."""
        tools, choice = None if self.tools is None else [tool.tool() for tool in self.tools], self.tool_choice
        if isinstance(choice, AllowedResponseTools):
            return allowed(tools, choice.mode, [tool.name for tool in choice.tools])
        if isinstance(choice, NamedResponseTool):
            return tools, NamedTool.model_validate({"type": "function", "function": {"name": choice.name}})
        return tools, choice

    def _template_values(self) -> dict[str, Any] | None:
        effort = self.reasoning.effort if self.reasoning else None
        values = {**(effort_values(effort) if effort else {}), **(self.chat_template_kwargs or {})}
        return values or None
