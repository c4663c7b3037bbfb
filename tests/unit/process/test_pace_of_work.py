"""The time after which a refused client comes again: too soon is another refusal, too late an idle server."""

import pytest

from run_gpt.process import pace as module
from run_gpt.process.pace import Pace


def test_the_refusal_names_the_time_until_a_place_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    pace = Pace(2)
    assert pace.full("8 tasks wait").message == "8 tasks wait: try again in 1 s"

    def task(seconds: float) -> None:
        nonlocal now
        now += seconds
        if seconds > 99:
            raise ZeroDivisionError

    for _ in range(30):
        pace.timed(task)(9.0)
    refusal = pace.full("8 tasks wait")
    assert (refusal.retry_after, refusal.message) == (5, "8 tasks wait: try again in 5 s")
    for _ in range(30):
        with pytest.raises(ZeroDivisionError):
            pace.timed(task)(1000.0)
    assert pace.full("").retry_after == 60
