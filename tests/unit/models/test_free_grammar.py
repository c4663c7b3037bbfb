"""Answers in text or calls: strict calls must follow their schema, and the model's text must not be changed."""

import json
import random
import re
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from families import copied_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_models import ANYTHING, CLOCK, NAMES, WEATHER, Matcher, calls, content, in_chunks, tool_tokenizer, whole

from run_gpt.models.tools import find_tool_format, tool_template, visible_decode
from run_gpt.models.tools.formats import ToolFormat

STRICT = replace(WEATHER, strict=True)
FUNCTIONS = [STRICT, CLOCK, ANYTHING]  # only the first one's schema is enforced
PARIS = ("get_weather", '{"unit": "celsius", "city": "Paris"}')
WRONG = ("get_weather", '{"unit": "kelvin", "city": "Paris"}')
TEXTS = (
    "The capital of France is Paris.",
    "Zwölf Boxkämpfer\n\n\tjagen 日本 😀 \u00a0\u3000 \x00 end",
    'Say `{"name": "get_weather", "arguments": {"unit": "kelvin"}}` and it calls.',
    '{"steps": [ {"name": "get_weather"}, {"name": "get_weather"}], "then" : {"name": "get"}}',
    '{"city": "Paris", "unit": "kelvin"}',
    '{"name": "Alice", "arguments": 7}',
    '{"name": "get_weather_of_the_moon"}',
    '[{"name": "Alice"}, {"name": "get_weather", "arguments": 7}]',
    '{"arguments": {"unit": "kelvin"}, "name": "get_weather"}',
    '{"name": "get\\u005fweather", "arguments": {}}',
    '\u3000{"name": "get_weather", "arguments": 7}',
    "{ [ ( < </tool_call> [ARGS] <|python_tag|> <tool_cal [TOOL_CALL",
    "<think>\n</think>\n",
    '{"name": "get_weath',
    "",
)
BITS = (
    *(
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|python_tag|>",
        "<|im_start|>",
        "[",
        "]",
        ", ",
    ),
    *('{"name": ', '{ "name" :\n', '"get_weather"', '"get"', '"nobody"', "get_weather", "get", ', "arguments": ', "}"),
    *('{"name": "get_weather", "arguments": ', ', "parameters": ', '"arguments": {}', PARIS[1], WRONG[1], "{}", "{"),
    *(" ", "\n", "\u3000", "日", "words", '"', ";"),
)
some_texts = st.tuples(
    st.sampled_from(["", "", "<|im_start|>"]),
    st.lists(st.sampled_from(BITS) | st.text(st.characters(codec="utf-8"), max_size=3), max_size=8).map("".join),
).map("".join)


INNER = re.compile(r'(?:\[|"[ \t\r\n]*:|[}\]"][ \t\r\n]*,)[ \t\r\n]*\Z')


class Model:
    """Tokenizer with its format and llguidance."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.format: ToolFormat = find_tool_format(tool_template(tokenizer), tokenizer)
        self.matcher = Matcher(tokenizer)
        self.decode = visible_decode(tokenizer, self.format.visible)
        self.grammar = self.format.optional_grammar(FUNCTIONS)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def accepts(self, text: str, **options: Any) -> bool:
        grammar = self.format.optional_grammar(FUNCTIONS, **options) if options else self.grammar
        return self.matcher.accepts(grammar, self.ids(text))

    def begins_call(self, text: str) -> bool:
        """Return True if a call begins in the text that the answer's tokens show."""
        return self.begins(self.decode(self.ids(text)))

    def begins(self, shown: str) -> bool:
        form = self.format.form
        if form.marker and form.marker in shown:
            return True
        tag = rf"{re.escape(form.tag)}[ \t\r\n]*|" if form.tag else ""
        listed = "" if form.between is None else r"(?:\[[ \t\r\n]*)?"
        pattern = rf'({tag}(?:\A|(?<=[ \t\r\n])){listed})\{{\s*"name"\s*:\s*"(?:get_weather|clock|get)"'
        doubled = pattern.replace(listed, "").replace(r"\{", r"\{\{", 1)
        found = [*re.finditer(pattern, shown, re.ASCII), *re.finditer(doubled, shown, re.ASCII)]
        return any(one[1] or not INNER.search(shown[: one.start()]) for one in found)


def without_markers() -> Any:
    """Return a tokenizer with Hermes's template but without tokens for its markers."""
    tokenizer = copied_tokenizer()
    tokenizer.chat_template = tool_template(tool_tokenizer("hermes"))
    return tokenizer


MODELS = {**{name: Model(tool_tokenizer(name)) for name in NAMES}, "hermes in letters": Model(without_markers())}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    return MODELS[request.param]


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_free(model: Model, text: str) -> None:
    assert model.accepts(text)
    assert calls(whole(model.format, FUNCTIONS, text)) == []
    assert content(whole(model.format, FUNCTIONS, text)) == text


def test_no_token_of_a_text_is_made_less_likely(model: Model) -> None:
    """If the mask lacked a token that may occur in a text, it would change the model's answers."""
    state = model.matcher.start(model.grammar)
    for token in model.ids("It is warm {today}.\n"):
        missing = set(range(len(model.tokenizer))) - set(model.matcher.allowed(state))
        raw = [model.tokenizer.convert_ids_to_tokens(token) for token in missing]
        assert all(len(text) == 1 and "\ufffd" in model.tokenizer.convert_tokens_to_string([text]) for text in raw)
        assert state.consume_token(token)


def test_strict_calls_keep_to_their_schema_and_others_to_an_object(model: Model) -> None:
    write = model.format.form.write
    assert model.accepts(write([PARIS]))
    assert not model.accepts(write([WRONG]))
    assert not model.accepts(write([("get_weather", "{}")]))
    assert model.accepts(write([("clock", '{"a": [1, null]}')]))
    assert not model.accepts(write([("clock", "[1]")]))
    assert not model.accepts(write([PARIS])[:-1] if model.format.form.end else write([("clock", "{")]))
    assert not model.accepts(write([PARIS]) + "x")
    assert model.accepts(write([PARIS, ("get", "{}")])) != model.format.single
    assert not model.accepts(write([PARIS, PARIS]), parallel=False)
    assert model.accepts(write([PARIS]), parallel=False)


def test_a_text_may_stand_before_a_marker_and_nothing_but_calls_after_it(model: Model) -> None:
    if not model.format.form.marker:
        return
    assert model.accepts("I look it up.\n" + model.format.form.write([PARIS]))
    assert not model.accepts("I look it up.\n" + model.format.form.write([WRONG]))
    assert not model.accepts(model.format.form.marker + "nobody")
    assert not model.accepts(model.format.form.write([("nobody", "{}")]))


@pytest.mark.parametrize("name", ["json", "llama"])
def test_a_call_without_marker_begins_however_its_beginning_is_spaced(name: str) -> None:
    model = MODELS[name]
    key = model.format.form.arguments
    for begin in ('\n { "name":\t"get_weather"', "<|im_start|>" + '{"name": "get_weather"'):
        assert model.accepts(f"{begin}{key}{PARIS[1]}}}")
        assert not model.accepts(f"{begin}{key}{WRONG[1]}}}")
        assert not model.accepts(begin + "}")
    assert MODELS["json"].accepts('[ {"name":"get_weather", "arguments": ' + PARIS[1] + "}]", parallel=False)
    assert MODELS["llama"].accepts('<|python_tag|>{"name": "get_weather", "parameters": ' + PARIS[1] + "}")
    assert MODELS["llama"].accepts('<|python_tag|>brave_search.call(query="weather")')


def test_a_tokenizers_own_tokens_are_text_like_any_other() -> None:
    """A call that begins with such a token would otherwise escape the grammar."""
    tokenizer = tool_tokenizer("json")
    tokenizer.add_tokens(['{"name": "get', "   ", "<mark>"])
    model = Model(tokenizer)
    assert model.accepts(model.format.form.write([PARIS]))
    assert not model.accepts(model.format.form.write([WRONG]))
    assert not model.accepts("   " + model.format.form.write([WRONG]))
    assert model.accepts('   so <mark> {"name": "get')


@settings(max_examples=400, deadline=None)
@given(name=st.sampled_from(sorted(MODELS)), text=some_texts)
def test_what_is_no_call_is_free_and_what_is_read_as_a_strict_call_is_one(name: str, text: str) -> None:
    """Clients use arguments of strict functions without a check; all other answers must reach the user unchanged."""
    model = MODELS[name]
    accepted = model.accepts(text)
    begins = model.begins_call(text)
    # After a token of a mark, which the answer may not show, a call may begin for the grammar only.
    assert accepted or begins or model.begins_call(re.sub(r"<\|im_start\|>|</tool_call>", " ", text))
    made = calls(whole(model.format, FUNCTIONS, model.decode(model.ids(text))))
    if accepted:
        assert bool(made) == begins
        check(made)


def check(made: list[tuple[str, str]]) -> None:
    for name, arguments in made:
        jsonschema.validate(json.loads(arguments), STRICT.schema() if name == STRICT.name else {"type": "object"})


def test_what_a_model_draws_is_read_back_streamed_or_not(model: Model) -> None:
    """Draw any allowed tokens, from the beginning and from the middle of a call."""
    functions = [STRICT, replace(CLOCK, strict=True)]
    grammar = model.format.optional_grammar(functions)
    begun = model.format.form.write([PARIS]).partition("Paris")[0]
    for seed in range(20):
        begin = model.ids(begun) if seed % 2 else []
        text = model.decode(model.matcher.sample(grammar, random.Random(seed), begin=begin, end=0.5))
        pieces = whole(model.format, functions, text)
        assert in_chunks(model.format, functions, list(text)) == pieces
        assert calls(pieces) or not begin
        check(calls(pieces))


def test_in_a_text_without_calls_none_can_begin(model: Model) -> None:
    """Otherwise, answers in a form would be read as calls that follow no schema."""
    grammar = model.format.text_grammar(FUNCTIONS)
    for made in ([PARIS], [WRONG], [("get", "{}")], [PARIS, PARIS]):
        assert not model.matcher.accepts(grammar, model.ids(model.format.form.write(made)))
    for text in ('{"a": {"name": "get"}}', "[1]", "日本\n", '{"name": "Alice"}', ""):
        assert model.matcher.accepts(grammar, model.ids(text))
