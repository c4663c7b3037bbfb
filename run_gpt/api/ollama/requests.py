"""`/api/chat`, `/api/generate`, `/api/embed`: each stands for one native request. The first two stream by default."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BeforeValidator, Field, model_validator

from run_gpt.api import embeddings as vectors
from run_gpt.api.answers import Answer, Body, ChatAnswer, GenerateAnswer
from run_gpt.api.chat import (
    MAX_CALLS,
    MAX_MESSAGES,
    FunctionCall,
    JsonSchemaFormat,
    Message,
    ResponseFormat,
    ToolCall,
    Tools,
    check_tools,
)
from run_gpt.api.embeddings import MAX_TEXTS, EmbedRequest
from run_gpt.api.field_tables import effort_values
from run_gpt.api.fields import Sifted
from run_gpt.api.ollama import fields
from run_gpt.api.ollama.answers import OllamaAnswer, OllamaVectors, OllamaWriter, call, whole_answer
from run_gpt.api.openai.base import DEFAULT_MAX_TOKENS, LEAST_TOP_P
from run_gpt.api.schema import ChatRequest, GenerateRequest, Request, StopTexts, TopK
from run_gpt.api.translated import EventWriter, TranslatedRequest
from run_gpt.api.values import INT32_MAX, Fault, JsonObject, Text, is_minus_one, one_or_list

DEFAULT_TEMPERATURE = 0.8
"""Temperature of a request without one, if the model has no sampling defaults."""
TAG = ":latest"


def _whole_number(value: Any) -> Any:
    """Return an integer that was written as 1.0, as programs do."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < INT32_MAX else value


Whole = BeforeValidator(_whole_number)
Length = Annotated[
    int, Field(ge=1, le=INT32_MAX), BeforeValidator(lambda value: INT32_MAX if is_minus_one(value) else value), Whole
]


class Options(Sifted):
    """Parameters of sampling."""

    FIELDS: ClassVar = fields.OPTIONS

    num_predict: Length | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_k: Annotated[TopK, Whole] | None = None
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), Whole] | None = None
    stop: StopTexts | None = None
    repeat_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)

    def native(self) -> dict[str, Any]:
        """Return the native fields."""
        same = ("temperature", "top_k", "min_p", "stop", "presence_penalty", "frequency_penalty")
        return {
            **{name: getattr(self, name) for name in same},
            "max_new_tokens": self.num_predict or DEFAULT_MAX_TOKENS,
            "top_p": None if self.top_p is None else max(LEAST_TOP_P, self.top_p),
            "seed": None if self.seed is None else self.seed % (INT32_MAX + 1),
            "repetition_penalty": self.repeat_penalty,
        }


_NO_OPTIONS = Options.model_validate({})


class OllamaFunctionCall(Sifted):
    """Name and arguments of a called function."""

    FIELDS: ClassVar = fields.FUNCTION

    name: Text
    arguments: JsonObject


class OllamaCall(Sifted):
    """One call by the model."""

    FIELDS: ClassVar = fields.CALL

    id: Text | None = None
    function: OllamaFunctionCall


class OllamaMessage(Sifted):
    """One turn of a chat."""

    FIELDS: ClassVar = fields.MESSAGE

    role: Literal["system", "user", "assistant", "tool"]
    content: Text = ""
    thinking: Text | None = None
    tool_calls: Annotated[list[OllamaCall], Field(max_length=MAX_CALLS, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _possible(self) -> "OllamaMessage":
        for name in ("thinking", "tool_calls"):
            if getattr(self, name) and self.role != "assistant":
                raise Fault(f"a message of the role {self.role!r} has {name}", name)
        return self


def messages_of(turns: Sequence[OllamaMessage]) -> list[Message]:
    """Return the turns as messages of a chat. Results follow their calls in order, since Ollama's have no ids."""
    messages: list[Message] = []
    waiting: list[str] = []
    for at, turn in enumerate(turns):
        calls = [_call(one, f"call_{at}_{i}") for i, one in enumerate(turn.tool_calls or ())]
        waiting += [str(one.id) for one in calls]
        answers = turn.role == "tool"
        messages.append(
            Message(
                role=turn.role,
                content=turn.content if turn.content or not calls else None,
                reasoning_content=turn.thinking,
                tool_calls=calls or None,
                tool_call_id=(waiting.pop(0) if waiting else f"call_{at}") if answers else None,
            )
        )
    return messages


def _call(made: OllamaCall, name: str) -> ToolCall:
    arguments = json.dumps(made.function.arguments, ensure_ascii=False)
    return ToolCall(id=made.id or name, function=FunctionCall(name=made.function.name, arguments=arguments))


class OllamaRequest(TranslatedRequest):
    """A request of Ollama's API. The tag `latest` of a model's name is left out."""

    @model_validator(mode="before")
    @classmethod
    def _without_tag(cls, data: Any) -> Any:
        name = data.get("model") if isinstance(data, dict) else None
        return {**data, "model": name.removesuffix(TAG)} if isinstance(name, str) and name.endswith(TAG) else data


class OllamaTextRequest(OllamaRequest):
    """Fields that `/api/chat` and `/api/generate` have in common."""

    NATIVE_NAMES: ClassVar = {
        "max_new_tokens": "options.num_predict",
        "repetition_penalty": "options.repeat_penalty",
        "response_format": "format",
        "stop": "options.stop",
    }

    stream: bool = Field(True, description="False: one answer instead of lines.")
    format: Literal["json", ""] | JsonObject | None = Field(
        None, description="`json`, or a JSON schema: the form that the answer must have. Enforced."
    )
    options: Options | None = Field(None, description="Parameters of sampling, and hints for the machine.")
    think: bool | Literal["low", "medium", "high"] | None = Field(
        None, description="For models that think apart from their answers; default: what the model does."
    )

    def native_fields(self) -> dict[str, Any]:
        """Return the native fields that both kinds have in common."""
        form: ResponseFormat | None = None
        if self.format == "json":
            form = ResponseFormat(type="json_object")
        elif isinstance(self.format, dict):
            form = ResponseFormat(type="json_schema", json_schema=JsonSchemaFormat(schema=self.format))
        return {
            **(self.options or _NO_OPTIONS).native(),
            "model": self.model,
            "default_temperature": DEFAULT_TEMPERATURE,
            "response_format": form,
            "timings": True,
        }

    def chat(self, messages: Sequence[Message], **more: Any) -> ChatRequest:
        """Return the native request of a chat."""
        values = None
        if self.think is not None:
            values = {"enable_thinking": self.think} if isinstance(self.think, bool) else effort_values(self.think)
        given = {**self.native_fields(), **more, "messages": list(messages), "chat_template_kwargs": values}
        return ChatRequest.parse(given, stream=self.stream)


class OllamaChatRequest(OllamaTextRequest):
    """Answer the last message of a chat."""

    FIELDS: ClassVar = fields.CHAT

    messages: Annotated[list[OllamaMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] = Field(
        description="The chat so far."
    )
    tools: Tools | None = Field(None, description="Functions that the model may call.")

    @model_validator(mode="after")
    def _possible_tools(self) -> "OllamaChatRequest":
        check_tools(self.tools, None)
        return self

    def make_natives(self) -> Sequence[ChatRequest]:
        """See TranslatedRequest."""
        return [self.chat(messages_of(self.messages), tools=self.tools or None)]

    def join(self, answers: Sequence[Answer]) -> Body:
        """See TranslatedRequest."""
        return OllamaAnswer(**_whole_chat(cast("ChatAnswer", answers[0])))

    def writer(self) -> EventWriter:
        """See TranslatedRequest."""
        return OllamaWriter(chat=True)


class OllamaGenerateRequest(OllamaTextRequest):
    """Answer a prompt, as the only message of a chat; `raw` or with a `suffix`, continue it."""

    FIELDS: ClassVar = fields.GENERATE

    prompt: Text = Field("", description="The text.")
    system: Text | None = Field(None, description="Instructions before it.")
    suffix: Text | None = Field(None, description="Text that follows the answer, for a model that fills in a middle.")
    raw: bool | None = Field(None, description="True: the prompt is continued as it is, without the chat template.")

    def make_natives(self) -> Sequence[Request]:
        """See TranslatedRequest."""
        if self.raw or self.suffix:
            given = {**self.native_fields(), "prompt": self.prompt, "suffix": self.suffix}
            return [GenerateRequest.parse(given, stream=self.stream)]
        system = [Message(role="system", content=self.system)] if self.system else []
        return [self.chat([*system, Message(role="user", content=self.prompt)])]

    def join(self, answers: Sequence[Answer]) -> Body:
        """See TranslatedRequest."""
        answer = answers[0]
        if isinstance(answer, GenerateAnswer):
            choice = answer.choices[0]
            made = whole_answer(answer, choice.text, "", None, choice.finish_reason or "length")
        else:
            made = _whole_chat(cast("ChatAnswer", answer))
        message = made.pop("message")
        return OllamaAnswer(**made, response=message["content"], thinking=message.get("thinking"))

    def writer(self) -> EventWriter:
        """See TranslatedRequest."""
        return OllamaWriter(chat=False)


def _whole_chat(answer: ChatAnswer) -> dict[str, Any]:
    choice = answer.choices[0]
    message = choice.message
    calls = [call(one.function.name, one.function.arguments) for one in message.tool_calls or ()]
    text, thought = message.content or "", message.reasoning_content or ""
    return whole_answer(answer, text, thought, calls, choice.finish_reason or "length")


class OllamaEmbedRequest(OllamaRequest):
    """Make a vector of each text."""

    FIELDS: ClassVar = fields.EMBED
    NATIVE_NAMES: ClassVar = {"texts": "input"}

    input: Annotated[
        list[Text],
        Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True),
        BeforeValidator(one_or_list, json_schema_input_type=list[Text] | Text),
    ] = Field(description=f"A text, or up to {MAX_TEXTS}.")

    def make_natives(self) -> Sequence[EmbedRequest]:
        """See TranslatedRequest."""
        return [EmbedRequest.parse({"model": self.model, "texts": self.input})]

    def part_writer(self) -> vectors.VectorWriter:
        """See AnyRequest."""
        return vectors.VectorWriter(None)

    def join(self, answers: Sequence[Answer]) -> Body:
        """See TranslatedRequest."""
        whole = cast("vectors.Embeddings", answers[0])
        return OllamaVectors(
            model=whole.model,
            embeddings=[item.embedding for item in whole.data],
            prompt_eval_count=whole.usage.prompt_tokens,
        )
