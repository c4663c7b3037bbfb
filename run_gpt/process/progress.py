"""Progress of something that works: its marks, the processor time that it uses, and the time without either.

An observer looks again and again. Time in which the observer itself did not run is not counted: after a suspended
machine, a stopped server or a long wait for Python's lock nothing seems to have hung.
"""

import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

LONGEST_LOOK = 1.0
"""Most seconds that one look adds, however long ago the one before it was."""
_AWAKE = 0.02
"""Least part of a core that is used by something at work: a few wake-ups in a second are less."""


@dataclass(frozen=True)
class Activity:
    """Activity of a process or a thread since its start, as Linux counts it."""

    state: str
    """State now: R runs, S sleeps, D waits for a disk, T is stopped by a signal, ..."""
    seconds: float
    """Processor time."""
    page_reads: int
    """Number of memory pages that had to be read from a disk."""


def activity_of_process(pid: int) -> Activity | None:
    """Return the activity of a process with all its threads; None without `/proc`, or after its end."""
    return _activity(Path(f"/proc/{pid}/stat"))


def activity_of_thread(thread: int) -> Activity | None:
    """Return the activity of a thread of this process by its `native_id`; None as for a process."""
    return _activity(Path(f"/proc/self/task/{thread}/stat"))


def is_at_work(pid: int, besides: Collection[int] = ()) -> bool:
    """Return True if a thread of the process, other than `besides`, runs, waits for a core or for a disk now."""
    found = (_activity(task / "stat") for task in Path(f"/proc/{pid}/task").glob("*") if int(task.name) not in besides)
    return any(activity is not None and activity.state in "RD" for activity in found)


def _activity(stat: Path) -> Activity | None:
    try:
        fields = stat.read_text().rpartition(")")[2].split()  # a name in brackets may contain anything
    except OSError:
        return None
    return Activity(fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(fields[9]))


class Progress:
    """Time for which something has made no progress, as its looks show it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """Seconds since the last new mark."""
        self.asleep = 0.0
        """Part of them in which nothing of it was at work, since it last was; 0 without `/proc`."""
        self._mark: object = None
        self._looked = time.monotonic()
        self._activity: Activity | None = None

    def look(self, mark: object, activity: Activity | None, is_helped: Callable[[], bool]) -> None:
        """Look at it: another `mark` than at the last look is progress.

        `is_helped`: asked if it seems asleep; True if others are at work that it may wait for.
        """
        now = time.monotonic()
        passed, self._looked = now - self._looked, now
        counted, was = min(passed, LONGEST_LOOK), self._activity
        if mark != self._mark:
            self.seconds = self.asleep = 0.0
        else:
            self.seconds += counted
            if was is None or activity is None or _worked(was, activity, passed):
                self.asleep = 0.0
            elif not is_helped():
                self.asleep += counted
        self._mark, self._activity = mark, activity


def _worked(before: Activity, now: Activity, passed: float) -> bool:
    used = now.seconds - before.seconds
    return now.state in "RD" or now.page_reads != before.page_reads or used >= _AWAKE * passed
