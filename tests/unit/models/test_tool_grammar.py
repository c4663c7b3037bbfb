"""A required call must call a known function with arguments that its schema allows; otherwise a client breaks."""

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from families import as_sentencepiece_files, copied_tokenizer
from tool_models import ANYTHING, CLOCK, NAMES, WEATHER, Matcher, calls, content, tool_tokenizer, whole
from transformers import AutoTokenizer

from run_gpt.errors import InvalidRequest
from run_gpt.models.tools import Function, find_tool_format, tool_template, visible_decode
from run_gpt.models.tools.formats import ToolFormat

FUNCTIONS = [WEATHER, CLOCK]
PARIS = ("get_weather", '{"unit": "celsius", "city": "Paris"}')
NESTED = Function(
    'say "hi"',
    parameters={
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": ["next"],
                "additionalProperties": False,
            }
        },
        "properties": {"zeta": {"$ref": "#/$defs/node"}, "alpha": {"type": "boolean"}},
        "required": ["alpha", "zeta"],
        "additionalProperties": False,
    },
)


class Model:
    """Tokenizer with its format and llguidance."""

    def __init__(self, name: str):
        self.tokenizer = tool_tokenizer(name)
        self.format: ToolFormat = find_tool_format(tool_template(self.tokenizer), self.tokenizer)
        self.matcher = Matcher(self.tokenizer)
        self.decode = visible_decode(self.tokenizer, self.format.visible)

    def accepts(self, made: list[tuple[str, str]], functions: list[Function] = FUNCTIONS, **choice: Any) -> bool:
        ids = self.tokenizer.encode(self.format.form.write(made), add_special_tokens=False)
        return self.matcher.accepts(self.format.grammar(functions, **choice), ids)


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> Model:
    return Model(request.param)


def test_the_grammar_takes_calls_and_nothing_else(model: Model) -> None:
    assert model.accepts([PARIS])
    assert model.accepts([("clock", "{}")])
    assert not model.accepts([("nobody", "{}")])
    assert not model.accepts([("get_weather", "{}")])
    assert not model.accepts([("get_weather", '{"unit": "kelvin", "city": "Paris"}')])
    assert not model.accepts([("get_weather", '{"city": "Paris", "unit": "celsius"}')])  # not in the schema's order
    assert not model.accepts([("clock", '{"a": 1}')])
    assert not model.accepts([("get_weather", PARIS[1][:-1])])
    words = model.tokenizer.encode("The wind was good.", add_special_tokens=False)
    assert not model.matcher.accepts(model.format.grammar(FUNCTIONS), words)


def test_a_named_function_is_the_one_that_is_called(model: Model) -> None:
    assert model.accepts([PARIS], name="get_weather")
    assert not model.accepts([("clock", "{}")], name="get_weather")
    assert model.format.single or not model.accepts([PARIS, PARIS], name="get_weather")


def test_several_calls_are_for_those_who_want_them(model: Model) -> None:
    if not model.format.single:
        assert model.accepts([PARIS, ("clock", "{}"), PARIS])
        assert not model.accepts([PARIS, ("clock", "{}")], parallel=False)
    assert model.accepts([PARIS], parallel=False)


def test_a_function_without_a_schema_takes_any_object(model: Model) -> None:
    assert model.accepts([("get", "{}")], [ANYTHING])
    assert model.accepts([("get", '{"a": [1, {"b": null}]}')], [ANYTHING])
    assert not model.accepts([("get", "[]")], [ANYTHING])


def test_arguments_have_no_names_but_those_of_the_schema(model: Model) -> None:
    """A small model would go on with invented arguments until its length ends."""
    schema: dict[str, Any] = {"properties": {"city": {"type": "string"}}}
    invented = [("find", '{"city": "Rome", "invented": 1}')]
    assert not model.accepts(invented, [Function("find", parameters=schema)])
    assert model.accepts(invented, [Function("find", parameters={**schema, "additionalProperties": True})])
    ids = model.tokenizer.encode(model.format.form.write(invented), add_special_tokens=False)
    grammar = model.format.optional_grammar([Function("find", parameters=schema, strict=True)])
    assert not model.matcher.accepts(grammar, ids)


@pytest.mark.parametrize("parallel", [True, False])
def test_whatever_a_model_writes_by_the_grammar_is_read_back(model: Model, parallel: bool) -> None:
    functions = [WEATHER, CLOCK, *([NESTED] if model.format.form.quoted else [])]
    schemas = {function.name: function.schema() for function in functions}
    grammar = model.format.grammar(functions, parallel=parallel)
    for seed in range(15):
        ids = model.matcher.sample(grammar, random.Random(seed))
        pieces = whole(model.format, functions, model.decode(ids), parallel=True)
        made = calls(pieces)
        assert content(pieces) == ""
        assert made
        assert parallel or len(made) == 1
        for name, text in made:
            jsonschema.validate(json.loads(text), schemas[name])
            assert list(json.loads(text)) == [key for key in schemas[name]["properties"] if key in json.loads(text)]


def test_markers_that_are_tokens_are_written_as_tokens(model: Model) -> None:
    """A model knows the token, not the letters of its name."""
    ids = model.matcher.sample(model.format.grammar(FUNCTIONS), random.Random(0))
    first = model.format.form.write([PARIS])
    for marker, token in model.format.tokens.items():
        assert (token in ids) == (marker in first)


def test_choices_that_cannot_be_made_are_the_requests_error(model: Model) -> None:
    with pytest.raises(InvalidRequest, match="names 'nobody'; the functions in tools: 'get_weather', 'clock'"):
        model.format.grammar(FUNCTIONS, name="nobody")
    with pytest.raises(InvalidRequest, match="a call is required; the functions in tools: none"):
        model.format.grammar([])
    with pytest.raises(InvalidRequest, match="parameters of 'f' have type = 'string'"):
        model.format.grammar([Function("f", parameters={"type": "string"})])


def test_markers_are_letters_where_the_tokenizer_has_no_token_for_them() -> None:
    tokenizer = tool_tokenizer("json")
    tokenizer.chat_template = tool_template(tool_tokenizer("hermes"))
    row = find_tool_format(tokenizer.chat_template, tokenizer)
    assert (row.name, row.visible) == ("hermes", ())
    ids = tokenizer.encode(row.form.write([PARIS]), add_special_tokens=False)
    assert Matcher(tokenizer).accepts(row.grammar(FUNCTIONS), ids)


def test_sentencepiece_spells_calls_too(tmp_path: Path) -> None:
    """Mistral 7B's tokenizer is of this kind: it writes spaces, and drops a space at the beginning of a text."""
    copied_tokenizer().save_pretrained(tmp_path)
    as_sentencepiece_files(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(["[TOOL_CALLS]"], special_tokens=True)
    row = find_tool_format(tool_template(tool_tokenizer("mistral")), tokenizer)
    ids = tokenizer.encode(row.form.write([PARIS]), add_special_tokens=False)
    assert Matcher(tokenizer).accepts(row.grammar(FUNCTIONS), ids)
    assert calls(whole(row, FUNCTIONS, visible_decode(tokenizer, row.visible)(ids))) == [PARIS]
