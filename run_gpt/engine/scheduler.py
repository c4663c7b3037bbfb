"""Which rows run in the next step, and what became of them. Policy only: no torch, no threads, no clock of its own."""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from run_gpt.engine.request import FinishReason, Request, TokenEvent, TokenLogprob
from run_gpt.engine.text import TextStream
from run_gpt.errors import InternalError, QueueFull, RequestError

WAITING = -1


@dataclass(eq=False)
class Row:
    """One sequence of a request, from the queue to its end."""

    request: Request
    index: int
    text: TextStream
    random: random.Random
    token_ids: list[int] = field(default_factory=list)
    """The answer so far."""
    slot: int = WAITING
    """Its place in the batch, which it keeps when it has ended, for a step may still be running on it."""
    ended: bool = False

    @property
    def history(self) -> Sequence[int]:
        """Prompt and answer so far."""
        return (*self.request.prompt_ids, *self.token_ids)


@dataclass(frozen=True)
class StepPlan:
    """One step: slots whose cache may go, rows whose whole prompt is to be run, rows that continue by one token."""

    released: tuple[int, ...]
    prefill: tuple[Row, ...]
    decode: tuple[Row, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows that get a token in this step, in the order of the logits."""
        return self.prefill + self.decode


@dataclass(frozen=True)
class Sampled:
    """What the sampler chose for a row."""

    token_id: int
    logprob: TokenLogprob | None = None


Outcome = TokenEvent | RequestError


class Scheduler:
    """First come, first served, into a fixed number of slots.

    Contract: `plan` says what runs; the caller runs it and gives `commit` one result for each of the plan's rows.
    Between the two, `add` and `abort` may be called: rows that went are skipped by `commit`, and their slots are given
    out, and named in `released`, by the next `plan`. Every row ends exactly once: by an event with a finish reason or
    by an error, from `commit` or `fail`; or without a word by `abort`, whose caller asked for that.
    """

    def __init__(
        self,
        *,
        max_running: int,
        max_waiting: int,
        end_ids: Sequence[int],
        new_text: Callable[[Request], TextStream],
    ):
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []
        self._end_ids = frozenset(end_ids)
        self._new_text = new_text
        self._free = list(range(max_running - 1, -1, -1))
        self._released: list[int] = []

    def add(self, request: Request) -> None:
        """Queue a request's sequences. Raises QueueFull when they would make more than `max_waiting` wait."""
        must_wait = len(self.waiting) + request.sequences - (self.max_running - len(self.running))
        if must_wait > self.max_waiting:
            raise QueueFull(
                f"{len(self.waiting)} sequences wait, {request.sequences} more would pass the limit of "
                f"{self.max_waiting}: try again in {QueueFull.retry_after} s, or raise --max-waiting"
            )
        for index in range(request.sequences):
            seed = None if request.sampling.seed is None else f"{request.sampling.seed}/{index}"
            self.waiting.append(Row(request, index, self._new_text(request), random.Random(seed)))

    def abort(self, request_id: str) -> None:
        """Forget a request; an unknown one is no error, for it may have ended by now."""
        self._drop([row for row in (*self.waiting, *self.running) if row.request.id == request_id])

    def plan(self) -> StepPlan:
        """Give free slots to the rows that waited longest, and say what the next step runs."""
        decode = tuple(self.running)
        prefill = []
        while self.waiting and self._free:
            row = self.waiting.popleft()
            row.slot = self._free.pop()
            self.running.append(row)
            prefill.append(row)
        released = tuple(self._released)
        self._released.clear()
        return StepPlan(released, tuple(prefill), decode)

    def commit(self, plan: StepPlan, results: Sequence[Sampled | RequestError]) -> list[tuple[Row, Outcome]]:
        """Append each row's token and say what is new; a row that ended frees its slot."""
        outcomes: list[tuple[Row, Outcome]] = []
        for row, result in zip(plan.rows, results, strict=True):
            if row.ended:  # aborted while the step ran
                continue
            outcome = result if isinstance(result, RequestError) else self._append(row, result)
            outcomes.append((row, outcome))
        self._drop([row for row, outcome in outcomes if not isinstance(outcome, TokenEvent) or outcome.finish_reason])
        return outcomes

    def fail(self, rows: Sequence[Row], error: RequestError) -> list[tuple[Row, Outcome]]:
        """End these rows with an error; those that have ended already are left out."""
        alive = [row for row in rows if not row.ended]
        self._drop(alive)
        return [(row, error) for row in alive]

    def check(self) -> None:
        """The invariants: each slot is free or used by one row, and waiting rows have none. Raises AssertionError."""
        used = [row.slot for row in self.running]
        if sorted([*self._free, *used]) != list(range(self.max_running)):
            raise AssertionError(f"slots: {self._free} free, {used} used, of {self.max_running}")
        if any(row.slot != WAITING or row.ended for row in self.waiting) or any(row.ended for row in self.running):
            raise AssertionError("a row is in a queue that does not fit its state")

    def _append(self, row: Row, sampled: Sampled) -> Outcome:
        """Order: append, end-of-sequence ids, stop texts, length."""
        row.token_ids.append(sampled.token_id)
        try:
            text, finish = self._advance_text(row, sampled.token_id)
        except Exception as error:  # a tokenizer's fault ends this row, not its neighbours
            return InternalError(f"the answer's text failed: {error}")
        return TokenEvent(row.index, text, 1, finish, (sampled.logprob,) if sampled.logprob else ())

    def _advance_text(self, row: Row, token_id: int) -> tuple[str, FinishReason | None]:
        if token_id in self._end_ids:
            return row.text.finish()[0], "stop"
        text, stopped = row.text.push(token_id)
        if stopped:
            return text, "stop"
        if len(row.token_ids) < row.request.max_new_tokens:
            return text, None
        rest, stopped = row.text.finish()
        return text + rest, "stop" if stopped else "length"

    def _drop(self, rows: Sequence[Row]) -> None:
        for row in rows:
            row.ended = True
            if row.slot == WAITING:
                self.waiting.remove(row)
            else:
                self.running.remove(row)
                self._free.append(row.slot)
                self._released.append(row.slot)
