"""Reading of a model's thinking. Without it users get thoughts as the answer, or lose a part of either."""

import random

import pytest
from families import copied_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from reasoning_models import BODIES, PROMPT_ENDS, TEMPLATES, reasoning_tokenizer
from tool_models import TEMPLATES as TOOL_TEMPLATES

from run_gpt.models.reasoning import FORMATS, ReasoningFormat, find_reasoning_format, thinking_values

CASES = [(name, *body) for name, bodies in BODIES.items() for body in bodies]
FOUND = {name: find_reasoning_format(reasoning_tokenizer(name)) for name in TEMPLATES}
PARTS = ("begin", "end", "first", "last")
MARKS = sorted({getattr(mark, part) for form in FORMATS for mark in form.marks for part in PARTS})
CHANNELS = ["<|channel|>", "final<|message|>", "<|end|>", "<|start|>assistant"]
bits = st.sampled_from([*MARKS, *CHANNELS, " ", "\n\n", "<thi", "k>", "a"])


def form_of(name: str) -> ReasoningFormat:
    form = FOUND[name]
    assert form is not None
    return form


def read(name: str, parts: list[str], resumed: str = "") -> tuple[str, str]:
    """Return the thinking and the content of an answer that comes in these parts."""
    parser = form_of(name).parser(PROMPT_ENDS.get(name, "<|im_start|>assistant\n"), resumed)
    pieces = [*map(parser.push, parts), parser.finish()]
    return "".join(thought for thought, _ in pieces), "".join(text for _, text in pieces)


@pytest.mark.parametrize(("name", "answer", "thought", "text"), CASES)
def test_thinking_is_apart_from_the_answer(name: str, answer: str, thought: str, text: str) -> None:
    assert read(name, [answer]) == (thought, text)
    assert read(name, list(answer)) == (thought, text)


@given(st.sampled_from(sorted(TEMPLATES)), st.lists(bits, max_size=12), st.integers(0, 2**32))
def test_the_parts_do_not_depend_on_how_an_answer_is_cut(name: str, some: list[str], seed: int) -> None:
    answer, choose = "".join(some), random.Random(seed)
    cuts = sorted(choose.randrange(len(answer) + 1) for _ in range(choose.randrange(6)))
    parts = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert read(name, parts) == read(name, [answer]) == read(name, list(answer))


def test_templates_without_thinking_are_left_alone() -> None:
    tokenizer = copied_tokenizer()
    for name, template in {"": None, **TOOL_TEMPLATES}.items():
        if name == "harmony":
            continue  # it has channels for its thinking
        tokenizer.chat_template = template
        assert find_reasoning_format(tokenizer) is None


def test_the_format_is_that_of_the_template() -> None:
    names = {name: form_of(name).name for name in TEMPLATES}
    assert names == {
        **{"qwen": "think", "deepseek": "think", "smol": "think", "magistral": "magistral"},
        **{"granite": "granite-words", "response": "response", "harmony": "harmony"},
    }
    tokenizer = reasoning_tokenizer("qwen")
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": TEMPLATES["qwen"]}
    form = find_reasoning_format(tokenizer)
    assert form is not None
    assert form.visible == ("</think>", "<think>")


def test_a_prompt_that_ends_the_thinking_leaves_none_to_the_answer() -> None:
    assert form_of("qwen").closed("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not form_of("qwen").closed("<|im_start|>user\nwhat is </think>?<|im_end|>\n<|im_start|>assistant\n")


def test_a_message_that_is_continued_may_be_within_its_thinking() -> None:
    assert read("qwen", ["us.</think>\n\n4"], resumed="<think>\nLet ") == ("us.", "4")
    assert read("qwen", ["us"], resumed="<think>a</think>Let ") == ("", "us")


def test_the_switch_of_thinking_has_the_template_s_own_name() -> None:
    assert thinking_values(TEMPLATES["granite"], {"enable_thinking": False}) == {
        "enable_thinking": False,
        "thinking": False,
    }
    assert thinking_values(TEMPLATES["qwen"], {"enable_thinking": False}) == {"enable_thinking": False}
