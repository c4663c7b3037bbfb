"""Owns the heartbeat of a pod: bytes on a pipe, which its event loop writes and its supervisor counts.

A pod that is stopped, or whose event loop is blocked, writes none. What waits for such a pod would wait for ever.
"""

import asyncio
import os

from run_gpt.process.progress import Progress, activity_of_process, is_at_work

PIPE_VARIABLE = "RUNGPT_HEARTBEAT"
"""Environment variable with the number of the pipe's file descriptor, in a pod that has a supervisor."""
BEAT_SECONDS = 1.0
LOOK_SECONDS = 1.0
ASLEEP_SECONDS = 5.0
"""Seconds without a beat, and without any work, after which a pod hangs."""
SILENT_SECONDS = 60.0
"""The same for a pod that works: imports, for example, may block its event loop."""


async def beat() -> None:
    """Write a beat now and then, until this is cancelled; return at once without a supervisor."""
    if (pipe := os.environ.get(PIPE_VARIABLE)) is None:
        return
    os.set_blocking(int(pipe), False)
    while True:
        try:
            os.write(int(pipe), b".")
        except BlockingIOError:
            pass  # the supervisor is stopped
        except OSError:
            return  # it has ended
        await asyncio.sleep(BEAT_SECONDS)


class Pulse:
    """The supervisor's end of a pod's heartbeat.

    Before the first beat a pod hangs only if a signal has stopped it: a model may take long to load.
    """

    def __init__(self) -> None:
        self._read, self.write = os.pipe()
        """`write` is the end that the pod inherits."""
        os.set_blocking(self._read, False)
        self._beats = 0
        self._progress = Progress()

    def started(self) -> None:
        """Close the pod's end here, once the pod runs or cannot be started."""
        os.close(self.write)

    def problem(self, pid: int) -> str | None:
        """Look at the pod, about once in LOOK_SECONDS; return why it hangs, or None."""
        self._beats += self._new_beats()
        activity, progress = activity_of_process(pid), self._progress
        progress.look(self._beats, activity, lambda: is_at_work(pid))
        is_stopped = activity is not None and activity.state == "T"
        if progress.asleep >= ASLEEP_SECONDS and (self._beats or is_stopped):
            return "it was stopped by a signal" if is_stopped else f"it has done nothing for {progress.asleep:.0f} s"
        if self._beats and progress.seconds >= SILENT_SECONDS:
            return f"its event loop has been blocked for {progress.seconds:.0f} s"
        return None

    def close(self) -> None:
        """Close this end."""
        os.close(self._read)

    def _new_beats(self) -> int:
        try:
            return len(os.read(self._read, 4096))
        except OSError:
            return 0
