"""Without these tests a stream of several prompts could begin, and then end with an error about one of them."""

from typing import Any

import pytest
from test_model import HELLO, model_of

from run_gpt.api.check import PromptsCheck
from run_gpt.api.schema import GenerateRequest
from run_gpt.errors import ContextLengthExceeded, InvalidRequest


def requests(*prompts: Any) -> list[GenerateRequest]:
    return [GenerateRequest.parse({"prompt": prompt, "max_new_tokens": 3, "stop": ["."]}) for prompt in prompts]


async def test_the_first_prompt_that_cannot_be_answered_is_named_and_none_is_run() -> None:
    model, engine = model_of(*HELLO)
    async with model:
        await model._check(requests("ab", [1, 2], "c"))
        with pytest.raises(ContextLengthExceeded, match="the prompt has 100 tokens"):
            await model._check(requests("ab", "x" * 100, [1000]))
        with pytest.raises(InvalidRequest, match="token id 1000 is outside the vocabulary"):
            await model._check(requests("ab", [1000], "x" * 100))
    assert not engine.asked


def test_a_check_carries_the_requests_over_the_inner_wire() -> None:
    asked = requests("ab", [1, 2], "\u00e9")
    body = PromptsCheck.of(asked).model_dump_json(exclude_none=True)
    assert PromptsCheck.model_validate_json(body).requests() == asked
    assert body.count("stop") == 1  # what they have in common is sent once
