"""Scheduler: the queue, and the choice of the sequences of each step. Policy only: no torch, threads or clock."""

import random
from collections import abc, deque
from collections.abc import Callable
from itertools import islice
from typing import TypeVar, TypeVarTuple

from run_gpt.engine.invariants import check
from run_gpt.engine.outcomes import Outcomes, fault
from run_gpt.engine.plan import Counters, Outcome, Result, ScheduledTokens, Scores, Sequence, StepPlan, Sums
from run_gpt.engine.request import Request, TokenEvent
from run_gpt.engine.slots import Ring, Slots
from run_gpt.engine.suspects import Suspects
from run_gpt.engine.text import TextStream
from run_gpt.errors import ContextLengthExceeded, InvalidRequest, QueueFull, RequestError

_A = TypeVarTuple("_A")
_T = TypeVar("_T")

MAX_SCORED = 128
"""Largest number of prompt tokens that one step scores, in all sequences together. Each token has [vocabulary] logits
in fp32, and longer parts would not be faster."""

SHORT_STEP = 64
"""Smallest number of prompt tokens in a step, if that many wait. Beyond it each token takes nearly the same time."""


class Scheduler:
    """First-come, first-served scheduler over a fixed number of slots.

    A step runs every sequence that is past its prompt, and at most `max_step_tokens` tokens of the other prompts. A
    long prompt takes several steps, and the other sequences go on meanwhile. A step begins no further prompt once it
    has SHORT_STEP tokens and more than half of the waiting ones. So if several prompts arrive together, half of them
    get their first token after half of the time, instead of all at the end. A step runs at most MAX_SCORED tokens of
    scored prompts, in all. While a step has fewer tokens than `cheap_tokens`, decoding sequences get drafts to check.

    A sequence reserves memory for its prompt and longest answer when it gets its slot. If there is not enough, it
    waits, with all behind it. There is one exception to the order: with `reuse_prefixes`, or if the prompt is scored,
    the further sequences of a request wait until the prompt of the first has been run, and take over its result. Until
    then later requests may go first, and keep their slots. After that these sequences are served in queue order.

    Contract: `plan` returns the next step. The caller runs it and calls `commit` with a result for each of the plan's
    runs that sample tokens, or `fail`, before the next `plan`. Between the two, `add` and `abort` may be called:
    `commit` skips aborted sequences, and the next `plan` assigns their slots. Every sequence ends exactly once: with a
    finish reason or an error, from `commit` or `fail`; or with no outcome, by `abort`. The caller aborts the request of
    a sequence that ended with an error.
    """

    def __init__(
        self,
        *,
        max_running: int,
        max_waiting: int,
        max_step_tokens: int,
        end_ids: abc.Sequence[int],
        new_text: Callable[[Request], TextStream],
        max_cache_tokens: int | None = None,
        ring: Ring | None = None,
        reuse_prefixes: bool = False,
        cheap_tokens: int = 1,
        seconds_until: Callable[[int], int] = lambda ended: QueueFull.retry_after,
    ):
        """`max_cache_tokens` and `ring`: see Slots. `cheap_tokens` 1: no drafts.

        `seconds_until`: estimates when so many of the running sequences have ended.
        """
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.max_step_tokens = max_step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.slots = Slots(max_running, max_cache_tokens, keep=reuse_prefixes, ring=ring)
        self.counters = Counters()
        self._reuse_prefixes = reuse_prefixes
        self._cheap_tokens = cheap_tokens
        self._new_text = new_text
        self._seconds_until = seconds_until
        self._outcomes = Outcomes(end_ids, self.counters)
        self._suspects = Suspects()
        self._faults: list[tuple[Sequence, Outcome]] = []
        """Outcomes of sequences that ended while a step was planned."""

    def add(self, request: Request, adapter: object = None) -> list[Sequence]:
        """Queue a request's sequences, all with this LoRA adapter, and return them.

        Raises QueueFull if more than `max_waiting` would wait, InvalidRequest if they would on an empty server, too,
        ContextLengthExceeded if one needs more memory than the whole cache has.
        """
        limit = self.slots.longest
        if limit is not None and request.longest > limit:
            raise ContextLengthExceeded(
                f"prompt and answer may have {request.longest} tokens, the cache holds {limit} (--max-cache-tokens): "
                "ask for a shorter answer or shorten the prompt"
            )
        self._check_places(request.sequences)
        sequences, end_ids = list[Sequence](), self._outcomes.end_ids(request.sampling)
        for index in range(request.sequences):
            seed = None if request.sampling.seed is None else f"{request.sampling.seed}/{index}"
            text, first = self._new_text(request), sequences[0] if sequences else None
            sequences.append(Sequence(request, index, text, random.Random(seed), adapter, first, end_ids=end_ids))
        self.waiting += sequences
        return sequences

    def _check_places(self, sequences: int) -> None:
        if sequences > self.max_running + self.max_waiting:
            raise InvalidRequest(
                f"num_return_sequences = {sequences} (or best_of): at most {self.max_running} (--max-running) and "
                f"{self.max_waiting} (--max-waiting) together: ask for fewer",
                param="num_return_sequences",
            )
        must_wait = len(self.waiting) + sequences - (self.max_running - len(self.running))
        if (over := must_wait - self.max_waiting) > 0:
            seconds = self._seconds_until(over)
            raise QueueFull(
                f"{len(self.waiting)} sequences wait, {sequences} more would pass the limit of {self.max_waiting}: "
                f"try again in {seconds} s, or raise --max-waiting",
                retry_after=seconds,
            )

    def abort(self, request_id: str) -> None:
        """Remove a request. An unknown id is no error, because the request may have ended by now."""
        self._drop([sequence for sequence in (*self.waiting, *self.running) if sequence.request.id == request_id])

    @property
    def has_work(self) -> bool:
        """True when the next plan would not be empty: there are sequences to run, or slots to free."""
        return bool(self.waiting or self.running or self.slots.released)

    def plan(self) -> StepPlan:
        """Plan the next step. Free slots go to the sequences that have waited longest."""
        continued, begun, only = list[Sequence](), list[Sequence](), self._suspects.group
        for sequence in self.running if only is None else only:
            (continued if sequence.prefilled and sequence.request.pooling is None else begun).append(sequence)
        most = budget = max(1, self.max_step_tokens - len(continued))
        enough = self._enough(begun)
        prompts: list[ScheduledTokens] = []
        for sequence in begun:
            if most - budget < enough:
                budget -= self._guarded(sequence, self._run_prompt, budget, prompts) or 0
        for sequence in list(self.waiting) if only is None else ():
            if not budget or most - budget >= enough or not self.slots.has_free:
                break
            if self._waits_for_first(sequence):
                continue
            if (placed := self._guarded(sequence, self._place)) is False:
                break
            if placed:
                budget -= self._guarded(sequence, self._run_prompt, budget, prompts) or 0
        # The cheap tokens that prompts leave are for drafts, the same number for each sequence.
        room = self._cheap_tokens - sum(len(run.token_ids) for run in prompts)
        runs = [self._guarded(sequence, _continue, room // len(continued) - 1) for sequence in continued]
        return self._planned((*filter(None, runs), *prompts))

    def _planned(self, runs: tuple[ScheduledTokens, ...]) -> StepPlan:
        plan = StepPlan(tuple(self.slots.released), tuple(self.slots.copies), runs)
        for run in runs:
            run.place.written = max(run.place.written, run.end)
        self.slots.released.clear()
        self.slots.copies.clear()
        return plan

    def _guarded(self, sequence: Sequence, plan: Callable[[Sequence, *_A], _T], *arguments: *_A) -> _T | None:
        """Return `plan`'s result for one sequence. A fault ends this sequence alone, and gives None."""
        try:
            return plan(sequence, *arguments)
        except BaseException as error:  # a library's panic is no Exception
            self._drop([sequence])
            self._faults.append((sequence, fault(error)))
            return None

    def _enough(self, begun: abc.Sequence[Sequence]) -> int:
        """Return the number of prompt tokens at which a step begins no further prompt. `begun`: unfinished prompts."""
        free = self.max_running - len(self.running)
        left = sum(len(sequence.token_ids) - sequence.place.length for sequence in begun if sequence.place)
        left += sum(len(sequence.token_ids) for sequence in islice(self.waiting, free))
        return max(SHORT_STEP, left // 2 + 1)

    def _waits_for_first(self, sequence: Sequence) -> bool:
        first = sequence.first
        shares = self._reuse_prefixes or sequence.request.prompt_logprobs is not None
        return shares and first is not None and not first.ended and not first.prefilled

    def _place(self, sequence: Sequence) -> bool:
        """Assign a slot to a sequence; returns False if there is no memory for it."""
        # A mean covers all tokens of the prompt, and so do scores: all must be run.
        request, reserve = sequence.request, sequence.request.longest
        reuse = request.pooling != "mean" and not sequence.scores_prompt
        held = self.slots.take(sequence.token_ids, reserve, sequence.adapter, request.cache_space, reuse=reuse)
        sequence.place = held
        if held is None:
            return False
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.cached = held.length
        self.counters.prompt_tokens += len(request.prompt_ids)
        self.counters.cached_tokens += sequence.cached
        return True

    @staticmethod
    def _run_prompt(sequence: Sequence, budget: int, runs: list[ScheduledTokens]) -> int:
        """Plan the next part of a sequence's prompt; returns its number of tokens, 0 when a budget is used up.

        After `restart` the answer so far is run as well. With "last" pooling, the last token is a separate run.
        """
        assert sequence.place is not None
        start, end = sequence.place.length, len(sequence.token_ids)
        if sequence.request.pooling == "last" and start < end - 1:
            end -= 1
        if sequence.scores_prompt:
            budget = min(budget, MAX_SCORED - sum(run.num_scored for run in runs))
        part = tuple(sequence.token_ids[start : min(end, start + budget)])
        if part:
            last = sequence.request.pooling is None and start + len(part) == end
            scored = len(part) - last if sequence.scores_prompt else 0
            runs.append(ScheduledTokens(sequence, start, part, scored + last, scored))
        return len(part)

    def commit(
        self,
        plan: StepPlan,
        results: abc.Sequence[Result],
        sums: abc.Sequence[Sums] = (),
        scores: abc.Sequence[Scores] = (),
    ) -> list[tuple[Sequence, Outcome]]:
        """Append each sequence's tokens and return the outcomes. Sequences that ended free their slots.

        `results`: for each of the plan's runs with `num_sampled` > 0 the sampled tokens, one more than the accepted
        drafts, or the error that ends the sequence. `sums`: one for each pooled run. `scores`: for each run with
        `num_scored` > 0 that many scores, or the error that ends the sequence.
        """
        self.counters.steps += bool(plan.runs)
        remaining, pooled, scoring = iter(results), iter(sums), iter(scores)
        outcomes: list[tuple[Sequence, Outcome]] = []
        for run in plan.runs:
            result = next(remaining) if run.num_sampled else ()
            states = next(pooled) if run.pooled else ()
            scored = next(scoring) if run.num_scored else ()
            if run.sequence.ended:  # aborted while the step ran
                continue
            if (outcome := self._outcomes.add(run, result, states, scored)) is not None:
                outcomes.append((run.sequence, outcome))
        if any(next(left, None) is not None for left in (remaining, pooled, scoring)):
            raise ValueError("more results than runs that need them")
        self._drop(
            [sequence for sequence, outcome in outcomes if not isinstance(outcome, TokenEvent) or outcome.finish_reason]
        )
        return self._with_faults(outcomes)

    def fail(self, error: RequestError) -> list[tuple[Sequence, Outcome]]:
        """End all running sequences after a failed step. The reset of the runner has emptied all slots."""
        failed = list(self.running)
        self._drop(failed)
        self.slots.forget()
        return self._with_faults([(sequence, error) for sequence in failed])

    def search(self, plan: StepPlan, error: RequestError) -> list[tuple[Sequence, Outcome]]:
        """Run the sequences of a step that failed in the runner again, in groups (see Suspects), then all others.

        Returns the outcome of the sequence that is the cause, once it is found. The reset of the runner has emptied all
        slots.
        """
        ended = self._suspects.failed(plan.runs, self.counters.steps)
        self._drop(ended)
        self.restart(self._cheap_tokens)
        return self._with_faults([(sequence, error) for sequence in ended])

    def restart(self, cheap_tokens: int) -> None:
        """Go on with another runner, whose slots are empty. The tokens of running sequences are run again."""
        self._cheap_tokens = cheap_tokens
        self.slots.forget()
        for sequence in self.running:
            sequence.sums = ()
            if sequence.scores_prompt:
                sequence.scores.clear()

    def check(self) -> None:
        """Check the invariants of sequences, slots and memory. Raises AssertionError."""
        check(self.waiting, self.running, self.slots)

    def _with_faults(self, outcomes: list[tuple[Sequence, Outcome]]) -> list[tuple[Sequence, Outcome]]:
        faults, self._faults = self._faults, []
        return [*faults, *outcomes]

    def _drop(self, sequences: abc.Sequence[Sequence]) -> None:
        for sequence in sequences:
            sequence.ended = True
            if sequence.place is None:
                self.waiting.remove(sequence)
            else:
                self.running.remove(sequence)
                self.slots.free(sequence.place)


def _continue(sequence: Sequence, most: int) -> ScheduledTokens:
    """Plan a run of a sequence's last token and up to `most` drafted ones, never beyond the longest answer."""
    left = sequence.request.max_new_tokens - sequence.answered
    drafted = sequence.drafts.draft(sequence.token_ids, min(most, left - 1))
    last = len(sequence.token_ids) - 1
    return ScheduledTokens(sequence, last, (sequence.token_ids[last], *drafted), 1 + len(drafted))
