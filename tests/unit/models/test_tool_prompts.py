"""A model must get the functions, its calls and their results in the form of its training."""

import json
from typing import Any

import pytest
from families import copied_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_models import CLOCK, MISTRAL, NAMES, TEMPLATES, WEATHER, tool_tokenizer

from run_gpt.errors import InvalidRequest
from run_gpt.models import render_chat
from run_gpt.models.templates import find_template
from run_gpt.models.tools import Function, find_tool_format, tool_template, visible_decode

TOOLS = [WEATHER, CLOCK]
USER = {"role": "user", "content": "Is it warm?"}


def call(call_id: str, name: str = "clock", arguments: str = "{}") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


PARIS = call("call_1", "get_weather", '{"unit":"celsius","city":"Paris"}')
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "21"}
CHAT = [USER, {"role": "assistant", "content": None, "tool_calls": [PARIS]}, RESULT]
TWICE = [
    USER,
    {"role": "assistant", "content": "Wait.", "tool_calls": [PARIS, call("call_2")]},
    RESULT,
    {"role": "tool", "tool_call_id": "call_2", "content": "noon"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Thanks."},
]


def prompt(name: str, messages: list[dict[str, Any]], tools: list[Function] = TOOLS, **options: Any) -> str:
    tokenizer = tool_tokenizer(name)
    return str(tokenizer.decode(render_chat(tokenizer, messages, tools=tools, **options)))


@pytest.mark.parametrize("name", NAMES)
def test_the_format_is_told_by_the_template(name: str) -> None:
    tokenizer = tool_tokenizer(name)
    row = find_tool_format(TEMPLATES[name], tokenizer)
    assert (row.name, set(row.visible)) == (name, set(row.markers))


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        # DeepSeek V3's own template writes calls, and has no place for tools.
        "{{ '<\uff5ctool\u2581calls\u2581begin\uff5c>' + message['tool_calls'][0]['function']['arguments'] }}```json",
    ],
)
def test_a_model_whose_form_is_not_known_gets_json(template: str | None) -> None:
    assert find_tool_format(template, copied_tokenizer()).name == "json"


def test_of_several_templates_it_is_the_one_for_tools() -> None:
    tokenizer = tool_tokenizer("json")
    tokenizer.chat_template = {"default": TEMPLATES["json"], "tool_use": TEMPLATES["hermes"]}
    assert tool_template(tokenizer) == TEMPLATES["hermes"]
    assert "<tools>" in tokenizer.decode(render_chat(tokenizer, CHAT, tools=TOOLS))
    assert "<tool_call>" in tokenizer.decode(render_chat(tokenizer, CHAT))
    assert "<tool_call>" not in tokenizer.decode(render_chat(tokenizer, [USER]))


def test_qwen() -> None:
    tools = "\n".join(json.dumps(function.as_tool()) for function in TOOLS)
    assert prompt("hermes", TWICE) == (
        f"<|im_start|>system\n<tools>\n{tools}\n</tools>\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nIs it warm?<|im_end|>\n<|im_start|>assistant\nWait.\n<tool_call>\n"
        '{"name": "get_weather", "arguments": {"unit": "celsius", "city": "Paris"}}\n</tool_call>\n<tool_call>\n'
        '{"name": "clock", "arguments": {}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n21\n'
        "</tool_response>\n<tool_response>\nnoon\n</tool_response><|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
        "<|im_start|>user\nThanks.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_llama_has_one_call_in_a_turn() -> None:
    text = prompt("llama", TWICE)
    assert text.endswith(
        '<user>Is it warm?\n<assistant>{"name": "get_weather", "parameters": {"unit": "celsius", "city": "Paris"}}\n'
        '<ipython>21\n<assistant>{"name": "clock", "parameters": {}}\n<ipython>noon\n<assistant>Yes.\n'
        "<user>Thanks.\n<assistant>"
    )
    assert '{"type": "function", "function": {"name": "get_weather", "description": "Look up' in text


def test_ids_may_be_given_anew_in_later_turns() -> None:
    again = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call("call_1")]},
        {**RESULT, "content": "noon"},
    ]
    assert prompt("json", [*CHAT, *again]).count("Result of clock: noon") == 1
    text = prompt("llama", [*TWICE[:4], *again])
    assert [line for line in text.splitlines() if line.startswith("<ipython>")] == [
        "<ipython>21",
        "<ipython>noon",
        "<ipython>noon",
    ]


@pytest.mark.parametrize("name", ["hermes", "llama", "json"])  # Mistral's templates refuse it
def test_a_late_result_is_kept(name: str) -> None:
    assert prompt(name, [*TWICE[:3], USER, TWICE[3]]).count("noon") == 1


@pytest.mark.parametrize(("name", "space"), [("mistral", " "), ("mistral-nemo", "")])
def test_mistral_has_ids_of_nine_characters(name: str, space: str) -> None:
    text = prompt(name, [*CHAT, {"role": "assistant", "content": "Yes."}])
    made, result = text.split("[TOOL_CALLS]")[1].split("</s>")[:2]
    (one,) = json.loads(made)
    assert (one["name"], one["arguments"]) == ("get_weather", {"unit": "celsius", "city": "Paris"})
    assert made.startswith(f"{space}[")
    assert result == f'[TOOL_RESULTS] {{"content": 21, "call_id": "{one["id"]}"}}[/TOOL_RESULTS] Yes.'
    kept = [USER, {"role": "assistant", "tool_calls": [call("abcDEF123")]}, {**RESULT, "tool_call_id": "abcDEF123"}]
    assert prompt(name, kept).count('"abcDEF123"') == 2


def test_newer_mistral() -> None:
    assert '[/INST][TOOL_CALLS]get_weather[ARGS]{"unit": "celsius", "city": "Paris"}</s>[TOOL_RESULTS]21[' in prompt(
        "mistral-args", CHAT
    )


DESCRIPTION = (
    "You can call functions. To call one, answer with nothing but a JSON object of this form:\n"
    '{"name": <name>, "arguments": <arguments as a JSON object>}\n'
    "To call several, answer with nothing but a JSON list of such objects.\n"
    "When no function helps, answer in words.\n\nThe functions:\n"
    '{"name": "get_weather", "description": "Look up the weather.", "parameters": {"type": "object", "properties": '
    '{"unit": {"enum": ["celsius", "fahrenheit"]}, "city": {"type": "string", "maxLength": 8}, "days": {"type": '
    '"array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3}}, "required": ["unit", '
    '"city"], "additionalProperties": false}}\n'
    '{"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}, '
    '"additionalProperties": false}}'
)


def test_a_template_without_tools_is_told_in_its_system_message() -> None:
    system = {"role": "system", "content": "Be kind."}
    assert prompt("json", [system, *TWICE]) == (
        f"<|im_start|>system\nBe kind.\n\n{DESCRIPTION}<|im_end|>\n<|im_start|>user\nIs it warm?<|im_end|>\n"
        '<|im_start|>assistant\nWait.\n[{"name": "get_weather", "arguments": {"unit": "celsius", "city": "Paris"}}, '
        '{"name": "clock", "arguments": {}}]<|im_end|>\n<|im_start|>user\nResult of get_weather: 21\n'
        "Result of clock: noon<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nThanks.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert "JSON list" not in prompt("json", [USER], parallel=False)


def test_results_and_the_next_question_are_one_turn() -> None:
    """Many templates refuse two user turns in a row."""
    assert prompt("json", [*CHAT, USER], tools=[]).endswith(
        '<|im_start|>assistant\n{"name": "get_weather", "arguments": {"unit": "celsius", "city": "Paris"}}<|im_end|>\n'
        "<|im_start|>user\nResult of get_weather: 21\nIs it warm?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "template",
    [
        # The first template refuses a system message, the second leaves it out.
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% endfor %}",
        "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    ],
)
def test_a_template_without_system_messages_is_told_before_the_first_question(template: str) -> None:
    tokenizer = copied_tokenizer()
    tokenizer.chat_template = template
    assert tokenizer.decode(render_chat(tokenizer, [USER], tools=TOOLS)) == f"<user>{DESCRIPTION}\n\nIs it warm?"
    refused = "raise_exception" in template
    if refused:
        with pytest.raises(InvalidRequest, match="chat template says: no system"):
            render_chat(tokenizer, [{"role": "system", "content": "Be kind."}, USER], tools=TOOLS)


@pytest.mark.parametrize("model", ["mistralai/Mixtral-8x7B-Instruct-v0.1", "google/gemma-2-2b-it", "any"])
def test_models_without_a_template_are_told_too(model: str) -> None:
    tokenizer = copied_tokenizer()
    text = tokenizer.decode(render_chat(tokenizer, CHAT, find_template(model, "folder", "any"), tools=TOOLS))
    assert text.count(DESCRIPTION) == 1
    assert "Result of get_weather: 21" in text


@pytest.mark.parametrize("name", NAMES)
def test_messages_that_make_no_sense_are_the_requests_error(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"messages\[1\].tool_call_id = 'call_1': no message makes this call"):
        prompt(name, [USER, RESULT])


@pytest.mark.parametrize("arguments", ['{"a": "b', '{"a": "\\ud800"}', "[1]", "7"])
@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_was_cut_is_sent_back_as_text(name: str, arguments: str) -> None:
    """A client appends every message that it got; a 400 would end its conversation."""
    cut = {"role": "assistant", "content": None, "tool_calls": [call("call_1", arguments=arguments)]}
    assert f"clock{prompt(name, [USER, cut]).partition('clock')[2]}".count(arguments) == 1
    written = tool_tokenizer(name)
    format_ = find_tool_format(tool_template(written), written)
    result = {**RESULT, "content": "it was cut"}
    text = prompt(name, [USER, cut, result, {"role": "user", "content": "Again."}], tools=[])
    assert format_.form.write([("clock", arguments)]) in text
    assert "Result of clock: it was cut\nAgain." in text


@pytest.mark.parametrize("name", NAMES)
def test_a_chat_without_tools_is_what_it_was(name: str) -> None:
    """This includes messages with empty fields, as a schema produces them."""
    messages = [{**USER, "tool_calls": None, "name": None}, {"role": "assistant", "content": "No.", "tool_calls": []}]
    plain = [USER, {"role": "assistant", "content": "No."}]
    tokenizer = tool_tokenizer(name)
    ids = tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert render_chat(tokenizer, messages) == ids


def test_a_refusal_of_the_template_is_the_requests_error() -> None:
    tokenizer = tool_tokenizer("mistral")
    assert tokenizer.chat_template == MISTRAL
    with pytest.raises(InvalidRequest, match="chat template says: roles must alternate"):
        render_chat(tokenizer, [USER, USER], tools=TOOLS)


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 322), max_size=12))
def test_only_the_markers_of_calls_become_visible(ids: list[int]) -> None:
    """Other special tokens in an answer would disturb a user; without the markers no call would be found."""
    tokenizer = tool_tokenizer("mistral-args")
    shown = visible_decode(tokenizer, ("[TOOL_CALLS]", "[ARGS]"))
    hidden = visible_decode(tokenizer, ("no token",))
    markers = tokenizer.convert_tokens_to_ids(["[TOOL_CALLS]", "[ARGS]"])
    assert hidden(ids) == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if not set(ids) & set(markers):
        assert shown(ids) == hidden(ids)
    around = [*markers[:1], *ids, *markers[1:]]
    assert shown(around).startswith("[TOOL_CALLS]")
    assert shown(around).endswith("[ARGS]")
    assert "[CALL_ID]" not in shown(around)
