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
    first: "Row | None" = None
    """The first sequence of its request, whose prompt it shares; None for the first itself."""
    computed: int = 0
    """Tokens of the prompt that have been run, or are being run by the step that was planned last."""
    forks_from: "Row | None" = None
    """The row that runs this one's prompt, while it does."""
    slot: int = WAITING
    """Its place in the batch, which it keeps when it has ended, for a step may still be running on it."""
    ended: bool = False

    @property
    def history(self) -> Sequence[int]:
        """Prompt and answer so far."""
        return (*self.request.prompt_ids, *self.token_ids)

    @property
    def prefilled(self) -> bool:
        """Whether its whole prompt has been run, or is being run by the step that was planned last."""
        return self.computed == len(self.request.prompt_ids)


@dataclass(frozen=True)
class Chunk:
    """The part of a row's prompt that one step runs: tokens `start` up to, not with, `end`."""

    row: Row
    start: int
    end: int

    @property
    def slot(self) -> int:
        """The row's slot."""
        return self.row.slot

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens of this part."""
        return self.row.request.prompt_ids[self.start : self.end]

    @property
    def last(self) -> bool:
        """Whether the prompt ends with this part."""
        return self.end == len(self.row.request.prompt_ids)


@dataclass(frozen=True)
class Fork:
    """A row that takes over what another one's prompt left in its slot."""

    source: Row
    row: Row


@dataclass(frozen=True)
class StepPlan:
    """One step: slots to free, parts of prompts to run, then copies of prompts, and rows to continue by one token."""

    released: tuple[int, ...]
    prefill: tuple[Chunk, ...]
    forks: tuple[Fork, ...]
    decode: tuple[Row, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows that get a token: those whose prompt ends in this step, the forks, those that continue."""
        ending = [chunk.row for chunk in self.prefill if chunk.last]
        return (*ending, *(fork.row for fork in self.forks), *self.decode)


@dataclass(frozen=True)
class Sampled:
    """What the sampler chose for a row."""

    token_id: int
    logprob: TokenLogprob | None = None


Outcome = TokenEvent | RequestError


class Scheduler:
    """First come, first served, into a fixed number of slots.

    A step runs every row that is past its prompt, and of the others' prompts no more than `max_step_tokens` tokens: a
    long prompt takes several steps, between which the others go on. The sequences of one request run its prompt once.

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
        max_step_tokens: int,
        end_ids: Sequence[int],
        new_text: Callable[[Request], TextStream],
    ):
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.max_step_tokens = max_step_tokens
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
        first = None
        for index in range(request.sequences):
            seed = None if request.sampling.seed is None else f"{request.sampling.seed}/{index}"
            row = Row(request, index, self._new_text(request), random.Random(seed), first=first)
            self.waiting.append(row)
            first = first or row

    def abort(self, request_id: str) -> None:
        """Forget a request; an unknown one is no error, for it may have ended by now."""
        self._drop([row for row in (*self.waiting, *self.running) if row.request.id == request_id])

    @property
    def has_work(self) -> bool:
        """Whether the next plan would hold anything: rows to run, or slots to free."""
        return bool(self.waiting or self.running or self._released)

    def plan(self) -> StepPlan:
        """Say what the next step runs; free slots go to the rows that waited longest."""
        decode = [row for row in self.running if row.prefilled]
        budget = max(1, self.max_step_tokens - len(decode))
        chunks: list[Chunk] = []
        for row in self.running:
            if budget and not row.prefilled and row.forks_from is None:
                budget -= self._run_prompt(row, budget, chunks)
        while self.waiting and self._free:
            row = self.waiting[0]
            if shared := self._shared_prompt(row, chunks):
                row.forks_from = row.first
            elif not budget:
                break
            self._place(self.waiting.popleft())
            if not shared:
                budget -= self._run_prompt(row, budget, chunks)
        released = tuple(self._released)
        self._released.clear()
        return StepPlan(released, tuple(chunks), self._forks(chunks), tuple(decode))

    def _place(self, row: Row) -> None:
        row.slot = self._free.pop()
        self.running.append(row)

    @staticmethod
    def _run_prompt(row: Row, budget: int, chunks: list[Chunk]) -> int:
        """Plan the next part of a row's prompt; returns its tokens."""
        start = row.computed
        row.computed = min(start + budget, len(row.request.prompt_ids))
        chunks.append(Chunk(row, start, row.computed))
        return row.computed - start

    @staticmethod
    def _shared_prompt(row: Row, chunks: Sequence[Chunk]) -> bool:
        """Whether the first sequence of its request is still running the prompt, in this step or later ones."""
        first = row.first
        if first is None or first.ended or first.slot == WAITING:
            return False
        return not first.prefilled or any(chunk.row is first for chunk in chunks)

    def _forks(self, chunks: Sequence[Chunk]) -> tuple[Fork, ...]:
        """The rows whose prompt has been run by another row when this step's `chunks` have."""
        ending = [chunk.row for chunk in chunks if chunk.last]
        forks = [Fork(row.forks_from, row) for row in self.running if row.forks_from in ending and row.forks_from]
        for fork in forks:
            fork.row.computed, fork.row.forks_from = fork.source.computed, None
        return tuple(forks)

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
