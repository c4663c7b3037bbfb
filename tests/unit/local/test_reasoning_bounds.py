"""Bounds of a model's thinking: without these tests a form would bind the thoughts, or a budget not end them."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from reasoning_models import PROMPT_ENDS, reasoning_tokenizer

from run_gpt.api.schema import ChatRequest
from run_gpt.engine.grammar import Matcher
from run_gpt.engine.request import Request, TokenEvent, TokenLogprob
from run_gpt.engine.text import StopTexts
from run_gpt.local.answers import PieceWriter
from run_gpt.local.preparation import Preparation
from run_gpt.local.prompts import Prompts, answer_decoder
from run_gpt.local.workers import Workers
from run_gpt.models.grammar import GrammarCompiler
from run_gpt.models.templates import PLAIN

MESSAGES = [{"role": "user", "content": "x"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


class Thinker:
    """Model of one format: its tokenizer, and its grammars as the engine gets them."""

    def __init__(self, name: str):
        self.name = name
        self.tokenizer = reasoning_tokenizer(name)
        self.loaded: Any = SimpleNamespace(
            tokenizer=self.tokenizer, chat_template=PLAIN, vocabulary=len(self.tokenizer), sampling={}
        )
        self.prompts = Prompts(self.loaded)
        self.end = self.tokenizer.eos_token_id
        self.compiler = GrammarCompiler(self.tokenizer, len(self.tokenizer), [self.end])

    def ids(self, text: str) -> list[int]:
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def matcher(self, prompt: str | None = None, *, form: bool = True, **fields: Any) -> Matcher:
        request = ChatRequest.parse({"messages": MESSAGES, **fields})
        prompt = PROMPT_ENDS.get(self.name, "<|im_start|>assistant\n") if prompt is None else prompt
        reasoning = self.prompts.reasoning
        inner = reasoning.text_form(self.compiler.compile("json_schema", json.dumps(SCHEMA))) if form else None
        grammar = reasoning.grammar(request, self.ids(prompt), inner, [self.end])
        assert grammar is not None
        return grammar.matcher()

    def write(self, matcher: Matcher, wanted: str, most: int = 200) -> str:
        """Return the answer of a model that wants to write this text and then end, as far as the grammar lets it."""
        script, answer = [*self.ids(wanted), self.end], list[int]()
        while len(answer) < most:
            token = script[0]
            if matcher.allows(token):
                script.pop(0)
            else:
                token = int(np.flatnonzero(matcher.mask().numpy())[0])
                assert matcher.allows(token)
            assert matcher.mask()[token]
            assert list(matcher.forced())[:1] in ([], [token])
            if token == self.end:
                break
            matcher.advance(token)
            answer.append(token)
        return str(self.tokenizer.decode(answer))


@pytest.fixture(scope="module")
def thinkers() -> Iterator[dict[str, Thinker]]:
    made = {name: Thinker(name) for name in ("qwen", "deepseek", "granite", "harmony")}
    yield made
    for thinker in made.values():
        thinker.compiler.close()


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("qwen", '<think>\nIt is {"a": 2}, so.\n</think>\n\n{"a": 4}'),
        ("qwen", '{"a": 4}'),
        ("deepseek", 'It is 4.\n</think>\n{"a": 4}'),
        ("deepseek", '</think>{"a": 4}'),
        ("granite", 'Here is my thought process:\nEasy: 4.\nHere is my response:{"a": 4}'),
        (
            "harmony",
            '<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>{"a": 4}',
        ),
        ("harmony", '<|channel|>final<|message|>{"a": 4}'),
    ],
)
def test_a_form_binds_what_follows_the_thinking(thinkers: dict[str, Thinker], name: str, answer: str) -> None:
    assert thinkers[name].write(thinkers[name].matcher(), answer) == answer


async def test_a_form_of_a_request_has_the_mark_of_an_answer_before_it(thinkers: dict[str, Thinker]) -> None:
    harmony = thinkers["harmony"]
    preparation = Preparation(harmony.prompts, harmony.compiler, 1000, Workers())
    form = {"type": "choice", "choice": ["yes", "no"]}
    grammar = await preparation._grammar(ChatRequest.parse({"messages": MESSAGES, "response_format": form}), "")
    assert grammar is not None
    answer = "<|channel|>final<|message|>yes"
    assert harmony.write(grammar.matcher(), answer) == answer


async def test_with_tools_a_text_in_the_form_has_the_mark_and_calls_have_their_own(
    thinkers: dict[str, Thinker],
) -> None:
    harmony = thinkers["harmony"]
    preparation = Preparation(harmony.prompts, harmony.compiler, 1000, Workers())
    asked = {
        "response_format": {"type": "choice", "choice": ["yes", "no"]},
        "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
    }
    grammar = await preparation._grammar(ChatRequest.parse({"messages": MESSAGES, **asked}), "")
    assert grammar is not None
    text = "<|channel|>final<|message|>yes"
    call = '{"name": "look", "arguments": {}}'  # the form of a model whose template shows none
    assert harmony.write(grammar.matcher(), text) == text
    assert harmony.write(grammar.matcher(), call) == call
    assert harmony.write(grammar.matcher(), "<|channel|>final<|message|>maybe") != "<|channel|>final<|message|>maybe"


def test_a_form_is_held_where_the_model_would_leave_it(thinkers: dict[str, Thinker]) -> None:
    qwen = thinkers["qwen"]
    said = qwen.write(qwen.matcher(), "<think>I say yes.</think>\n\n\n\nYes.", most=60)
    thought, _, text = said.partition("</think>")
    assert thought == "<think>I say yes."
    assert text.lstrip("\n").startswith("{")
    cut = qwen.matcher()
    for token in qwen.ids("<think>Hm"):
        cut.advance(token)
    assert not cut.allows(qwen.end), "an answer in a form must not end with its thoughts"


def test_a_form_binds_all_of_an_answer_without_thinking(thinkers: dict[str, Thinker]) -> None:
    qwen = thinkers["qwen"]
    matcher = qwen.matcher("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not matcher.allows(qwen.ids("<think>")[0])


@pytest.mark.parametrize("budget", [0, 1, 5])
@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize("name", ["qwen", "deepseek", "granite", "harmony"])
def test_a_budget_ends_the_thinking_at_the_token(
    thinkers: dict[str, Thinker], name: str, form: bool, budget: int
) -> None:
    thinker = thinkers[name]
    format_ = thinker.prompts.reasoning.format
    assert format_ is not None
    begin, end = (getattr(format_.marks[0], part) for part in ("begin", "end"))
    begin = "" if name == "deepseek" else begin
    thoughts = " so it goes on and on, for ever"
    matcher = thinker.matcher(form=form, max_reasoning_tokens=budget)
    said = thinker.write(matcher, f"{begin}{thoughts}", most=120)
    expected = thinker.tokenizer.decode([*thinker.ids(begin), *thinker.ids(thoughts)[:budget]])
    assert said.startswith(f"{expected}{end}{format_.gap}")
    assert said.count(end) == 1


def test_thinking_within_the_budget_is_left_alone(thinkers: dict[str, Thinker]) -> None:
    answer = "<think>\nEasy.\n</think>\n\nIt is <think> 4."
    assert thinkers["qwen"].write(thinkers["qwen"].matcher(form=False, max_reasoning_tokens=50), answer) == answer


def written(thinker: Thinker, answer: str, prompt: str = "x", finish: Any = "stop", **fields: Any) -> Any:
    """Return the piece of a whole answer."""
    ids = thinker.ids(answer)
    request = ChatRequest.parse({"messages": MESSAGES, **fields})
    prepared = Request(id="chatcmpl-1", prompt_ids=tuple(thinker.ids(prompt)), max_new_tokens=99)
    logprobs = tuple(TokenLogprob(i, -1.0) for i in ids) if "logprobs" in fields else ()
    text = answer_decoder(thinker.loaded)(ids)
    event = TokenEvent(0, text, len(ids), finish, logprobs=logprobs, token_ids=tuple(ids))
    return PieceWriter("m", thinker.prompts, request, prepared).piece(event)


@pytest.mark.parametrize("name", ["qwen", "granite", "harmony"])
def test_tokens_of_the_thinking_are_counted(thinkers: dict[str, Thinker], name: str) -> None:
    thinker = thinkers[name]
    format_ = thinker.prompts.reasoning.format
    assert format_ is not None
    mark = format_.marks[0]
    piece = written(thinker, f"{mark.begin} Let me see{mark.end}{format_.gap}{format_.answer}4")
    assert piece.reasoning.strip() == "Let me see"
    assert piece.text == "4"
    assert piece.reasoning_tokens == len(thinker.ids(" Let me see"))
    assert written(thinker, f"{format_.answer}4").reasoning_tokens == 0
    opened = "<|start|>assistant" if name == "harmony" else ""
    piece = written(thinker, " Let me see", prompt=f"{opened}{mark.begin}", finish="length")
    assert (piece.reasoning.strip(), piece.reasoning_tokens) == ("Let me see", len(thinker.ids(" Let me see")))


@pytest.mark.parametrize("name", ["qwen", "granite", "harmony"])
def test_log_probabilities_are_those_of_the_answer(thinkers: dict[str, Thinker], name: str) -> None:
    format_ = thinkers[name].prompts.reasoning.format
    assert format_ is not None
    mark = format_.marks[0]
    for thought in (f"{mark.begin} Let me see{mark.end}{format_.gap}", ""):
        piece = written(thinkers[name], f"{thought}{format_.answer}It is 4.", logprobs=0)
        tokens = json.loads(b"[" + b",".join(piece.logprobs) + b"]")
        assert "".join(token["token"] for token in tokens) == piece.text == "It is 4."


@pytest.mark.parametrize(
    ("name", "answer", "stop", "shown"),
    [
        ("qwen", "<think>a. b.</think>\n\nc. d", ".", "<think>a. b.</think>\n\nc"),
        ("qwen", "\n<think>a\nb</think>c\nd", "\n", "\n<think>a\nb</think>c"),
        ("qwen", "\nc. d", "\n", ""),
        ("qwen", "c. d", ".", "c"),
        ("qwen", "<think>a.</think>b", "</think>", "<think>a."),
        ("qwen", "<think>a. <", ".", "<think>a. <"),
        ("deepseek", "a. b.</think>c. d", ".", "a. b.</think>c"),
        (
            "harmony",
            "<|channel|>analysis<|message|>a.<|end|><|start|>assistant<|channel|>final<|message|>b. c",
            ".",
            "<|channel|>analysis<|message|>a.<|end|><|start|>assistant<|channel|>final<|message|>b",
        ),
    ],
)
def test_a_stop_counts_in_the_answer_only(
    thinkers: dict[str, Thinker], name: str, answer: str, stop: str, shown: str
) -> None:
    """Otherwise a stop such as a blank line ends most answers amid their thoughts."""
    thinker = thinkers[name]
    prompt = thinker.ids(PROMPT_ENDS.get(name, "x"))
    request = ChatRequest.parse({"messages": MESSAGES, "stop": stop})
    make = thinker.prompts.reasoning.unstopped(request, prompt)
    for parts in ([answer], list(answer)):
        stops = StopTexts([stop], None if make is None else make())
        said, stopped = "", False
        for part in parts:
            text, stopped = stops.push(part)
            said += text
            if stopped:
                break
        assert (said + ("" if stopped else stops.flush()), stopped) == (shown, shown != answer)


def test_thoughts_beside_a_call_are_no_calls(thinkers: dict[str, Thinker]) -> None:
    tools = [{"type": "function", "function": {"name": "get"}}]
    call = '{"name": "get", "arguments": {}}'
    piece = written(thinkers["qwen"], f"<think>I write {call}: no.</think>\n\n{call}", tools=tools)
    assert piece.reasoning == f"I write {call}: no."
    assert [part.name for part in piece.calls if part.name] == ["get"]
    assert (piece.text, piece.finish) == ("", "tool_calls")
