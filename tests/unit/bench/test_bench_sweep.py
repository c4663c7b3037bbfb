"""Without these tests a sweep could end too early, or load a server without end."""

import asyncio
from collections.abc import Callable

import pytest

from run_gpt.bench.load import Level, Run
from run_gpt.bench.sample import Sample
from run_gpt.bench.summary import Summary, summarise
from run_gpt.bench.sweep import MOST_LEVELS, Saturation, sweep


def swept(
    rate: Callable[[float], float],
    failed: Callable[[float], int] = lambda value: 0,
    most: float = 1e9,
    kind: str = "closed",
) -> tuple[Saturation, list[float]]:
    """Sweep from 1 on a simulated server that answers a given number of requests a second, with 20 at each load."""
    tried: list[float] = []

    async def measure(level: Level) -> Summary:
        tried.append(level.value)
        lost = failed(level.value)
        good = [Sample(0.0, [0.1], 0.1, 0.2, 1, 1) for _ in range(20 - lost)]
        bad = [Sample(0.0, end=0.2, failure="timeout") for _ in range(lost)]
        return summarise(Run(level, good + bad, seconds=20 / rate(level.value)), {})

    return asyncio.run(sweep(Level(kind, 1), most, measure)), tried


def test_the_knee_is_found_between_two_doublings() -> None:
    found, tried = swept(lambda value: min(value, 6))
    assert tried == [1, 2, 4, 8, 16, 32, 12, 10]
    assert found.level == Level("closed", 8)
    assert "concurrency 32 brings 6 output tokens/s, concurrency 8 6" in found.reason


def test_a_rate_may_be_no_whole_number() -> None:
    found, tried = swept(lambda value: min(value, 1.4), kind="open")
    assert tried == [1, 2, 4, 8, 3, 2.5]
    assert found.level == Level("open", 2)


def test_one_load_that_brings_nothing_by_chance_ends_nothing() -> None:
    found, tried = swept(lambda value: 1 if value == 4 else min(value, 8))
    assert tried[:6] == [1, 2, 4, 8, 16, 32]
    assert found.level.value == 8


def test_a_load_at_which_requests_fail_is_too_much() -> None:
    found, tried = swept(lambda value: value, lambda value: 3 if value > 5 else 0)
    assert tried == [1, 2, 4, 8, 6, 5]
    assert found.level.value == 5
    assert found.reason == "3 of 20 requests failed at concurrency 8"


def test_a_first_load_that_is_too_much_ends_it() -> None:
    found, tried = swept(lambda value: value, lambda value: 20)
    assert tried == [1]
    assert "20 of 20 requests failed" in found.reason


@pytest.mark.parametrize(("most", "levels"), [(1e9, MOST_LEVELS), (50, 6), (1, 1)])
def test_a_sweep_is_bounded(most: float, levels: int) -> None:
    found, tried = swept(lambda value: value, most=most)
    assert len(tried) == levels
    assert found.level.value == tried[-1]
    assert found.reason
