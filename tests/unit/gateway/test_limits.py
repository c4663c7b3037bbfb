"""Limits of keys: without these tests one key could take the whole server, or a request never get its turn."""

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any, cast

import pytest

from run_gpt.api.answers import Choice, GenerateAnswer, Usage
from run_gpt.api.openai.completions import CompletionRequest
from run_gpt.api.pieces import Whole
from run_gpt.api.schema import GenerateRequest
from run_gpt.config import GatewayConfig
from run_gpt.errors import DeadlineExceeded, InvalidRequest, QueueFull, RateLimited
from run_gpt.gateway import limits as module
from run_gpt.gateway import record
from run_gpt.gateway.limits import Limits
from run_gpt.gateway.record import Record
from run_gpt.gateway.rights import Rights
from run_gpt.gateway.service import Service

ASKED = GenerateRequest(prompt="x" * 400)
LONG = 60.0


class Time:
    """Clock that the test sets forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(module, "time", time)
    return time


def call(key: str | None = "alice", **rights: Any) -> Record:
    return Record(method="POST", route="/generate", key=key, rights=Rights(**rights))


async def spend(limits: Limits, of: Record, tokens: int) -> None:
    async with limits.use(of, ASKED, LONG) as use:
        use.tokens = tokens


async def test_a_key_has_its_requests_at_once_and_others_do_not_notice() -> None:
    limits = Limits()
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(limits.use(call(requests=2), ASKED, LONG))
        for _ in range(3):
            with pytest.raises(RateLimited, match="requests=2: 2 of its requests run") as raised:
                await spend(limits, call(requests=2), 1)
            assert raised.value.retry_after >= 1
        await spend(limits, call("bob", requests=2), 1)
        await spend(limits, call("carol"), 1)
        await spend(limits, call(None), 1)
        assert limits.accounts["alice"].running == 2
        assert limits.accounts["alice"].limited == {"requests": 3, "tokens": 0}
    await spend(limits, call(requests=2), 1)
    assert [account.running for account in limits.accounts.values()] == [0, 0, 0]


async def test_tokens_are_made_good_evenly_and_the_error_says_when(time: Time) -> None:
    limits = Limits()
    await spend(limits, call(tokens=600), 500)
    await spend(limits, call(tokens=600), 1000)  # nobody knows before how many it will be
    for seconds in (91, 46):
        with pytest.raises(RateLimited, match="tokens=600 a minute") as raised:
            await spend(limits, call(tokens=600), 1)
        assert raised.value.retry_after == seconds
        time.now += 45 + (seconds == 46)
    await spend(limits, call(tokens=600), 1)
    assert limits.accounts["alice"].tokens == 1501
    time.now += 3600
    await spend(limits, call(tokens=600), 599)
    await spend(limits, call(tokens=600), 0)
    assert limits.accounts["alice"].limited == {"requests": 0, "tokens": 2}


async def test_a_limit_that_is_set_later_counts_from_then_on(time: Time) -> None:
    limits = Limits()
    await spend(limits, call(), 10**6)
    await spend(limits, call(tokens=10), 9)
    await spend(limits, call(tokens=10), 9)
    with pytest.raises(RateLimited):
        await spend(limits, call(tokens=10), 9)
    await spend(limits, call(), 9)


async def test_a_request_that_is_refused_or_fails_costs_nothing_and_gives_its_place_back() -> None:
    limits = Limits()
    for error in (QueueFull("full"), ZeroDivisionError()):
        with pytest.raises(type(error)):
            async with limits.use(call(requests=1), ASKED, LONG):
                raise error
    assert (limits.accounts["alice"].running, limits.accounts["alice"].tokens) == (0, 0)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), DeadlineExceeded("late"), GeneratorExit()])
async def test_a_request_that_nobody_waited_for_costs_what_is_known_or_about_its_prompt(error: BaseException) -> None:
    """Otherwise a client that leaves before each end would pay for nothing."""
    limits = Limits()

    async def leave(known: int) -> None:
        async with limits.use(call(), ASKED, LONG) as use:
            use.tokens = known
            raise error

    for known in (0, 7):
        with pytest.raises(type(error)):
            await leave(known)
    assert 100 <= limits.accounts["alice"].tokens - 7 <= 120


async def test_a_call_of_more_requests_than_the_limit_has_them_in_turns() -> None:
    """Documents of one message: a 429 for the call would be a 429 for ever."""
    limits, one_call = Limits(), call(requests=2)
    together, most = 0, 0

    async def one(i: int) -> int:
        nonlocal together, most
        async with limits.use(one_call, ASKED, LONG):
            together += 1
            most = max(most, together)
            await asyncio.sleep(0.001)
            together -= 1
        return i

    assert await asyncio.gather(*(one(i) for i in range(20))) == list(range(20))
    assert most == 2
    assert limits.accounts["alice"].running == 0


async def test_turns_are_given_in_order_and_those_who_leave_lose_none() -> None:
    limits, one_call = Limits(), call(requests=1)
    order: list[int] = []
    first = AsyncExitStack()
    await first.enter_async_context(limits.use(one_call, ASKED, LONG))

    async def one(i: int) -> None:
        async with limits.use(one_call, ASKED, LONG):
            order.append(i)

    tasks = [asyncio.create_task(one(i)) for i in range(5)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    with pytest.raises(RateLimited):
        await spend(limits, call(requests=1), 1)
    await first.aclose()
    tasks[0].cancel()  # at the moment at which it gets its turn
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [2, 3, 4]
    assert limits.accounts["alice"].running == 0


async def test_a_turn_that_does_not_come_is_late_at_the_deadline() -> None:
    limits, one_call = Limits(), call(requests=1)
    async with limits.use(one_call, ASKED, LONG):
        with pytest.raises(DeadlineExceeded, match="requests=1"):
            async with limits.use(one_call, ASKED, 0.01):
                pass
    await spend(limits, one_call, 1)


async def test_a_further_request_of_a_call_waits_for_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, one_call = Limits(), call(tokens=10**9)
    await spend(limits, one_call, 10**9 + 10**5)
    await spend(limits, one_call, 1)
    assert limits.accounts["alice"].limited["tokens"] == 0


class Pool:
    """Pool of one ready replica, which answers each prompt with 7 tokens, but refuses the prompt "bad"."""

    ready, model = (object(),), "m"

    async def whole(self, request: GenerateRequest, *_: Any) -> Whole:
        if request.prompt == "bad":
            raise InvalidRequest("no")
        usage = Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7)
        choice = Choice(index=0, text="x", finish_reason="stop")
        answer = GenerateAnswer(id="x", created=1, model="m", choices=[choice], usage=usage)
        return Whole(answer.to_json().encode())


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        (GenerateRequest(prompt="x"), 7),
        (CompletionRequest.parse({"prompt": ["x"] * 40}), 280),
        (CompletionRequest.parse({"prompt": [*["x"] * 40, "bad"]}), 280),
        (GenerateRequest(prompt="bad"), 0),
    ],
    ids=["one prompt", "many", "many, and the last one fails", "one that fails"],
)
async def test_each_prompt_that_was_answered_counts_whatever_becomes_of_the_others(request_: Any, tokens: int) -> None:
    """One bad prompt behind many good ones would otherwise make these free."""
    service = Service([cast("Any", Pool())], GatewayConfig())
    record.begin(call())
    with suppress(InvalidRequest):
        await service.answer(request_)
    assert service.limits.accounts["alice"].tokens == tokens
