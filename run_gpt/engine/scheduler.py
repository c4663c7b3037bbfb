"""Which rows run in the next step, and what became of them. Policy only: no torch, no threads, no clock of its own."""

import math
import operator
import random
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from run_gpt.engine.plan import Counters, Outcome, Result, Row, Run, Sampled, Scores, StepPlan, Sums
from run_gpt.engine.request import FinishReason, Request, TokenEvent
from run_gpt.engine.slots import Copy, Slots
from run_gpt.engine.text import TextStream
from run_gpt.errors import ContextLengthExceeded, InternalError, QueueFull, RequestError

__all__ = ["Copy", "Counters", "Outcome", "Result", "Row", "Run", "Sampled", "Scheduler", "Scores", "StepPlan", "Sums"]

MAX_SCORED = 128
"""Tokens of prompts that one step scores, in all rows together: the logits of each are as many numbers in fp32 as the
vocabulary has tokens, and longer parts would not be faster."""

SHORT_STEP = 64
"""Tokens of prompts that a step has at least, if they wait: from here on each more takes nearly the same time."""


class Scheduler:
    """First come, first served, into a fixed number of slots.

    A step runs every row that is past its prompt, and of the others' prompts no more than `max_step_tokens` tokens: a
    long prompt takes several steps, between which the others go on. With more than half of what waits, and SHORT_STEP
    tokens, it begins no further prompt: of those that come together, half have their first token after half of the
    time, and not all at its end. Of prompts that are scored, together, it runs no more than MAX_SCORED. While a step
    has fewer tokens than `cheap_tokens`, continued rows are given drafts to check.

    A row reserves memory for its prompt and longest answer when it gets its slot; one for which there is none waits,
    and all behind it. The one exception to the order: with `reuse_prefixes`, or if the prompt is scored, the further
    sequences of a request wait until the prompt of the first has been run, and take over what it gave. Until then
    others may go first, and keep what they get; after that these are served by their place in the queue.

    Contract: `plan` says what runs; the caller runs it and calls `commit` with a result for each of the plan's runs
    that choose tokens, or `fail`, before the next `plan`. Between the two, `add` and `abort` may be called: rows that
    went are skipped by `commit`, and their slots are given out by the next `plan`. Every row ends exactly once: by an
    event with a finish reason or by an error, from `commit` or `fail`; or without a word by `abort`, whose caller asked
    for that. The caller aborts the request of a row that ended by an error.
    """

    def __init__(
        self,
        *,
        max_running: int,
        max_waiting: int,
        max_step_tokens: int,
        end_ids: Sequence[int],
        new_text: Callable[[Request], TextStream],
        max_cache_tokens: int | None = None,
        reuse_prefixes: bool = False,
        cheap_tokens: int = 1,
    ):
        """`max_cache_tokens`: what all slots may hold together; None is no limit. `cheap_tokens` 1: no drafts."""
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.max_step_tokens = max_step_tokens
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []
        self.slots = Slots(max_running, max_cache_tokens, keep=reuse_prefixes)
        self.counters = Counters()
        self._reuse_prefixes = reuse_prefixes
        self._cheap_tokens = cheap_tokens
        self._end_ids = frozenset(end_ids)
        self._new_text = new_text

    def add(self, request: Request, adapter: object = None) -> list[Row]:
        """Queue a request's sequences, all with this LoRA adapter; returns their rows.

        Raises QueueFull when they would make more than `max_waiting` wait, ContextLengthExceeded for one that could
        never have memory.
        """
        limit = self.slots.max_tokens
        if limit is not None and _reserve(request) > limit:
            raise ContextLengthExceeded(
                f"prompt and answer may have {_reserve(request)} tokens, the cache holds {limit} (--max-cache-tokens): "
                "ask for a shorter answer or shorten the prompt"
            )
        must_wait = len(self.waiting) + request.sequences - (self.max_running - len(self.running))
        if must_wait > self.max_waiting:
            raise QueueFull(
                f"{len(self.waiting)} sequences wait, {request.sequences} more would pass the limit of "
                f"{self.max_waiting}: try again in {QueueFull.retry_after} s, or raise --max-waiting"
            )
        rows: list[Row] = []
        for index in range(request.sequences):
            seed = None if request.sampling.seed is None else f"{request.sampling.seed}/{index}"
            first = rows[0] if rows else None
            rows.append(Row(request, index, self._new_text(request), random.Random(seed), adapter, first))
        self.waiting += rows
        return rows

    def abort(self, request_id: str) -> None:
        """Forget a request; an unknown one is no error, for it may have ended by now."""
        self._drop([row for row in (*self.waiting, *self.running) if row.request.id == request_id])

    @property
    def has_work(self) -> bool:
        """Whether the next plan would hold anything: rows to run, or slots to free."""
        return bool(self.waiting or self.running or self.slots.released)

    def plan(self) -> StepPlan:
        """Say what the next step runs; free slots go to the rows that waited longest."""
        continued: list[Row] = []
        begun: list[Row] = []
        for row in self.running:
            (continued if row.prefilled and row.request.pooling is None else begun).append(row)
        most = budget = max(1, self.max_step_tokens - len(continued))
        enough = self._enough(begun)
        prompts: list[Run] = []
        for row in begun:
            if most - budget < enough:
                budget -= self._run_prompt(row, budget, prompts)
        for row in list(self.waiting):
            if not budget or most - budget >= enough or not self.slots.has_free:
                break
            if self._waits_for_first(row):
                continue
            if not self._place(row):
                break
            budget -= self._run_prompt(row, budget, prompts)
        # What the others leave of the cheap tokens is for drafts, the same number for each row.
        room = self._cheap_tokens - sum(len(run.token_ids) for run in prompts)
        runs = [_continue(row, room // len(continued) - 1) for row in continued]
        plan = StepPlan(tuple(self.slots.released), tuple(self.slots.copies), (*runs, *prompts))
        self.slots.released.clear()
        self.slots.copies.clear()
        return plan

    def _enough(self, begun: Sequence[Row]) -> int:
        """Tokens of prompts with which a step begins no further one; `begun` are the rows that are within theirs."""
        free = self.max_running - len(self.running)
        left = sum(len(row.history) - row.place.length for row in begun if row.place)
        left += sum(len(row.history) for row in islice(self.waiting, free))
        return max(SHORT_STEP, left // 2 + 1)

    def _waits_for_first(self, row: Row) -> bool:
        first = row.first
        shares = self._reuse_prefixes or row.request.prompt_logprobs is not None
        return shares and first is not None and not first.ended and not first.prefilled

    def _place(self, row: Row) -> bool:
        """Give a row a slot, if there is memory for it."""
        # A mean is of all tokens, and scores are: all must be run.
        reuse = row.request.pooling != "mean" and not row.scores_prompt
        row.place = self.slots.take(row.history, _reserve(row.request), row.adapter, reuse=reuse)
        if row.place is None:
            return False
        self.waiting.remove(row)
        self.running.append(row)
        row.cached = row.place.length
        self.counters.prompt_tokens += len(row.request.prompt_ids)
        self.counters.cached_tokens += row.cached
        return True

    @staticmethod
    def _run_prompt(row: Row, budget: int, runs: list[Run]) -> int:
        """Plan the next part of a row's prompt; returns its tokens, none when a budget is used up.

        After `restart` the answer so far is run with it. Of what is pooled by its last token that token is a run of
        its own.
        """
        assert row.place is not None
        start, end = row.place.length, len(row.history)
        if row.request.pooling == "last" and start < end - 1:
            end -= 1
        if row.scores_prompt:
            budget = min(budget, MAX_SCORED - sum(run.scored for run in runs))
        part = tuple(row.history[start : min(end, start + budget)])
        if part:
            last = row.request.pooling is None and start + len(part) == end
            scored = len(part) - last if row.scores_prompt else 0
            runs.append(Run(row, start, part, scored + last, scored))
        return len(part)

    def commit(
        self, plan: StepPlan, results: Sequence[Result], sums: Sequence[Sums] = (), scores: Sequence[Scores] = ()
    ) -> list[tuple[Row, Outcome]]:
        """Append each row's tokens and say what is new; a row that ended frees its slot.

        `results`: for each of the plan's runs with `choosing` > 0 the tokens that were sampled, one more than drafts
        were right, or the error that ends the row. `sums`: for each of the pooled runs. `scores`: for each of the runs
        with `scored` > 0, so many, or the error that ends the row.
        """
        self.counters.steps += bool(plan.runs)
        remaining, pooled, scoring = iter(results), iter(sums), iter(scores)
        outcomes: list[tuple[Row, Outcome]] = []
        for run in plan.runs:
            result = next(remaining) if run.choosing else ()
            states = next(pooled) if run.pooled else ()
            scored = next(scoring) if run.scored else ()
            if run.row.ended:  # aborted while the step ran
                continue
            outcome = self._pool(run, states) if run.pooled else self._take(run, result, scored)
            if outcome is not None:
                outcomes.append((run.row, outcome))
        if any(next(left, None) is not None for left in (remaining, pooled, scoring)):
            raise ValueError("more results than runs of which they are wanted")
        self._drop([row for row, outcome in outcomes if not isinstance(outcome, TokenEvent) or outcome.finish_reason])
        return outcomes

    def _pool(self, run: Run, states: Sums) -> Outcome | None:
        self._computed(run, 0)
        return _pool(run, states)

    def _take(self, run: Run, result: Result, scores: Scores) -> Outcome | None:
        """What a run gave that is no embedding: an error, an event, or nothing to tell before the prompt's end."""
        if isinstance(scores, RequestError):
            return scores
        if isinstance(result, RequestError):
            return result
        run.row.scores += scores
        outcome = self._append(run, result) if result else None
        self._computed(run, len(result))
        return outcome

    def _computed(self, run: Run, sampled: int) -> None:
        """Note what the slot holds now: what was run, but for drafts that were wrong or came after the row's end."""
        row, drafted = run.row, max(0, run.choosing - 1)
        assert row.place is not None
        accepted = max(0, sampled - 1)
        row.place.length = min(run.end - drafted + accepted, len(row.history))
        if drafted:
            row.drafts.learn(row.history, drafted, accepted)
            row.drafted += drafted
            row.accepted += accepted
            self.counters.drafted_tokens += drafted
            self.counters.accepted_tokens += accepted

    def fail(self, error: RequestError) -> list[tuple[Row, Outcome]]:
        """A step failed and the runner was reset: end all rows that run, for their caches are gone with the others."""
        failed = list(self.running)
        self._drop(failed)
        self.slots.forget()
        return [(row, error) for row in failed]

    def restart(self, cheap_tokens: int) -> None:
        """Another runner goes on from here, which holds nothing: what rows have is run anew, and they go on."""
        self._cheap_tokens = cheap_tokens
        self.slots.forget()
        for row in self.running:
            row.sums = ()
            if row.scores_prompt:
                row.scores.clear()

    def check(self) -> None:
        """The invariants: rows are where their state says, slots hold what they say, memory suffices.

        Raises AssertionError.
        """
        _must(all(row.place is None and not row.ended for row in self.waiting), "a waiting row has a slot or has ended")
        _must(all(row.place is not None and not row.ended for row in self.running), "a running row has no slot")
        used = [row.place for row in self.running if row.place is not None]
        reserved = [slot for slot in self.slots.all if slot.reserved]
        _must(sorted(s.number for s in used) == [s.number for s in reserved], "slots in use are not those of the rows")
        _must(all(row.place and row.place.token_ids is row.history for row in self.running), "a slot is another row's")
        scored = [(row, row.place.length) for row in self.running if row.scores_prompt and row.place]
        wrong = [row for row, run in scored if len(row.scores) != min(run, len(row.history) - 1)]
        _must(not wrong, "a prompt has not the scores of what was run of it")
        self.slots.check()

    def _append(self, run: Run, result: Sequence[Sampled]) -> Outcome:
        """Append tokens until one ends the row. Order: append, end-of-sequence ids, stop texts, length.

        Where none is asked for, what was chosen after the prompt is not taken.
        """
        row = run.row
        scores = () if row.answered else tuple((row.first or row).scores)
        if not row.request.max_new_tokens:
            return TokenEvent(row.index, "", 0, "length", cached_tokens=row.cached, prompt_logprobs=scores)
        text, finish, taken = "", None, 0
        try:
            while finish is None and taken < len(result):
                row.history.append(result[taken].token_id)
                new, finish = self._advance_text(row, result[taken].token_id)
                text, taken = text + new, taken + 1
        except Exception as error:  # a tokenizer's fault ends this row, not its neighbours
            return InternalError(f"the answer's text failed: {error}")
        self.counters.generated_tokens += taken
        logprobs = tuple(sampled.logprob for sampled in result[:taken] if sampled.logprob)
        return TokenEvent(row.index, text, taken, finish, logprobs, row.cached, prompt_logprobs=scores)

    def _advance_text(self, row: Row, token_id: int) -> tuple[str, FinishReason | None]:
        if token_id in self._end_ids:
            return row.text.finish()[0], "stop"
        text, stopped = row.text.push(token_id)
        if stopped:
            return text, "stop"
        if row.answered < row.request.max_new_tokens:
            return text, None
        rest, stopped = row.text.finish()
        return text + rest, "stop" if stopped else "length"

    def _drop(self, rows: Sequence[Row]) -> None:
        for row in rows:
            row.ended = True
            if row.place is None:
                self.waiting.remove(row)
            else:
                self.running.remove(row)
                self.slots.free(row.place)


def _reserve(request: Request) -> int:
    """Tokens that a sequence of this request may come to hold."""
    return len(request.prompt_ids) + request.max_new_tokens


def _pool(run: Run, states: Sums) -> Outcome | None:
    """Add a run's hidden states to those of its row; the event with the embedding, if that was the last of them.

    Of length 1 a sum and a mean are the same.
    """
    row = run.row
    added = row.sums and row.request.pooling == "mean"
    row.sums = tuple(map(operator.add, row.sums, states)) if added else tuple(states)
    if run.end < len(row.history):
        return None
    length = math.hypot(*row.sums)
    if not math.isfinite(length) or not length:
        return InternalError("the model gave no number for its hidden state: try another precision (bf16 or fp32)")
    embedding = tuple(value / length for value in row.sums)
    return TokenEvent(row.index, "", 0, "stop", cached_tokens=row.cached, embedding=embedding)


def _continue(row: Row, most: int) -> Run:
    """The run of a row's last token and of at most `most` drafted ones, never past the longest answer."""
    left = row.request.max_new_tokens - row.answered
    drafted = row.drafts.draft(row.history, min(most, left - 1))
    return Run(row, len(row.history) - 1, (row.history[-1], *drafted), wanted=1 + len(drafted))


def _must(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
