"""Our errors in OpenAI's client: without these tests a program that handles OpenAI's errors could miss ours."""

import asyncio
import json
from typing import Any

import openai
import pytest
from waiting import wait_until


def script(**fields: Any) -> str:
    return json.dumps(fields)


@pytest.fixture
def client(stack: Any) -> Any:
    with openai.OpenAI(base_url=f"{stack.http}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


CALLS = ["completions", "chat", "responses"]


def create(client: Any, call: str, prompt: str, **fields: Any) -> Any:
    """Make the call with the sync or the async client."""
    if call == "completions":
        return client.completions.create(model="scripted", prompt=prompt, **fields)
    if call == "chat":
        return client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": prompt}], **fields
        )
    return client.responses.create(model="scripted", input=prompt, **fields)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("invalid_value", openai.BadRequestError),
        ("model_not_found", openai.NotFoundError),
        ("queue_full", openai.RateLimitError),
        ("internal_error", openai.InternalServerError),
        ("unavailable", openai.InternalServerError),
        ("deadline_exceeded", openai.InternalServerError),
    ],
)
def test_an_error_is_the_class_that_programs_catch(
    client: openai.OpenAI, call: str, code: str, kind: type[openai.APIStatusError], stream: bool
) -> None:
    error = {"message": "so it is", "code": code, "param": None}
    with pytest.raises(kind) as raised:
        create(client, call, script(words=[], then="error", error=error), stream=stream)
    assert raised.value.code == code
    assert "so it is" in raised.value.message
    if code == "queue_full":
        assert raised.value.response.headers["Retry-After"] == "1"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("then", ["error", "raise", "stop silently"])
def test_a_stream_that_fails_raises_after_what_came(client: openai.OpenAI, call: str, then: str) -> None:
    """A program must not mistake half an answer for a whole one."""
    error = {"message": "so it is", "code": "unavailable"}
    events = create(client, call, script(words=["a", "b"], then=then, error=error), stream=True)
    came = [next(events)]
    with pytest.raises(openai.APIError) as raised:
        came += events
    assert came
    assert raised.value.code == ("unavailable" if then == "error" else "internal_error")


@pytest.mark.parametrize("call", CALLS)
async def test_an_async_stream_that_is_left_ends_its_request(stack: Any, call: str) -> None:
    before = len(stack.journal)
    async with openai.AsyncOpenAI(base_url=f"{stack.http}/v1", api_key="none", max_retries=0) as client:
        events = await create(client, call, script(words=["a"], then="hang"), stream=True)
        await anext(events)
        await events.close()
    await asyncio.to_thread(wait_until, lambda: "cancelled" in [line[0] for line in stack.journal[before:]])
    await asyncio.to_thread(wait_until, lambda: stack.ready()["in_flight"] == 0)


def test_one_prompt_of_several_that_fails_ends_them_all(client: openai.OpenAI, stack: Any) -> None:
    """Otherwise the other prompts would go on without a reader."""
    before = len(stack.journal)
    failing = script(words=[], then="error", error={"message": "so it is", "code": "invalid_value"})
    prompts = [script(words=["a"], then="hang"), failing]
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="scripted", prompt=prompts)
    wait_until(lambda: stack.ready()["in_flight"] == 0)

    def ended() -> bool:
        lines = [line[0] for line in stack.journal[before:]]  # all of them have the same id
        return len(lines) == 2 * lines.count("begin")

    wait_until(ended)


def test_a_body_over_the_limit_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="100000") as raised:
        create(client, "completions", "x" * 150_000)
    assert (raised.value.status_code, raised.value.code) == (413, "request_too_large")
