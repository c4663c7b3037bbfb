"""The default model's template does not support tools, but a user's tools must work with it nevertheless."""

import json
import random
from typing import Any

import jsonschema
import pytest
from tool_models import CLOCK, WEATHER, Matcher, calls, content, whole

from run_gpt.config import ModelConfig
from run_gpt.models import LoadedModel, load, render_chat
from run_gpt.models.tools import ToolFormat, find_tool_format, tool_template, visible_decode

TOOLS = [WEATHER, CLOCK]
QUESTION = {"role": "user", "content": "What is the weather in Paris, in celsius?"}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"unit": "celsius", "city": "Paris"}'},
}


@pytest.fixture(scope="module")
def default_model() -> LoadedModel:
    return load(ModelConfig(precision="fp32", device="cpu"))


@pytest.fixture(scope="module")
def tool_format(default_model: LoadedModel) -> ToolFormat:
    return find_tool_format(tool_template(default_model.tokenizer), default_model.tokenizer)


def test_its_prompt_contains_the_functions_the_call_and_its_result(default_model: LoadedModel) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"degrees": 21}'},
    ]
    text = default_model.tokenizer.decode(render_chat(default_model.tokenizer, messages, tools=TOOLS))
    functions = "\n".join(json.dumps(function.as_tool()["function"]) for function in TOOLS)
    assert text == (
        "<|im_start|>system\nBe brief.\n\n"
        "You can call functions. To call one, answer with nothing but a JSON object of this form:\n"
        '{"name": <name>, "arguments": <arguments as a JSON object>}\n'
        "To call several, answer with nothing but a JSON list of such objects.\n"
        f"When no function helps, answer in words.\n\nThe functions:\n{functions}<|im_end|>\n"
        f"<|im_start|>user\n{QUESTION['content']}<|im_end|>\n"
        '<|im_start|>assistant\n{"name": "get_weather", "arguments": {"unit": "celsius", "city": "Paris"}}<|im_end|>\n'
        '<|im_start|>user\nResult of get_weather: {"degrees": 21}<|im_end|>\n<|im_start|>assistant\n'
    )


def test_held_to_the_grammar_it_calls_with_arguments_that_the_schema_allows(
    default_model: LoadedModel, tool_format: ToolFormat
) -> None:
    tokenizer: Any = default_model.tokenizer
    matcher = Matcher(tokenizer)
    ids = render_chat(tokenizer, [QUESTION], tools=TOOLS, tool_format=tool_format)
    answer = held(default_model, ids, matcher, tool_format.grammar(TOOLS, name="get_weather"))
    pieces = whole(tool_format, TOOLS, visible_decode(tokenizer, tool_format.visible)(answer))
    ((name, arguments),) = calls(pieces)
    assert (content(pieces), name) == ("", "get_weather")
    jsonschema.validate(json.loads(arguments), WEATHER.schema())
    assert json.loads(arguments)["city"] == "Paris"


def held(model: LoadedModel, prompt: list[int], matcher: Matcher, grammar: str) -> list[int]:
    """Return a greedy answer of tokens that the grammar allows."""
    import torch

    state, cache, step = matcher.start(grammar), None, prompt
    answer: list[int] = []
    while not state.is_stopped() and len(answer) < 80:
        with torch.no_grad():
            out = model.model(torch.tensor([step]), past_key_values=cache, use_cache=True)
        allowed = matcher.allowed(state)
        token = allowed[int(out.logits[0, -1, allowed].argmax())]
        if token == model.tokenizer.eos_token_id:
            break
        assert state.consume_token(token)
        answer.append(token)
        cache, step = out.past_key_values, [token]
    return answer


@pytest.mark.parametrize("parallel", [True, False])
def test_what_its_tokens_can_spell_is_read_back(
    default_model: LoadedModel, tool_format: ToolFormat, parallel: bool
) -> None:
    matcher = Matcher(default_model.tokenizer)
    decode = visible_decode(default_model.tokenizer, tool_format.visible)
    for seed in range(5):
        ids = matcher.sample(tool_format.grammar(TOOLS, parallel=parallel), random.Random(seed))
        pieces = whole(tool_format, TOOLS, decode(ids))
        assert content(pieces) == ""
        for name, arguments in calls(pieces):
            schema = next(function for function in TOOLS if function.name == name).schema()
            jsonschema.validate(json.loads(arguments), schema)


def test_its_text_is_what_it_was(default_model: LoadedModel) -> None:
    tokenizer: Any = default_model.tokenizer
    ids = tokenizer("<|im_start|>user\nHéllo  日本<|im_end|>[TOOL_CALLS]")["input_ids"]
    for visible in ((), ("[TOOL_CALLS]", "<|python_tag|>")):
        assert visible_decode(tokenizer, visible)(ids) == "user\nHéllo  日本[TOOL_CALLS]"
