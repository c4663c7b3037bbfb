"""Without these tests a model that must call could call until its length ends: 61 calls where it wanted one."""

from collections.abc import Callable, Iterator

import pytest
import torch
from families import VOCABULARY
from tool_models import CLOCK, NAMES, WEATHER, calls, content, tool_tokenizer

from run_gpt.models.grammar import GrammarCompiler
from run_gpt.models.token_bytes import TokenBytes
from run_gpt.models.tools import Piece, find_tool_format, joined, tool_template, visible_decode
from run_gpt.models.unrepeated import Unrepeated, UnrepeatedMatcher

END = 2
FUNCTIONS = [WEATHER, CLOCK]
PARIS = ("get_weather", '{"unit": "celsius", "city": "Paris"}')
PARMA = ("get_weather", '{"unit": "celsius", "city": "Parma"}')
NOON = ("clock", "{}")


class Model:
    """Tokenizer with its format, and a model of its answers that follows a script."""

    def __init__(self, name: str):
        self.tokenizer = tool_tokenizer(name)
        self.format = find_tool_format(tool_template(self.tokenizer), self.tokenizer)
        self.compiler = GrammarCompiler(self.tokenizer, VOCABULARY, [END])
        self.decode = visible_decode(self.tokenizer, self.format.visible)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def matcher(self) -> UnrepeatedMatcher:
        grammar = self.compiler.compile("lark", self.format.grammar(FUNCTIONS))
        return Unrepeated(
            grammar, lambda: self.format.parser(FUNCTIONS, once=True), TokenBytes(self.tokenizer)
        ).matcher()

    def answer(self, wanted: Callable[[list[int]], list[int]]) -> list[Piece]:
        """Return the answer of a model that takes the first allowed token of those `wanted` after its tokens."""
        matcher, ids = self.matcher(), []
        while len(ids) < 400:
            mask = matcher.mask()
            token = next(one for one in (*wanted(ids), *torch.nonzero(mask).flatten().tolist()) if mask[one])
            assert matcher.allows(token)
            if token == END:
                break
            matcher.advance(token)
            ids.append(token)
        else:
            raise AssertionError(f"it does not stop: {self.decode(ids)}")
        parser = self.format.parser(FUNCTIONS, once=True)
        return joined([piece for char in self.decode(ids) for piece in parser.push(char)] + parser.finish())


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    model = Model(request.param)
    yield model
    model.compiler.close()


@pytest.mark.parametrize("after", ["", "\n", " ", "\n\n"])
def test_a_model_that_wants_to_end_after_a_line_break_does(model: Model, after: str) -> None:
    script = [*model.ids(model.format.form.write([PARIS])), *model.ids(after), END]

    def wanted(ids: list[int]) -> list[int]:
        return [script[len(ids)]] if ids == script[: len(ids)] and len(ids) < len(script) else [END]

    pieces = model.answer(wanted)
    assert (calls(pieces), content(pieces)) == ([PARIS], "")


@pytest.mark.parametrize("made", [[PARIS], [PARIS, NOON], [PARIS, PARMA]])
def test_a_call_is_not_made_again(model: Model, made: list[tuple[str, str]]) -> None:
    if model.format.single or (model.format.form.single_is_bare and len(made) == 1):
        return
    script = model.ids(model.format.form.write(made * 20))

    def wanted(ids: list[int]) -> list[int]:
        return [script[len(ids)]] if ids == script[: len(ids)] else []

    pieces = model.answer(wanted)
    assert (calls(pieces), content(pieces)) == (made, "")


def test_calls_that_differ_in_their_last_letter_are_all_made(model: Model) -> None:
    if model.format.single:
        return
    made = [PARIS, PARMA, ("get_weather", '{"unit": "celsius", "city": "Pari"}'), NOON]
    script = [*model.ids(model.format.form.write(made)), END]
    pieces = model.answer(lambda ids: [script[len(ids)]])
    assert (calls(pieces), content(pieces)) == (made, "")


def test_a_second_call_that_is_cut_is_given_as_far_as_it_came(model: Model) -> None:
    if model.format.single:
        return
    text = model.format.form.write([PARIS, PARIS])
    parser = model.format.parser(FUNCTIONS, once=True)
    cut = text.rindex("Paris") + 3
    pieces = joined([*parser.push(text[:cut]), *parser.finish()])
    assert calls(pieces) == [PARIS, (PARIS[0], PARIS[1][: PARIS[1].index("Paris") + 3])]
    assert not parser.repeated
