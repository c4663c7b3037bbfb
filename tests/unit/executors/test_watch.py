"""The watch over an engine: without it a held engine kept its requests until their deadlines, for everybody."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from run_gpt.config import EngineConfig, HostConfig, ModelConfig
from run_gpt.engine.heartbeat import Heartbeat
from run_gpt.executors.causal_lm import host as host_module
from run_gpt.executors.causal_lm import watch as module
from run_gpt.executors.causal_lm.watch import HANG_SECONDS, LOOK_SECONDS, STUCK_SECONDS, EngineWatch
from run_gpt.process import progress
from run_gpt.process.progress import Activity


class Watched:
    """A watch, its engine's heartbeat, and a clock; each look comes LOOK_SECONDS after the one before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any):
        self.now, self.used, self.helped = 1000.0, 0.0, False
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module, "activity_of_thread", lambda thread: Activity("S", self.used, 0))
        monkeypatch.setattr(module, "is_at_work", lambda pid, besides: self.helped)
        self.beat = Heartbeat()
        self.watch = EngineWatch(lambda: self.beat, options.pop("step_timeout", 600.0), lambda reason: None, **options)

    def looks(self, seconds: float, used: float = 0.0) -> Iterator[str | None]:
        for _ in range(round(seconds / LOOK_SECONDS)):
            self.now += LOOK_SECONDS
            self.used += used * LOOK_SECONDS
            yield self.watch.look()


def test_a_held_engine_is_stuck_and_then_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows within 3 seconds, with the half second that a gateway waits between two probes."""
    watched = Watched(monkeypatch)
    watched.beat.begin()
    assert not any(watched.looks(STUCK_SECONDS + 2 * LOOK_SECONDS))
    assert watched.watch.is_stuck
    assert any(watched.looks(HANG_SECONDS - STUCK_SECONDS))
    watched.beat.begin()
    assert not any(watched.looks(LOOK_SECONDS))
    assert not watched.watch.is_stuck, "it goes on"


def test_a_long_step_that_computes_never_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long prompt on a slow machine, in the engine's thread or in threads that it waits for."""
    watched = Watched(monkeypatch)
    watched.beat.begin()
    assert not any(watched.looks(500, used=0.5))
    watched.beat.begin()
    watched.helped = True
    assert not any(watched.looks(500))
    assert not watched.watch.is_stuck


def test_an_engine_without_work_never_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    assert not any(watched.looks(1000))
    watched.beat.begin()
    watched.beat.rest()
    assert not any(watched.looks(1000))


def test_a_step_that_goes_round_in_circles_ends_by_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, step_timeout=20.0)
    watched.beat.begin()
    assert not any(watched.looks(20, used=1.0))
    assert "takes longer than 20 s (--step-timeout)" in [*watched.looks(1, used=1.0)][-1]  # type: ignore[operator]


def test_an_engine_that_may_wait_for_a_compiler_has_only_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, may_sleep=True)
    watched.beat.begin()
    assert not any(watched.looks(500))
    assert not watched.watch.is_stuck
    assert any(watched.looks(200))


def test_a_hanging_engine_of_a_host_is_reported_once_and_shows_in_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STUCK_SECONDS", "HANG_SECONDS", "LOOK_SECONDS"):
        monkeypatch.setattr(module, name, 0.05)
    monkeypatch.setattr(module, "is_at_work", lambda pid, besides: False)
    monkeypatch.setattr(host_module.Footprint, "of", lambda *_: host_module.Footprint())
    reasons, hung, over, beat = [], threading.Event(), threading.Event(), Heartbeat()

    def note(reason: str) -> None:
        reasons.append(reason)
        hung.set()

    config = HostConfig(preload=False)
    hosted = host_module.Host(ModelConfig(model_name="m"), EngineConfig(), config, lambda: None, note)
    status = SimpleNamespace(state="ready", model_copy=lambda update: update)
    hosted._model = SimpleNamespace(heartbeat=beat, status=lambda: status)  # type: ignore[assignment]
    threading.Thread(target=lambda: (beat.begin(), over.wait()), daemon=True).start()
    assert hung.wait(20)
    assert hosted.status()["state"] == "stuck"  # type: ignore[index]
    assert len(reasons) == 1
    over.set()
