"""Print the tables of docs/openai.md, made from our schemas and the published `openai` package.

`--write` writes them there. A test compares them, so that a new field of a newer client is noticed: it is neither in
the schema nor in field_tables.py.
"""

import json
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import openai.types as theirs
from document_tables import main, row, table, values, with_tables
from openai.types import chat as their_chat
from openai.types import responses as their_responses
from openai.types import shared_params
from openai.types.chat import chat_completion, chat_completion_chunk, completion_create_params
from openai.types.responses import response_create_params, response_input_item_param
from pydantic import BaseModel

from run_gpt.api import answers, field_tables
from run_gpt.api import chat as ours
from run_gpt.api import parts as our_parts
from run_gpt.api.fields import Entry, Sifted
from run_gpt.api.openai import (
    chat,
    completions,
    embeddings,
    models,
    response_events,
    response_items,
    responses,
    tool_choice,
)
from run_gpt.api.openai.base import OpenAIRequest, StreamOptions

DOCUMENT = Path(__file__).parents[1] / "docs" / "openai.md"
FEW = 7
"""Most kinds that are listed; longer lists show their number only."""

REQUESTS: dict[str, tuple[type[OpenAIRequest], Any]] = {
    "completions": (completions.CompletionRequest, theirs.CompletionCreateParams),
    "chat completions": (chat.ChatCompletionRequest, completion_create_params.CompletionCreateParams),
    "responses": (responses.ResponseRequest, response_create_params.ResponseCreateParams),
    "embeddings": (embeddings.EmbeddingRequest, theirs.EmbeddingCreateParams),
}


def request_table(name: str) -> str:
    """Return every field of a request: OpenAI's, which are supported, differ or are refused, and our own."""
    request, params = REQUESTS[name]
    known = {field for kind in get_args(params) or (params,) for field in get_type_hints(kind)}
    if lost := known - request.model_fields.keys() - set(request.FIELDS.names):
        raise SystemExit(f"{request.__name__} neither has nor refuses what OpenAI's {name} have: {sorted(lost)}")
    lines: dict[str, list[str]] = {"supported": [], "differs": [], "ours": []}
    schema = request.model_json_schema()
    for field, info in request.model_fields.items():
        differs = request.DIFFERS.get(field, "")
        here = "ours" if field not in known else "differs" if differs else "supported"
        description = sentence((info.description or "").removeprefix("Beyond OpenAI's: "))
        phrase = values(schema["properties"][field], schema.get("$defs", {}))
        lines[here].append(row(f"`{field}`", here, phrase, f"{description} {differs}".strip()))
    words = [
        row(f"`{field}`", "word", f"for `{word.into}`", sentence(f"{word.meaning}." if word.meaning else ""))
        for field, word in request.FIELDS.words.items()
    ]
    others = [*entries("hint", request.FIELDS.hints), *entries("refused", request.FIELDS.refused)]
    return table(("field", "here", "values", "meaning"), [*chain(*lines.values()), *words, *others])


def entries(here: str, entries: Mapping[str, Entry]) -> list[str]:
    """Return the rows of hints or of refused fields; those with the same reason are one."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, entry in entries.items():
        alike.setdefault((_granted(here, entry), entry.why), []).append(f"`{name}`")
    return [row(", ".join(names), here, granted, sentence(f"{why}.")) for (granted, why), names in alike.items()]


def _granted(here: str, entry: Entry) -> str:
    """Return the values that a refused field may have nevertheless; for a hint, those that it agrees with."""
    texts = dict.fromkeys(f"`{json.dumps(value)}`" for value in entry.granted if not isinstance(value, float))
    return f"{'only' if here == 'refused' else 'as'} {' or '.join(texts)}" if texts else ""


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def kinds_table() -> str:
    """Return the table of kinds (roles, parts, tools): those that are taken, and those that are refused."""
    parts, items = their_chat.ChatCompletionContentPartParam, their_responses.ResponseInputItemParam
    formats, our_formats = completion_create_params.ResponseFormat, ours.ResponseFormat
    texts, includes = their_responses.ResponseFormatTextConfigParam, field_tables.LEFT_OUT_INCLUDES
    left_out, choices = field_tables.LEFT_OUT_TOOLS, tool_choice.ChatToolChoice
    rows: list[tuple[Any, ...]] = [
        ("roles of messages", _kinds(their_chat.ChatCompletionMessageParam, "role"), get_args(ours.Role)),
        ("parts of a message", _kinds(parts), our_parts.PARTS),
        ("`tools`", _kinds(their_chat.ChatCompletionToolUnionParam), _literals(ours.Tool), left_out),
        (
            "`tool_choice`",
            _kinds(their_chat.ChatCompletionToolChoiceOptionParam),
            _literals(choices),
        ),
        ("`response_format`", _kinds(formats), _literals(our_formats)),
        ("responses: items of `input`", _kinds(items), response_items.KINDS),
        ("responses: parts of an item", _kinds(their_responses.ResponseInputContentParam), response_items.PARTS),
        ("responses: `tools`", _kinds(their_responses.ToolParam), _literals(responses.ResponseTool), left_out),
        ("responses: `include`", get_args(their_responses.ResponseIncludable), [responses.LOGPROBS], includes),
        ("responses: `text.format`", _kinds(texts), _literals(responses.TextFormat)),
    ]
    return _compared("of", "left out, and named", rows)


def objects_table() -> str:
    """Return the table of objects in requests: OpenAI's fields that are taken, and those that are refused."""
    functions = their_chat.ChatCompletionFunctionMessageParam
    messages = [kind for kind in get_args(their_chat.ChatCompletionMessageParam) if kind is not functions]
    json_schema = shared_params.response_format_json_schema.JSONSchema
    result, function = response_input_item_param.FunctionCallOutput, their_responses.FunctionToolParam
    rows: list[tuple[str, Iterable[str], type[Sifted]]] = [
        ("a message", chain(*map(_fields, messages)), ours.Message),
        ("a call in it", _fields(their_chat.ChatCompletionMessageFunctionToolCallParam), ours.ToolCall),
        ("a tool", _fields(their_chat.ChatCompletionFunctionToolParam), ours.Tool),
        ("its function", _fields(shared_params.FunctionDefinition), ours.Function),
        ("`json_schema`", _fields(json_schema), ours.JsonSchemaFormat),
        ("`stream_options`", _fields(their_chat.ChatCompletionStreamOptionsParam), StreamOptions),
        ("responses: a message", _fields(their_responses.ResponseOutputMessageParam), response_items.MessageItem),
        ("responses: a call", _fields(their_responses.ResponseFunctionToolCallParam), response_items.CallItem),
        ("responses: its result", _fields(result), response_items.ResultItem),
        ("responses: reasoning", _fields(their_responses.ResponseReasoningItemParam), response_items.ReasoningItem),
        ("responses: a function of `tools`", _fields(function), responses.ResponseTool),
        ("responses: `text`", _fields(their_responses.ResponseTextConfigParam), responses.TextOptions),
        ("responses: `reasoning`", _fields(shared_params.Reasoning), responses.Reasoning),
    ]
    taken = [
        (title, them, _fields(we), [*we.FIELDS.hints, *we.FIELDS.words], we.FIELDS.refused) for title, them, we in rows
    ]
    return _compared("object", "hints and words", taken)


def answers_table() -> str:
    """Return the table of answers: OpenAI's fields that are left out, and our own fields."""
    rows: list[tuple[str, type[BaseModel], type[BaseModel]]] = [
        ("completion", theirs.Completion, completions.Completion),
        ("its `logprobs`", theirs.completion_choice.Logprobs, completions.CompletionLogprobs),
        ("chat completion", their_chat.ChatCompletion, chat.ChatCompletion),
        ("its `message`", their_chat.ChatCompletionMessage, chat.ChatCompletionMessage),
        ("its `logprobs`", chat_completion.ChoiceLogprobs, chat.ChoiceLogprobs),
        ("event of its stream", their_chat.ChatCompletionChunk, chat.ChatCompletionChunk),
        ("`delta` of an event", chat_completion_chunk.ChoiceDelta, chat.ChoiceDelta),
        ("response", their_responses.Response, response_events.Response),
        ("embeddings", theirs.CreateEmbeddingResponse, embeddings.CreateEmbeddingResponse),
        ("`usage`", theirs.CompletionUsage, answers.Usage),
        ("model", theirs.Model, models.Model),
    ]
    lines = []
    for of, them, we in rows:
        lacking, more = _lacking(them.model_fields, we.model_fields), _lacking(we.model_fields, them.model_fields)
        lines.append(row(of, _list(lacking), _list(more)))
    return table(("answer", "left out", "ours beyond OpenAI's"), lines)


def _compared(what: str, also: str, rows: Iterable[tuple[Any, ...]]) -> str:
    """Return a table of rows: a title, OpenAI's names, those that we take, and perhaps those of the column `also`.

    A row may have further names that are refused.
    """
    lines = []
    for title, them, we, *more in rows:
        others, refused = [*more, (), ()][:2]
        lines.append(row(title, _list(we), _all(others), _list([*_lacking(them, [*we, *others]), *refused])))
    return table((what, "taken", also, "refused"), lines)


def _kinds(union: Any, key: str = "type") -> list[str]:
    """Return the values of `key` in each of OpenAI's typed dictionaries."""
    found: list[str] = []
    for kind in get_args(union) or (union,):
        found += _strings(kind if get_origin(kind) else get_type_hints(kind)[key])
    return found


def _literals(*kinds: Any) -> list[str]:
    """Return the values of `type` in our schemas; `tool_choice` is a mode, or has a type."""
    found: list[str] = []
    for kind in kinds:
        is_schema = isinstance(kind, type) and issubclass(kind, BaseModel)
        found += _strings(kind.model_fields["type"].annotation) if is_schema else _strings(kind)
    return found


def _strings(annotation: Any) -> list[str]:
    """Return the texts of all `Literal` in an annotation, in its order."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _strings(annotation.model_fields["type"].annotation)
    return [text for part in get_args(annotation) for text in _strings(part)]


def _fields(kind: Any) -> list[str]:
    """Return the names of a schema of ours, as on the wire, or of one of OpenAI's typed dictionaries."""
    if not issubclass(kind, BaseModel):
        return list(get_type_hints(kind))
    return [info.alias or name for name, info in kind.model_fields.items()]


def _lacking(names: Iterable[str], others: Iterable[str]) -> list[str]:
    there = set(others)
    return [name for name in dict.fromkeys(names) if name not in there]


def _list(names: Iterable[str]) -> str:
    listed = list(dict.fromkeys(names))
    return f"{len(listed)} others" if len(listed) > FEW else ", ".join(f"`{name}`" for name in listed)


def _all(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))


TABLES = {
    **{name: lambda name=name: request_table(name) for name in REQUESTS},  # type: ignore[misc]
    "kinds": kinds_table,
    "objects": objects_table,
    "answers": answers_table,
}


def made() -> str:
    """Return the document's text with its tables made anew."""
    return with_tables(DOCUMENT, "scripts/openai_table.py", TABLES)


if __name__ == "__main__":
    main(DOCUMENT, "scripts/openai_table.py", TABLES)
