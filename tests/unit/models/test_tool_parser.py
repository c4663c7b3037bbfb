"""A client must get every call as the model wrote it, and all text outside of calls, streamed or not."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_models import ANYTHING, CLOCK, JSON_NAMES, NAMES, ROWS, WEATHER, calls, content, in_chunks, whole

from run_gpt.models.tools import ArgumentsPiece, CallPiece, Function, TextPiece
from run_gpt.models.tools.parsers import DEEPSEEK

FUNCTIONS = [WEATHER, CLOCK, ANYTHING]
KNOWN = [function.name for function in FUNCTIONS]
# Parts of calls, of incomplete calls and of similar texts.
BITS = (
    *(
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "<",
        "</",
        "[TOOL_CALLS]",
        "[TOOL",
        "[ARGS]",
        "[CALL_ID]",
        "<|python_tag|>",
    ),
    *(
        "<function=get>",
        "<parameter=a>",
        "</parameter>",
        "</function>",
        "get\n<arg_key>a</arg_key>",
        "<arg_value>",
        "</arg_value>",
        *DEEPSEEK[:3],
        "<|tool_call_begin|>functions.get:0",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        "<|channel|>commentary to=functions.get",
        "<|message|>",
        "<|start|>",
        "to=functions.get",
    ),
    *(
        '{"name": ',
        '"get"',
        '"clock"',
        '"nobody"',
        ', "arguments": ',
        ', "parameters": ',
        '{"name": "get", "arguments": ',
    ),
    *(
        '{"a": 1}',
        "{}",
        '"{\\"a\\": \\"\\\\u00e9\\"}"',
        '"\\ud83d\\ude00"',
        '"\\ud83d"',
        "null",
        "[1, 2]",
        '{"a": "}"}',
    ),
    *(
        "get",
        "clock",
        "{",
        "}",
        "[",
        "]",
        ",",
        ";",
        ":",
        '"',
        "\\",
        "'",
        " ",
        "\n",
        "\n\n",
        "\u3000",
        "é",
        "日本",
        "😀",
        "words",
    ),
)
texts = st.lists(st.sampled_from(BITS) | st.text(max_size=3), max_size=14).map("".join)
values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
arguments = st.tuples(
    st.dictionaries(st.text(max_size=5), values, max_size=4), st.booleans(), st.sampled_from([None, 2])
).map(lambda given: json.dumps(given[0], ensure_ascii=given[1], indent=given[2]))
some_calls = st.lists(st.tuples(st.sampled_from(KNOWN), arguments), min_size=1, max_size=3)
words = st.text(alphabet="abc <[{}]>/\n\té\"':,;", max_size=12).filter(lambda text: bool(text.strip()))
formats = st.sampled_from(NAMES)
json_formats = st.sampled_from(JSON_NAMES)


def cut(text: str, seed: int) -> list[str]:
    """Return `text` in chunks of random lengths, some empty."""
    choose = random.Random(seed)
    marks = sorted(choose.randrange(len(text) + 1) for _ in range(choose.randrange(12)))
    return [text[a:b] for a, b in zip([0, *marks], [*marks, len(text)], strict=True)]


@settings(max_examples=400, deadline=None)
@given(name=formats, text=texts, seed=st.integers(0, 2**32), parallel=st.booleans())
def test_a_stream_is_its_whole_answer_however_it_is_cut(name: str, text: str, seed: int, parallel: bool) -> None:
    at_once = whole(ROWS[name], FUNCTIONS, text, parallel=parallel)
    assert in_chunks(ROWS[name], FUNCTIONS, cut(text, seed), parallel=parallel) == at_once
    assert in_chunks(ROWS[name], FUNCTIONS, list(text), parallel=parallel) == at_once


@settings(max_examples=400, deadline=None)
@given(name=formats, text=texts)
def test_an_answer_without_calls_is_its_text_to_the_last_character(name: str, text: str) -> None:
    pieces = whole(ROWS[name], FUNCTIONS, text)
    if not calls(pieces):
        assert content(pieces) == text
    at = 0
    for piece in pieces:  # the text comes from the answer, in its order
        if isinstance(piece, TextPiece):
            at = text.index(piece.text, at) + len(piece.text)
    assert whole(ROWS[name], [], text) == ([TextPiece(text)] if text else [])


@settings(max_examples=300, deadline=None)
@given(name=json_formats, made=some_calls, seed=st.integers(0, 2**32))
def test_calls_come_back_as_they_were_written(name: str, made: list[tuple[str, str]], seed: int) -> None:
    row = ROWS[name]
    between = "<|call|>" if name == "harmony" else "; "
    text = between.join(row.form.write([call]) for call in made) if row.single else row.form.write(made)
    pieces = in_chunks(row, FUNCTIONS, cut(text, seed))
    assert (calls(pieces), content(pieces)) == (made, "")
    first = in_chunks(row, FUNCTIONS, cut(text, seed), parallel=False)
    assert (calls(first), content(first)) == (made[:1], "")


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(["hermes", "mistral", "mistral-nemo", "mistral-args"]),
    parts=st.lists(st.tuples(words, some_calls), min_size=1, max_size=3),
    last=words,
    seed=st.integers(0, 2**32),
)
def test_text_around_calls_is_content_without_the_white_space_between(
    name: str, parts: list[tuple[str, list[tuple[str, str]]]], last: str, seed: int
) -> None:
    row = ROWS[name]
    text = "".join(f"{before}\n{row.form.write(made)} \n" for before, made in parts) + last
    pieces = in_chunks(row, FUNCTIONS, cut(text, seed))
    assert calls(pieces) == [call for _, made in parts for call in made]
    shown = [parts[0][0].rstrip(), *(before.strip() for before, _ in parts[1:]), last.lstrip()]
    assert [piece.text for piece in pieces if isinstance(piece, TextPiece)] == shown


@settings(max_examples=200, deadline=None)
@given(name=json_formats, call=st.tuples(st.sampled_from(KNOWN), arguments), length=st.floats(0, 1))
def test_a_call_that_is_cut_off_is_given_as_far_as_it_came(name: str, call: tuple[str, str], length: float) -> None:
    text = ROWS[name].form.write([call])
    text = text[: int(len(text) * length)]
    pieces = whole(ROWS[name], FUNCTIONS, text)
    if found := calls(pieces):
        assert content(pieces) == ""
        assert found[0][0] == call[0]
        assert call[1].startswith(found[0][1])
    else:
        assert content(pieces) == text


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(["hermes", "llama", "json"]), text=arguments, escaped=st.booleans())
def test_arguments_in_a_string_come_out_of_it(name: str, text: str, escaped: bool) -> None:
    row = ROWS[name]
    quoted = json.dumps(text, ensure_ascii=escaped)
    assert calls(whole(row, FUNCTIONS, row.form.write([("get", quoted)]))) == [("get", text)]


CALL = '{"name": "get", "arguments": {"a": 1}}'
CASES: dict[str, tuple[str, str, str, list[tuple[str, str]]]] = {
    "markers within an argument": (
        "hermes",
        '<tool_call>{"name": "get", "arguments": {"a": "</tool_call><tool_call>{"}}</tool_call>',
        "",
        [("get", '{"a": "</tool_call><tool_call>{"}')],
    ),
    "braces and quotes in strings": (
        "hermes",
        '<tool_call>{"name": "get", "arguments": {"a}": "\\"}{\\\\"}}</tool_call>',
        "",
        [("get", '{"a}": "\\"}{\\\\"}')],
    ),
    "a name within the arguments": (
        "json",
        '{"arguments": {"name": "clock"}, "name": "get"}',
        "",
        [("get", '{"name": "clock"}')],
    ),
    "an unknown name": ("json", '{"name": "nobody", "arguments": {}}', '{"name": "nobody", "arguments": {}}', []),
    "an unknown name, then a known one": (
        "hermes",
        f'<tool_call>{{"name": "nobody", "arguments": {{}}}}</tool_call>\n<tool_call>{CALL}</tool_call>',
        '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>',
        [("get", '{"a": 1}')],
    ),
    "a list with an unknown name": (
        "mistral",
        f'[TOOL_CALLS] [{CALL}, {{"name": "nobody"}}] so',
        ', {"name": "nobody"}] so',
        [("get", '{"a": 1}')],
    ),
    "two beginnings": ("hermes", f"<tool_call><tool_call>{CALL}", "<tool_call>", [("get", '{"a": 1}')]),
    "half a beginning": ("hermes", f"<<tool <tool_cal <tool_call>{CALL}", "<<tool <tool_cal", [("get", '{"a": 1}')]),
    "no end": ("hermes", f"<tool_call>{CALL}\n<tool_call>{CALL}", "", [("get", '{"a": 1}'), ("get", '{"a": 1}')]),
    "no closing brace": (
        "hermes",
        '<tool_call>{"name": "get", "arguments": {"a": 1</tool_call> so',
        "so",
        [("get", '{"a": 1')],
    ),
    "other members": (
        "llama",
        '{"type": "function", "name": "get", "parameters": {"a": 1}, "why": {"because": ["}"]}}',
        "",
        [("get", '{"a": 1}')],
    ),
    "no arguments": ("json", '{"name": "clock"}', "", [("clock", "{}")]),
    "a record that has a name": ("json", '{"name": "clock", "age": 3}\n', '{"name": "clock", "age": 3}\n', []),
    "words first": ("json", f"I call {CALL}", "I call", [("get", '{"a": 1}')]),
    "words after": ("json", f"\n{CALL}\n\nThat was it. ", "That was it. ", [("get", '{"a": 1}')]),
    "a list of other things": ("json", "[1, 2]", "[1, 2]", []),
    "code for Llama's interpreter": ("llama", "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    "Llama's tag before a call": (
        "llama",
        '\n<|python_tag|> {"name": "get", "parameters": {}}',
        "",
        [("get", "{}")],
    ),
    "Mistral's id": (
        "mistral",
        '[TOOL_CALLS][{"name": "get", "arguments": {}, "id": "abcdefghi"}]',
        "",
        [("get", "{}")],
    ),
    "Mistral's other id": ("mistral-args", "[TOOL_CALLS]get[CALL_ID]abcdefghi[ARGS]{}", "", [("get", "{}")]),
    "Mistral without the second marker": (
        "mistral-args",
        '[TOOL_CALLS]get_weather{"a": 1}[TOOL_CALLS]get{}',
        "",
        [("get_weather", '{"a": 1}'), ("get", "{}")],
    ),
    "half a character": ("json", '{"name": "get", "arguments": "\\ud83d"}', "", [("get", "\ufffd")]),
    "empty": ("json", "", "", []),
    "white space": ("hermes", " \n ", " \n ", []),
}


@pytest.mark.parametrize("case", CASES)
def test_strange_answers_lose_nothing(case: str) -> None:
    name, text, shown, made = CASES[case]
    pieces = in_chunks(ROWS[name], FUNCTIONS, list(text))
    assert (content(pieces), calls(pieces)) == (shown, made)
    assert whole(ROWS[name], FUNCTIONS, text) == pieces


OBJECT = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
LAID_OUT = '{\n  "name": "get_weather",\n  "arguments": {"city": "Paris"}\n}'
MADE = ("get_weather", '{"city": "Paris"}')
BARE: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "bare": (OBJECT, "", [MADE]),
    "laid out": (f"{LAID_OUT}\n", "", [MADE]),
    "in a fence": (f"```json\n{LAID_OUT}\n```", "", [MADE]),
    "in a fence without a language": (f"```\n{OBJECT}\n```\n", "", [MADE]),
    "in a fence on one line": (f"``` {OBJECT} ```", "", [MADE]),
    "in tags of another format": (f"<tools>\n{OBJECT}\n</tools>", "", [MADE]),
    "with text around": (f"I look.\n\n```json\n{OBJECT}\n```\n\nWait.", "I look.Wait.", [MADE]),
    "within a line": (f"Sure: {OBJECT} and so on", "Sure:and so on", [MADE]),
    "doubled braces": ('{{"name": "get", "arguments": {"a": {"b": 1}}}}', "", [("get", '{"a": {"b": 1}}')]),
    "doubled braces everywhere": ('{{"name": "get", "arguments": {{"a": 1}}}}\n', "", [("get", '{"a": 1}')]),
    "parameters": ('{"name": "get", "parameters": {"a": 1}}', "", [("get", '{"a": 1}')]),
    "arguments first": ('{"arguments": {"a": 1}, "name": "get"}', "", [("get", '{"a": 1}')]),
    "no arguments": ('```json\n{"name": "clock"}\n```', "", [("clock", "{}")]),
    "empty arguments": ('{"name": "clock", "arguments": {}}', "", [("clock", "{}")]),
    "as requests have it": (
        '{"type": "function", "function": {"name": "get", "arguments": {"a": 1}}}',
        "",
        [("get", '{"a": 1}')],
    ),
    "a function by its name": ('{"function": "get", "arguments": {"a": 1}}', "", [("get", '{"a": 1}')]),
    "a list": (f"[{OBJECT}, {CALL}]", "", [MADE, ("get", '{"a": 1}')]),
    "a list in a fence": (f"```json\n[\n  {OBJECT},\n  {CALL}\n]\n```", "", [MADE, ("get", '{"a": 1}')]),
    "two objects": (f"{OBJECT}\n{CALL}", "", [MADE, ("get", '{"a": 1}')]),
    "two in a fence": (f"```json\n{OBJECT}\n{CALL}\n```", "", [MADE, ("get", '{"a": 1}')]),
    "two fences": (
        f"First:\n```json\n{OBJECT}\n```\nthen\n```json\n{CALL}\n```",
        "First:then",
        [MADE, ("get", '{"a": 1}')],
    ),
    "after code": (f"```python\nx = 1\n```\n{OBJECT}", "```python\nx = 1\n```", [MADE]),
    "cut in its arguments": ('```json\n{"name": "get", "arguments": {"a": "b', "", [("get", '{"a": "b')]),
}
NO_CALL = {
    "a name of no function": '```json\n{"name": "nobody", "arguments": {}}\n```',
    "a record": '{"name": "get", "age": 3}',
    "a value in another one": '{"steps": {"name": "get", "arguments": {}}}',
    "in a list of another one": '{"steps": [\n  {"name": "get", "arguments": {}}\n]}',
    "later in a list": '[{"name": "Ann", "age": 3},\n {"name": "get", "arguments": {}}]',
    "in a line's code": 'Write `{"name": "get", "arguments": {}}`.',
    "in a string": '{"text": "a {\\"name\\": \\"get\\"}"}',
    "code": '```python\ndef get():\n    return {"city": "Paris"}\n```\n',
    "no value": '{"name": "get", "arguments": }',
    "cut before its name": '```json\n{"name": "ge',
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", BARE)
def test_an_object_with_a_functions_name_is_a_call_in_every_format(case: str, name: str) -> None:
    """Qwen 2.5 Coder, and small models, write fences where their template asks for tags."""
    text, shown, made = BARE[case]
    pieces = whole(ROWS[name], FUNCTIONS, text)
    assert (calls(pieces), content(pieces)) == (made, shown)
    assert in_chunks(ROWS[name], FUNCTIONS, list(text)) == pieces


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", NO_CALL)
def test_other_objects_are_text(case: str, name: str) -> None:
    pieces = in_chunks(ROWS[name], FUNCTIONS, list(NO_CALL[case]))
    assert (calls(pieces), content(pieces)) == ([], NO_CALL[case])


def test_only_what_may_be_a_call_is_held_back() -> None:
    """A client that waits for an answer in JSON must see it grow."""
    for begin, shown in (
        ('{"city', '{"city'),
        ('{"name": "nob', '{"name": "nob'),
        ('{"name": "ge', ""),
        ("``", ""),
        ("```python\nx", "```python\nx"),
        ("```" + "a" * 40, "```" + "a" * 40),
        ("[1", "[1"),
        ("[{", ""),
    ):
        for row in ROWS.values():
            parser = row.parser(FUNCTIONS)
            assert content([piece for char in begin for piece in parser.push(char)]) == shown


def test_arguments_are_streamed_as_they_come() -> None:
    """Without this, a user of a stream would wait for the whole call."""
    parser = ROWS["hermes"].parser([ANYTHING], parallel=True)
    assert parser.push("Let me see. <tool") == [TextPiece("Let me see.")]
    assert parser.push('_call>\n{"name": "get", "arguments": ') == []
    assert not parser.called
    assert parser.push('{"a') == [CallPiece(0, "get"), ArgumentsPiece(0, '{"a')]
    assert parser.called
    assert parser.push('": 1}') == [ArgumentsPiece(0, '": 1}')]
    assert parser.push("}\n</tool") == []
    assert parser.push("_call>") == []
    assert parser.finish() == []
    assert parser.finish() == []


def test_a_long_answer_takes_time_in_proportion() -> None:
    """An answer of white space or of unfinished calls must not stop the server."""
    function = [Function("get")]
    for text in (" " * 15_000, "[" * 15_000, '{"' + "a" * 15_000, "<tool_call>{" * 1_500):
        for row in ROWS.values():
            assert content(whole(row, function, text)) == text
    long = "\\u00e9" * 10_000 + "\\ud83d" * 10_000
    assert calls(whole(ROWS["json"], function, f'{{"name": "get", "arguments": "{long}"}}')) == [
        ("get", "\u00e9" * 10_000 + "\ufffd" * 10_000)
    ]
