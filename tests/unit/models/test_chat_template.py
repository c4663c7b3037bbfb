"""A chat must reach the model in the form it was trained on, and a refusal must be the request's error."""

from pathlib import Path
from typing import Any

import pytest

from run_gpt.errors import InvalidRequest
from run_gpt.models import render_chat

CHAT = [{"role": "user", "content": "hello world"}]


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def test_the_own_template_is_used_up_to_the_answer(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }} : {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} assistant{% endif %}"
    )
    ids = render_chat(tokenizer, CHAT)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "user", ":", "hello", "world", "assistant"]


def test_without_a_template_a_plain_one_is_used_with_a_warning(tokenizer: Any) -> None:
    with pytest.warns(UserWarning, match="no chat template"):
        ids = render_chat(tokenizer, CHAT)
    assert tokenizer.convert_ids_to_tokens(ids) == ["User", ":", "hello", "world", "Assistant", ":"]


def test_a_template_that_refuses_is_an_invalid_request(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InvalidRequest, match="System role not supported") as caught:
        render_chat(tokenizer, [{"role": "system", "content": "hello"}])
    assert caught.value.param == "messages"
