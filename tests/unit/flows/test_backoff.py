"""Without these tests, a crashing replica could restart in a tight loop, and one that died once could stay slow."""

from run_gpt.flows.backoff import Backoff


def test_delays_double_to_the_maximum() -> None:
    backoff = Backoff()
    assert [backoff.next_delay(0) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_long_life_makes_it_begin_anew() -> None:
    backoff = Backoff(initial=1, maximum=8, healthy_after=60)
    assert [backoff.next_delay(served) for served in (0, 59, 60, 0, 3600)] == [1, 2, 1, 2, 1]
