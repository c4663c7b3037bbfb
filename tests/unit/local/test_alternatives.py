"""Without these tests, an answer that may be a form or calls could be neither, and this would break a client."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace

import jsonschema
import pytest
import torch
from families import VOCABULARY
from tool_models import CLOCK, NAMES, WEATHER, calls, content, tool_tokenizer, whole

from run_gpt.errors import InvalidRequest
from run_gpt.local.alternatives import Alternatives, AlternativesMatcher
from run_gpt.models.grammar import GrammarCompiler, Kind
from run_gpt.models.tools import find_tool_format, tool_template, visible_decode

END = 2
FUNCTIONS = [replace(WEATHER, strict=True), replace(CLOCK, strict=True)]
PARIS = ("get_weather", '{"unit": "celsius", "city": "Paris"}')
WRONG = ("get_weather", '{"unit": "kelvin", "city": "Paris"}')
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "maximum": 99, "minimum": 0},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORMS: dict[str, tuple[Kind, str, list[str], list[str]]] = {
    "json_object": ("json_object", "", ["{}", '{\n  "name": "Ann"\n}', '{"a":[1]}'], ["[1]", "words", "{"]),
    "json_schema": ("json_schema", json.dumps(SCHEMA), ['{"name": "Ann", "age": 7}'], ["{}", '{"name": "Ann"}']),
    "regex": ("regex", r"[a-z]+|(?s:\{.*)", ["words", "{ what}"], ["Words", ""]),
    "choice": ("choice", '["yes", "{no}"]', ["yes", "{no}"], ["ye", "words"]),
}


class Model:
    """Tokenizer with its format and grammars."""

    def __init__(self, name: str):
        self.tokenizer = tool_tokenizer(name)
        self.format = find_tool_format(tool_template(self.tokenizer), self.tokenizer)
        self.decode = visible_decode(self.tokenizer, self.format.visible)
        self.compiler = GrammarCompiler(self.tokenizer, VOCABULARY, [END])

    def grammar(self, kind: Kind, source: str) -> Alternatives:
        text = self.compiler.compile("lark", self.format.text_grammar(FUNCTIONS))
        made = self.compiler.compile("lark", self.format.optional_grammar(FUNCTIONS, text=False))
        return Alternatives([[self.compiler.compile(kind, source), text], [made]])

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    model = Model(request.param)
    yield model
    model.compiler.close()


def accepts(matcher: AlternativesMatcher, ids: list[int]) -> bool:
    """Return True if these tokens are a complete answer; `mask` and `allows` must agree at each token."""
    for token in ids:
        allowed = matcher.allows(token)
        assert bool(matcher.mask()[token]) == allowed
        if not allowed:
            return False
        matcher.advance(token)
    assert bool(matcher.mask()[END]) == matcher.allows(END)
    return matcher.allows(END)


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_is_in_the_form_or_calls_and_nothing_else(model: Model, form: str) -> None:
    kind, source, good, bad = FORMS[form]
    grammar, write = model.grammar(kind, source), model.format.form.write
    for text in (*good, write([PARIS]), write([("clock", "{}")])):
        assert accepts(grammar.matcher(), model.ids(text)), text
    for text in (*bad, write([WRONG]), write([("clock", "[]")])):
        assert not accepts(grammar.matcher(), model.ids(text)), text


@pytest.mark.parametrize("form", ["json_schema", "choice"])
def test_whatever_is_drawn_is_one_of_both(model: Model, form: str) -> None:
    kind, source, good, _ = FORMS[form]
    grammar = model.grammar(kind, source)
    for seed in range(12):
        choose, matcher, ids = random.Random(seed), grammar.matcher(), []
        while not (matcher.allows(END) and choose.random() < 0.5):
            allowed = [token for token in torch.nonzero(matcher.mask()).flatten().tolist() if token != END]
            if not allowed:
                break
            ids.append(choose.choice(allowed))
            matcher.advance(ids[-1])
            assert len(ids) < 600
        pieces = whole(model.format, FUNCTIONS, model.decode(ids))
        for name, arguments in calls(pieces):
            jsonschema.validate(json.loads(arguments), next(f.schema() for f in FUNCTIONS if f.name == name))
        text = content(pieces)
        assert bool(text) != bool(calls(pieces))
        if text and form == "json_schema":
            jsonschema.validate(json.loads(text), SCHEMA)
        assert form != "choice" or text in ("", *good)


def test_what_must_come_is_known_when_one_way_is_left(model: Model) -> None:
    """Forced tokens make such answers faster; without them they would be as slow as without a grammar."""
    matcher = model.grammar("choice", '["yes, of course"]').matcher()
    matcher.advance(model.ids("y")[0])
    assert model.decode(matcher.forced()).startswith("es, of")


def test_a_form_that_only_a_call_would_fit_ends_the_request_with_a_reason() -> None:
    """Without the reason, it would be a server error, which the client could not correct."""
    model = Model("json")
    text = '{"name":  "clock"}'
    matcher = model.grammar("choice", json.dumps([text])).matcher()
    with pytest.raises(InvalidRequest, match="begins as a call") as caught:
        accepts(matcher, model.ids(text))
    assert caught.value.param == "response_format"
    model.compiler.close()
