"""Calls as this year's models write them, with the text that their cards and templates show."""

import json
from typing import Any

import pytest
from tool_models import (
    CLOCK,
    NAMES,
    ROWS,
    TAGGED,
    WEATHER,
    Matcher,
    calls,
    content,
    in_chunks,
    tool_tokenizer,
    whole,
)

from run_gpt.errors import InvalidRequest
from run_gpt.models import render_chat
from run_gpt.models.tools import Function, find_tool_format, tool_template

ANY = Function("any")
TYPED = Function(
    "typed",
    parameters={
        "$defs": {"n": {"type": "integer"}},
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "count": {"$ref": "#/$defs/n"},
            "ratio": {"type": "number"},
            "deep": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "at": {"type": "string", "format": "date"},
        },
    },
)
FUNCTIONS = [WEATHER, CLOCK, ANY, TYPED]
PARIS = ("get_weather", '{"unit": "celsius", "city": "Paris"}')


def deepseek(words: str) -> str:
    return f"<\uff5ctool {words}\uff5c>".replace(" ", "\u2581")


BEGIN, CALL, SEP, END, LAST = map(deepseek, ("calls begin", "call begin", "sep", "call end", "calls end"))
SECTION = "<|tool_calls_section_begin|>"


def qwen(name: str, **arguments: str) -> str:
    parts = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{parts}</function>\n</tool_call>"


def glm(name: str, **arguments: str) -> str:
    parts = "".join(f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in arguments.items())
    return f"<tool_call>{name}\n{parts}</tool_call>"


def kimi(*made: str) -> str:
    return (
        SECTION
        + "".join(f"<|tool_call_begin|>{call}<|tool_call_end|>" for call in made)
        + SECTION.replace("begin", "end")
    )


ARGUMENT = "<|tool_call_argument_begin|>"
VALUES = {
    "text": "12",
    "count": "3",
    "ratio": "0.5",
    "deep": "True",
    "tags": '["a"]',
    "maybe": "null",
    "at": "2025-01-02",
}
AS_JSON = '{"text": "12", "count": 3, "ratio": 0.5, "deep": true, "tags": ["a"], "maybe": null, "at": "2025-01-02"}'
CASES: dict[str, tuple[str, str, str, list[tuple[str, str]]]] = {
    "qwen": ("qwen-coder", f"Wait.\n{qwen('get_weather', unit='celsius', city='Paris')}\n", "Wait.", [PARIS]),
    "qwen, twice": ("qwen-coder", f"{qwen('clock')}\n{qwen('any', a='1')}", "", [("clock", "{}"), ("any", '{"a": 1}')]),
    "qwen, without its first tag": ("qwen-coder", qwen("clock").replace("<tool_call>\n", ""), "", [("clock", "{}")]),
    "qwen, types": ("qwen-coder", qwen("typed", **VALUES), "", [("typed", AS_JSON)]),
    "qwen, lines and tags in a text": (
        "qwen-coder",
        qwen("typed", text='\n"a"\n</b>\n<parameter>\n'),
        "",
        [("typed", json.dumps({"text": '\n"a"\n</b>\n<parameter>\n'}))],
    ),
    "qwen, no function": ("qwen-coder", qwen("nobody", a="1"), qwen("nobody", a="1"), []),
    "qwen, cut in a text": (
        "qwen-coder",
        "<tool_call>\n<function=typed>\n<parameter=text>\nPar",
        "",
        [("typed", '{"text": "Par')],
    ),
    "qwen, cut before the name": ("qwen-coder", "<tool_call>\n<function=typ", "<tool_call>\n<function=typ", []),
    "qwen, as JSON": (
        "qwen-coder",
        '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
        "",
        [("clock", "{}")],
    ),
    "glm": ("glm", f"Wait.\n{glm('get_weather', unit='celsius', city='Paris')}", "Wait.", [PARIS]),
    "glm, twice": ("glm", f"{glm('clock')}\n{glm('any', a='x')} so", "so", [("clock", "{}"), ("any", '{"a": "x"}')]),
    "glm, types": ("glm", glm("typed", **VALUES), "", [("typed", AS_JSON)]),
    "glm, no arguments, no line": ("glm", "<tool_call>clock</tool_call>", "", [("clock", "{}")]),
    "glm, no function": ("glm", glm("nobody", a="1"), glm("nobody", a="1"), []),
    "deepseek": (
        "deepseek",
        f"Wait.{BEGIN}{CALL}function{SEP}get_weather\n```json\n{PARIS[1]}\n```{END}\n{CALL}function{SEP}clock\n```json\n{{}}\n```{END}{LAST}",
        "Wait.",
        [PARIS, ("clock", "{}")],
    ),
    "deepseek 3.1": (
        "deepseek-3.1",
        f"{BEGIN}{CALL}get_weather{SEP}{PARIS[1]}{END}{CALL}clock{SEP}{{}}{END}{LAST}",
        "",
        [PARIS, ("clock", "{}")],
    ),
    "deepseek, no function": (
        "deepseek-3.1",
        f"{BEGIN}{CALL}nobody{SEP}{{}}{END}{LAST}",
        f"{BEGIN}{CALL}nobody{SEP}{{}}{END}{LAST}",
        [],
    ),
    "kimi": (
        "kimi",
        "Wait." + kimi(f"functions.get_weather:0{ARGUMENT}{PARIS[1]}", f"functions.clock:1{ARGUMENT}{{}}"),
        "Wait.",
        [PARIS, ("clock", "{}")],
    ),
    "harmony": (
        "harmony",
        f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{PARIS[1]}",
        "",
        [PARIS],
    ),
    "harmony, the recipient first": (
        "harmony",
        f" to=functions.get_weather<|channel|>commentary json<|message|>{PARIS[1]}<|call|>",
        "",
        [PARIS],
    ),
    "harmony, after text": (
        "harmony",
        "I look.<|start|>assistant<|channel|>commentary to=functions.clock <|constrain|>json<|message|>{}<|call|>",
        "I look.",
        [("clock", "{}")],
    ),
    "harmony, another recipient": (
        "harmony",
        "<|channel|>commentary to=browser.search<|message|>{}",
        "<|channel|>commentary to=browser.search<|message|>{}",
        [],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_calls_are_found_whole_and_streamed(case: str) -> None:
    name, text, shown, made = CASES[case]
    pieces = whole(ROWS[name], FUNCTIONS, text)
    assert (calls(pieces), content(pieces)) == (made, shown)
    assert in_chunks(ROWS[name], FUNCTIONS, list(text)) == pieces


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_read_as_the_template_writes_it(name: str) -> None:
    """The history shows calls as the model writes them; gpt-oss writes the recipient in another place."""
    tokenizer = tool_tokenizer(name)
    row = find_tool_format(tool_template(tokenizer), tokenizer)
    call = {"id": "abcdefghi", "type": "function", "function": {"name": PARIS[0], "arguments": PARIS[1]}}
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    text = str(tokenizer.decode(render_chat(tokenizer, chat, tools=[WEATHER])))
    answer = text[text.rindex("x") + 1 :].replace("<assistant>", "")
    assert calls(whole(row, [WEATHER], answer)) == [PARIS]
    if name != "harmony":
        assert row.form.write([PARIS]).strip() in text.replace(', "id": "abcdefghi"', "")


def test_kimis_ids_have_names_and_numbers() -> None:
    tokenizer = tool_tokenizer("kimi")
    made = [
        {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": "{}"}}
        for i, name in enumerate(["clock", "get", "clock"])
    ]
    chat: list[dict[str, Any]] = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": made[:2]},
        {"role": "tool", "tool_call_id": "call_1", "content": "1"},
        {"role": "tool", "tool_call_id": "call_0", "content": "0"},
        {"role": "assistant", "content": None, "tool_calls": made[2:]},
        {"role": "tool", "tool_call_id": "call_2", "content": "2"},
    ]
    text = str(tokenizer.decode(render_chat(tokenizer, chat)))
    assert "<|tool_call_begin|>functions.clock:0" in text
    assert "## Return of functions.get:1\n1## Return of functions.clock:0\n0" in text
    assert text.count("functions.clock:2") == 2


@pytest.mark.parametrize("name", TAGGED)
def test_a_schema_that_tags_cannot_keep_is_refused_by_name(name: str) -> None:
    tokenizer = tool_tokenizer(name)
    row = find_tool_format(tool_template(tokenizer), tokenizer)
    for schema in ({"anyOf": [{"properties": {}}]}, {"properties": {}, "additionalProperties": {"type": "string"}}):
        with pytest.raises(InvalidRequest, match="cannot be enforced in this model's form of calls"):
            row.grammar([Function("f", parameters=schema)])


@pytest.mark.parametrize("name", TAGGED)
def test_each_type_of_an_argument_is_enforced(name: str) -> None:
    tokenizer = tool_tokenizer(name)
    row = find_tool_format(tool_template(tokenizer), tokenizer)
    matcher, grammar = Matcher(tokenizer), row.grammar([TYPED])
    write = {"glm": glm, "qwen-coder": qwen}[name]
    good = {"text": 'a "quoted"\nline', "count": "3", "deep": "true", "tags": '["a"]', "at": '"2025-01-02"'}
    assert matcher.accepts(grammar, tokenizer.encode(write("typed", **good), add_special_tokens=False))
    for bad in ({"count": "x"}, {"deep": "yes"}, {"tags": "a"}, {"at": '"x"'}, {"invented": "1"}):
        assert not matcher.accepts(grammar, tokenizer.encode(write("typed", **bad), add_special_tokens=False))
