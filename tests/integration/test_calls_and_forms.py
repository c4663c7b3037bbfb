"""Tool calls, strict or not, and structured answers, together and as users request them, from request to answer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from families import FAMILIES, build
from tool_models import WEATHER, tool_tokenizer

import run_gpt
from run_gpt.api.answers import ChatAnswer
from run_gpt.errors import InvalidRequest
from run_gpt.local.model import Model

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {
    "type": "object",
    "properties": {"capital": {"type": "string", "maxLength": 20}, "sure": {"type": "boolean"}},
    "required": ["capital", "sure"],
    "additionalProperties": False,
}
JSON_FORM = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
TOOL_CALLS = 320
"""Token id of the marker in the small model."""


def tools(**more: Any) -> list[dict[str, Any]]:
    function = {"name": WEATHER.name, "description": WEATHER.description, "parameters": WEATHER.parameters}
    return [{"type": "function", "function": {**function, **more}}]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with run_gpt.create_model(precision="fp32") as model:
        yield model


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Yield a random model whose calls begin with a token."""
    folder: Path = tmp_path_factory.mktemp("calls") / "small"
    weights, tokenizer = build(FAMILIES["llama"]), tool_tokenizer("mistral")
    weights.resize_token_embeddings(len(tokenizer))
    weights.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with run_gpt.create_model(model_path=str(folder), precision="fp32") as model:
        yield model


def streamed(model: Model, messages: Any, **parameters: Any) -> dict[int, tuple[str, list[tuple[str, str]], str]]:
    """Return the text, the calls and the finish reason of each answer."""
    texts: dict[int, str] = {}
    made: dict[int, dict[int, list[str]]] = {}
    reasons = {}
    for chunk in model.chat_stream(messages, **parameters):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            for call in choice.delta.tool_calls or ():
                parts = made.setdefault(choice.index, {}).setdefault(call.index, ["", ""])
                parts[0] += call.function.name or ""
                parts[1] += call.function.arguments or ""
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index, "")
    return {i: (texts[i], [(a, b) for a, b in made.get(i, {}).values()], reasons[i]) for i in texts}


def whole(answer: ChatAnswer) -> dict[int, tuple[str, list[tuple[str, str]], str | None]]:
    return {
        choice.index: (
            choice.message.content or "",
            [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()],
            choice.finish_reason,
        )
        for choice in answer.choices
    }


def test_a_strict_function_changes_no_word_of_an_answer_in_words(model: Model) -> None:
    free = model.chat(QUESTION, tools=tools(), max_tokens=40)
    held = model.chat(QUESTION, tools=tools(strict=True), tool_choice="auto", max_tokens=40)
    assert held.choices[0].message.content
    assert whole(held) == whole(free)
    assert held.usage.completion_tokens == free.usage.completion_tokens


def test_a_form_beside_tools_gives_an_answer_in_it_or_a_call(model: Model) -> None:
    answer = model.chat(QUESTION, tools=tools(strict=True), response_format=JSON_FORM, max_tokens=120)
    [(text, calls, reason)] = whole(answer).values()
    assert reason in ("stop", "tool_calls")
    assert bool(text) != bool(calls)
    for name, arguments in calls:
        assert name == WEATHER.name
        jsonschema.validate(json.loads(arguments), WEATHER.schema())
    if text:
        jsonschema.validate(json.loads(text), SCHEMA)


def test_a_form_for_words_does_not_hinder_a_call_that_must_be(model: Model) -> None:
    answer = model.chat(QUESTION, tools=tools(), tool_choice="required", response_format=JSON_FORM, max_tokens=80)
    [(text, [(name, arguments)], _)] = whole(answer).values()
    assert (text, name) == ("", WEATHER.name)
    jsonschema.validate(json.loads(arguments), WEATHER.schema())


def test_a_form_counts_where_tools_may_not_be_called(model: Model) -> None:
    form = {"type": "choice", "choice": ["Paris", "Rome"]}
    answer = model.chat(QUESTION, tools=tools(strict=True), tool_choice="none", response_format=form)
    assert answer.choices[0].message.content in form["choice"]


@pytest.mark.parametrize("strict", [False, True])
def test_at_most_one_call_is_made_not_the_first_of_several_kept(small: Model, strict: bool) -> None:
    """Dropped calls cost their tokens, and a model that goes on after them has them in its context as made."""
    parameters: dict[str, Any] = {"tools": tools(strict=strict), "temperature": 1.5, "n": 4, "max_tokens": 150}
    parameters |= {"logit_bias": {str(TOOL_CALLS): 100}, "parallel_tool_calls": False, "logprobs": 0}
    for choice in small.chat(QUESTION, seed=3, **parameters).choices:
        assert choice.logprobs is not None
        assert [token.token for token in choice.logprobs.content].count("[TOOL_CALLS]") == 1
        assert choice.message.tool_calls is None or len(choice.message.tool_calls) == 1


@pytest.mark.parametrize("form", [None, JSON_FORM, {"type": "regex", "regex": "[a-z ]{1,30}"}])
@pytest.mark.parametrize("bias", [0, 100])
def test_strict_calls_of_a_model_that_knows_nothing_are_right_streamed_or_not(
    small: Model, form: dict[str, Any] | None, bias: int
) -> None:
    """`bias`: a call begins at once."""
    parameters: dict[str, Any] = {
        **{"tools": tools(strict=True), "parallel_tool_calls": False, "response_format": form},
        **{"temperature": 1.5, "seed": 7, "n": 6, "max_tokens": 150, "logit_bias": {str(TOOL_CALLS): bias}},
    }
    answers = whole(small.chat(QUESTION, **parameters))
    assert streamed(small, QUESTION, **parameters) == answers
    for text, calls, reason in answers.values():
        assert calls or not bias
        if reason == "length":
            continue
        assert (reason == "tool_calls") == bool(calls)
        for _, arguments in calls:
            jsonschema.validate(json.loads(arguments), WEATHER.schema())
        if form is JSON_FORM and not calls:
            jsonschema.validate(json.loads(text), SCHEMA)


def test_a_schema_that_cannot_be_held_is_refused_by_the_name_of_its_field(model: Model) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(InvalidRequest, match=r"tools: .*uniqueItems") as caught:
        model.chat(QUESTION, tools=tools(parameters=parameters, strict=True), max_tokens=1)
    assert caught.value.param == "tools"
    assert model.chat(QUESTION, tools=tools(parameters=parameters), max_tokens=1)
    form = {"type": "json_schema", "json_schema": {"schema": parameters}}
    with pytest.raises(InvalidRequest, match=r"response_format: .*uniqueItems") as caught:
        model.chat(QUESTION, tools=tools(), response_format=form, max_tokens=1)
    assert caught.value.param == "response_format"
