"""Progress of threads and processes: a false alarm ends the requests of a whole replica, a missed one all that wait."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from run_gpt.process import progress as module
from run_gpt.process.progress import LONGEST_LOOK, Activity, Progress, activity_of_thread, is_at_work

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


class Looks:
    """Looks at something, by a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now, self.progress = 1000.0, Progress()
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        self.progress = Progress()
        self.used, self.reads = 0.0, 0

    def look(
        self,
        mark: object,
        passed: float = 0.5,
        *,
        used: float = 0.0,
        reads: int = 0,
        state: str = "S",
        is_helped: bool = False,
    ) -> tuple[float, float]:
        self.now += passed
        self.used += used
        self.reads += reads
        self.progress.look(mark, Activity(state, self.used, self.reads), lambda: is_helped)
        return self.progress.seconds, self.progress.asleep


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    looks = Looks(monkeypatch)
    looks.look(1)
    return looks


def test_time_without_a_new_mark_counts_and_a_new_mark_ends_it(looks: Looks) -> None:
    assert [looks.look(1) for _ in range(3)] == [(0.5, 0.5), (1.0, 1.0), (1.5, 1.5)]
    assert looks.look(2) == (0.0, 0.0)


def test_a_pause_of_the_observer_counts_as_one_look(looks: Looks) -> None:
    """After a suspended laptop nothing may be killed."""
    assert looks.look(1, passed=36_000) == (LONGEST_LOOK, LONGEST_LOOK)


@pytest.mark.parametrize("work", [{"used": 0.1}, {"reads": 1}, {"state": "R"}, {"state": "D"}])
def test_what_works_is_not_asleep(looks: Looks, work: dict[str, float]) -> None:
    """A long step of a large model on a slow machine, also one whose weights come from a disk."""
    looks.look(1)
    for count in range(2, 100):
        assert looks.look(1, **work) == (count / 2, 0.0)  # type: ignore[arg-type]


def test_what_waits_for_others_at_work_is_not_more_asleep_than_before(looks: Looks) -> None:
    looks.look(1)
    assert [looks.look(1, is_helped=True)[1] for _ in range(9)] == [0.5] * 9
    assert looks.look(1)[1] == 1.0


def test_without_proc_nothing_is_asleep(looks: Looks) -> None:
    for count in range(1, 9):
        looks.now += 0.5
        looks.progress.look(1, None, lambda: False)
        assert (looks.progress.seconds, looks.progress.asleep) == (count / 2, 0.0)


@contextmanager
def running(work: object) -> Iterator[int]:
    """Run a function in a thread until it is left; yield the thread's id."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert thread.native_id is not None
    yield thread.native_id


@needs_proc
def test_a_held_thread_is_asleep_and_a_computing_one_is_not() -> None:
    """The same looks at real threads."""
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(10_000))

    besides = {os.getpid(), threading.get_native_id()}
    with running(compute) as busy, running(over.wait) as held:
        looks = {busy: Progress(), held: Progress()}
        for _ in range(6):
            for thread, progress in looks.items():
                progress.look(1, activity_of_thread(thread), lambda: False)
            assert is_at_work(os.getpid(), besides)
            time.sleep(0.05)  # the length of a look
        assert looks[busy].asleep == 0.0
        assert looks[held].asleep > 0.1
        over.set()
