"""Heartbeat of the engine's thread, which other threads read without a lock."""

import threading


class Heartbeat:
    """Sign that the engine's thread goes on, from round to round; a round is its tasks and one step."""

    def __init__(self) -> None:
        self.rounds = 0
        """Number of rounds that have begun."""
        self.is_working = False
        """True in a round; False while the thread waits for work, and when it has ended."""
        self.thread: int | None = None
        """Native id of the thread, once it runs."""

    def begin(self) -> None:
        """Note the beginning of a round. The thread itself calls this."""
        self.thread = self.thread or threading.get_native_id()
        self.rounds += 1
        self.is_working = True

    def rest(self) -> None:
        """Note that the thread waits for work, or ends."""
        self.is_working = False
