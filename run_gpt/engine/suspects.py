"""Search for the sequence that makes the runner fail: the sequences of a failed step run again, by halves."""

from collections import abc

from run_gpt.engine.plan import ScheduledTokens, Sequence

MOST_UNEXPLAINED = 2
"""Number of failed steps whose sequences all run well by themselves, after which the newest sequence of each further
one is ended: the runner fails with all of them together, for want of memory for example."""
SETTLED_STEPS = 64
"""Number of steps after which earlier unexplained failures do not count."""


class Suspects:
    """Groups of sequences that run by themselves after a step failed, one group after the other.

    A group that fails is halved; a sequence that fails alone is the cause. A sequence has passed when it has run as far
    as in the step that failed. Each failure of a group makes the groups smaller, and every sequence that passes gets
    further than before, so the search ends.
    """

    def __init__(self) -> None:
        self._groups: list[dict[Sequence, int]] = []
        """Sequences of each group, and the number of tokens that each must run to pass."""
        self._unexplained = 0
        self._failed_at = 0

    @property
    def group(self) -> abc.Collection[Sequence] | None:
        """Sequences that run now, and no others; None: all may run."""
        while self._groups:
            left = {
                sequence: goal
                for sequence, goal in self._groups[0].items()
                if not sequence.ended and sequence.place is not None and sequence.place.length < goal
            }
            if left:
                self._groups[0] = left
                return left.keys()
            del self._groups[0]
        return None

    def failed(self, runs: abc.Sequence[ScheduledTokens], steps: int) -> list[Sequence]:
        """Divide the sequences of a failed step into groups. Returns those to end: the cause, if it is found.

        `steps`: number of steps of the engine so far. Call it before the slots are emptied.
        """
        tried = {run.sequence: min(run.end, len(run.sequence.token_ids)) for run in runs if not run.sequence.ended}
        if len(runs) == 1:
            self._unexplained = 0
            return list(tried)
        if self._groups:
            rest = {one: goal for one, goal in self._groups.pop(0).items() if one not in tried}
            self._groups.insert(0, rest)
        elif tried and self._never_explained(steps):
            newest, _ = tried.popitem()
            self._divide(tried)
            return [newest]
        self._divide(tried)
        return []

    def _never_explained(self, steps: int) -> bool:
        """Count a failed step of all sequences. Returns True if the search after such failures has found nothing."""
        self._unexplained = 1 if steps - self._failed_at > SETTLED_STEPS else self._unexplained + 1
        self._failed_at = steps
        return self._unexplained > MOST_UNEXPLAINED

    def _divide(self, tried: dict[Sequence, int]) -> None:
        goals = list(tried.items())
        middle = (len(goals) + 1) // 2
        self._groups[:0] = [dict(half) for half in (goals[:middle], goals[middle:]) if half]
