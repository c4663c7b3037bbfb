"""Thinking, forms and calls of a real engine: a random model thinks for ever unless it is held to its budget."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from families import FAMILIES, build
from reasoning_models import DEEPSEEK
from tokenizers import AddedToken
from tool_models import WEATHER, tool_tokenizer

import run_gpt
from run_gpt.errors import InvalidRequest
from run_gpt.local.model import Model

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
FORM = {"type": "json_schema", "json_schema": {"schema": {**SCHEMA, "additionalProperties": False}}}
TOOLS = [{"type": "function", "function": {"name": WEATHER.name, "parameters": WEATHER.parameters}}]
BUDGET = 9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Yield a random model whose prompts begin the thinking, and whose calls are those of Hermes."""
    folder: Path = tmp_path_factory.mktemp("thinking") / "small"
    weights, tokenizer = build(FAMILIES["llama"]), tool_tokenizer("hermes")
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in ("<think>", "</think>")])
    tokenizer.chat_template = DEEPSEEK + "{# tools <tool_call> arguments #}"
    weights.resize_token_embeddings(len(tokenizer))
    weights.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with run_gpt.create_model(model_path=str(folder), precision="fp32") as model:
        yield model


def streamed(model: Model, **parameters: Any) -> tuple[dict[int, list[Any]], Any]:
    """Return the thinking, the content, the calls' arguments and the finish reason of each answer, and the usage."""
    answers: dict[int, list[Any]] = {}
    usage = None
    for event in model.chat_stream(MESSAGES, **parameters):
        usage = event.usage
        for choice in event.choices:
            to = answers.setdefault(choice.index, ["", "", "", None])
            to[0] += choice.delta.reasoning_content or ""
            to[1] += choice.delta.content or ""
            to[2] += "".join(call.function.arguments or "" for call in choice.delta.tool_calls or ())
            to[3] = choice.finish_reason or to[3]
    return answers, usage


@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.2, "seed": 3, "n": 4}])
@pytest.mark.parametrize("asked", [{"response_format": FORM}, {"tools": TOOLS, "tool_choice": "required"}, {}])
def test_an_answer_after_as_much_thinking_as_it_may_have(
    model: Model, sampled: dict[str, Any], asked: dict[str, Any]
) -> None:
    parameters: dict[str, Any] = {**sampled, **asked, "max_reasoning_tokens": BUDGET, "max_tokens": 150}
    if "tools" in asked:
        parameters["parallel_tool_calls"] = False
    elif not asked:
        parameters["logit_bias"] = {"2": -100}  # no end amid the thinking
    whole = model.chat(MESSAGES, **parameters)
    assert whole.usage.completion_tokens_details is not None
    assert whole.usage.completion_tokens_details.reasoning_tokens == BUDGET * len(whole.choices)
    for choice in whole.choices:
        message = choice.message
        assert message.reasoning_content == message.reasoning != ""
        assert "</think>" not in (message.reasoning or "") + (message.content or "")
        if choice.finish_reason == "length":
            assert choice.index or not asked or "tools" in asked
        elif "response_format" in asked:
            jsonschema.validate(json.loads(message.content or ""), SCHEMA)
        for call in message.tool_calls or ():
            assert call.function.name == WEATHER.name
            if choice.finish_reason == "tool_calls":
                jsonschema.validate(json.loads(call.function.arguments), WEATHER.schema())
        assert bool(message.tool_calls) == ("tools" in asked)
    answers, usage = streamed(model, **parameters)
    assert answers == {
        choice.index: [
            choice.message.reasoning_content,
            choice.message.content or "",
            "".join(call.function.arguments for call in choice.message.tool_calls or ()),
            choice.finish_reason,
        ]
        for choice in whole.choices
    }
    assert usage.completion_tokens_details == whole.usage.completion_tokens_details


def test_an_answer_that_is_cut_within_its_thinking(model: Model) -> None:
    (choice,) = model.chat(MESSAGES, max_tokens=12).choices
    assert choice.message.reasoning_content
    assert (choice.message.content, choice.finish_reason) == ("", "length")
    whole = model.chat(MESSAGES, max_tokens=12, logprobs=0)
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.content == []
    assert whole.usage.completion_tokens_details is not None
    assert whole.usage.completion_tokens_details.reasoning_tokens == 12


def test_an_answer_that_ends_within_its_thinking(model: Model) -> None:
    answer = model.chat(MESSAGES, max_tokens=12, logit_bias={"2": 100})
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == ""
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_a_budget_does_not_go_with_beam_search(model: Model) -> None:
    with pytest.raises(InvalidRequest, match="max_reasoning_tokens"):
        model.chat(MESSAGES, num_beams=2, max_reasoning_tokens=3)
    (choice,) = model.chat(MESSAGES, num_beams=2, max_tokens=6).choices
    assert choice.message.reasoning_content
