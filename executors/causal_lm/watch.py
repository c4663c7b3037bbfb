"""`EngineWatch`: notices an engine that hangs: its thread has work, and makes no step."""

import os
import threading
from collections.abc import Callable

from run_gpt.engine.heartbeat import Heartbeat
from run_gpt.process.progress import Progress, activity_of_thread, is_at_work

LOOK_SECONDS = 0.5
STUCK_SECONDS = 1.5
"""Time asleep after which an engine with work is `stuck`: other replicas are preferred."""
HANG_SECONDS = 4.0
"""Time asleep after which it counts as hanging. A step that computes is not asleep, however slow the machine."""


class EngineWatch:
    """Watch over the engine whose heartbeat `beat` returns, if there is one now.

    An engine hangs when one step has slept for HANG_SECONDS, or has taken `step_timeout` seconds in any way. With
    `may_sleep` only the latter counts. `on_hang` is called once, in the watch's thread, with the reason.
    """

    def __init__(
        self,
        beat: Callable[[], Heartbeat | None],
        step_timeout: float,
        on_hang: Callable[[str], None],
        *,
        may_sleep: bool = False,
    ):
        self.is_stuck = False
        """True when the engine has work and seems not to go on."""
        self._beat, self._step_timeout, self._on_hang, self._may_sleep = beat, step_timeout, on_hang, may_sleep
        self._progress = Progress()
        self._over = threading.Event()

    def start(self) -> None:
        """Look from now on, in a thread that ends with the process."""
        threading.Thread(target=self._run, name="rungpt-watch", daemon=True).start()

    def close(self) -> None:
        """Look no more: an engine that is being ended takes no steps."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            if reason := self.look():
                self._on_hang(reason)
                return

    def look(self) -> str | None:
        """Look at the engine once; return why it hangs, or None."""
        beat, progress = self._beat(), self._progress
        if beat is None or not beat.is_working or beat.thread is None:
            progress.look(object(), None, lambda: False)
        else:
            # The event loop's thread and this one do nothing that a step could wait for.
            besides = {os.getpid(), threading.get_native_id(), beat.thread}
            progress.look(beat.rounds, activity_of_thread(beat.thread), lambda: is_at_work(os.getpid(), besides))
        asleep = 0.0 if self._may_sleep else progress.asleep
        self.is_stuck = asleep >= STUCK_SECONDS
        if asleep >= HANG_SECONDS:
            return f"a step of the engine has done nothing for {asleep:.0f} s"
        if progress.seconds >= self._step_timeout:
            return f"a step of the engine takes longer than {self._step_timeout:g} s (--step-timeout)"
        return None
