"""Options of a chat's rendering. Without these tests a value, a name or a text to continue could be lost in silence."""

from typing import Any

import pytest
from families import copied_tokenizer

from run_gpt.errors import InvalidRequest
from run_gpt.models import render_chat
from run_gpt.models.template_options import TemplateOptions

TURNS = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "one, two, "}]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}: {{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
    "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}"
)


def text(messages: list[dict[str, Any]], template: str = TEMPLATE, **options: Any) -> str:
    tokenizer = copied_tokenizer()
    tokenizer.chat_template = template
    return str(tokenizer.decode(render_chat(tokenizer, messages, options=TemplateOptions(**options))))


def test_a_template_reads_the_values_of_a_request() -> None:
    assert text(TURNS[:1], values={"enable_thinking": False, "self": 1}).endswith("assistant:False")
    assert text(TURNS[:1], values={"messages": [], "add_generation_prompt": False}).startswith("user: Count.")


def test_a_prompt_may_end_with_the_last_message() -> None:
    assert text(TURNS, add_prompt=False) == "user: Count.;assistant: one, two, ;"
    assert text(TURNS, continue_last=True) == "user: Count.;assistant: one, two, "


def test_a_message_is_continued_where_it_ends_in_a_template_that_trims() -> None:
    assert text(TURNS, TEMPLATE.replace("m.content", "m.content | trim"), continue_last=True).endswith("one, two,")
    with pytest.raises(InvalidRequest, match="does not show the last message"):
        text(TURNS, TEMPLATE.replace("messages", "messages[:1]"), continue_last=True)


@pytest.mark.parametrize("continue_last", [False, True])
def test_names_are_shown_or_refused(continue_last: bool) -> None:
    named = [{**TURNS[0], "name": "Ann"}, TURNS[1]]
    assert text(named, continue_last=continue_last).startswith("user Ann: Count.")
    with pytest.raises(InvalidRequest, match=r"messages\[0\].name: .* role 'user'") as refused:
        text(named, TEMPLATE.replace("m.name", "false"), continue_last=continue_last)
    assert refused.value.param == "messages[0].name"
    assert text([{**TURNS[0], "name": "user"}], TEMPLATE.replace("m.name", "false")).startswith("user: Count.")
