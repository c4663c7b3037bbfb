"""A replica of the simulation: our scheduler's rules with counts of tokens instead of tokens.

Its steps hold the same as the plans of run_gpt.engine.scheduler; a test compares the two.
"""

from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass
from typing import Any

from run_gpt.config import EngineConfig
from studies.capacity.steps import pairs

Conversation = tuple[int, int]
StepContent = tuple[int, int, int, int]
"""Sequences, their context, prompt tokens, pairs: see steps.Step."""


@dataclass(frozen=True)
class ReplicaConfig:
    """Options of `rungpt serve`, and the threads of a replica's engine."""

    max_running: int = EngineConfig.max_running
    max_waiting: int = EngineConfig.max_waiting
    max_step_tokens: int = EngineConfig.max_step_tokens
    max_cache_tokens: int | None = EngineConfig.max_cache_tokens
    threads: int = 1


@dataclass(eq=False)
class Row:
    """One request in a replica."""

    request: Any
    conversation: Conversation
    prompt: int
    answer: int
    shared: int
    """Tokens at its beginning that all prompts share."""
    cached: int = 0
    done: int = 0
    """Tokens of the prompt that were run or reused."""


class Replica:
    """Sequences that wait, prefill, and decode one token each step; and the tokens that ended ones left for reuse."""

    def __init__(self, config: ReplicaConfig):
        self.config = config
        self.stepping = False
        self.busy = 0.0
        self.waiting: deque[Row] = deque()
        self.prefilling: list[Row] = []
        self.rows = 0
        """Number of sequences past their prompt."""
        self.context = 0
        """Tokens of these sequences in the cache."""
        self.kept: OrderedDict[Conversation, int] = OrderedDict()
        """Tokens that ended sequences left, the longest unused first."""
        self.steps = 0
        self._reserved = self._kept_tokens = 0
        self._warm = False
        self._ending: dict[int, list[Row]] = defaultdict(list)
        self._by_gateway: dict[int, int] = defaultdict(int)
        self._parts: list[tuple[Row, int]] = []

    @property
    def running(self) -> int:
        """Number of sequences that have a slot."""
        return self.rows + len(self.prefilling)

    def add(self, row: Row) -> bool:
        """Queue a sequence. False: it is refused, since too many wait."""
        if len(self.waiting) + 1 - (self.config.max_running - self.running) > self.config.max_waiting:
            return False
        self.waiting.append(row)
        return True

    def begin(self) -> StepContent | None:
        """Plan a step and return its content; None: there is nothing to run."""
        budget = max(1, self.config.max_step_tokens - self.rows)
        self._parts, prompt_pairs, before = [], 0, budget
        for row in self.prefilling:
            budget, prompt_pairs = self._run(row, budget, prompt_pairs)
        while self.waiting and budget and self.running < self.config.max_running and self._place(self.waiting[0]):
            row = self.waiting.popleft()
            self.prefilling.append(row)
            budget, prompt_pairs = self._run(row, budget, prompt_pairs)
        if not self.rows and not self._parts:
            return None
        self.stepping = True
        return self.rows, self.context, before - budget, prompt_pairs

    def end(self) -> tuple[dict[int, int], list[Row], list[Row]]:
        """End the step: return events by gateway, sequences with their first token, ended sequences."""
        self.stepping = False
        self.steps += 1
        events = dict(self._by_gateway)
        self.context += self.rows
        ended = self._ending.pop(self.steps, [])
        for row in ended:
            self.rows -= 1
            self.context -= row.prompt + row.answer - 1
            self._count(row, -1)
        first = []
        for row, tokens in self._parts:
            row.done += tokens
            if row.done == row.prompt:
                first.append(row)
        self._warm = self._warm or bool(first)
        for row in first:
            self.prefilling.remove(row)
            if row.answer == 1:
                ended.append(row)
            else:
                self.rows += 1
                self.context += row.prompt
                self._count(row, 1)
                self._ending[self.steps + row.answer - 1].append(row)
        for row in ended:
            self._keep(row)
        return events, first, ended

    def _run(self, row: Row, budget: int, prompt_pairs: int) -> tuple[int, int]:
        tokens = min(budget, row.prompt - row.done)
        if tokens:
            self._parts.append((row, tokens))
        return budget - tokens, prompt_pairs + pairs(row.done, tokens)

    def _place(self, row: Row) -> bool:
        """Give a sequence a slot and its reusable tokens, if there is memory for it."""
        reserve, limit = row.prompt + row.answer, self.config.max_cache_tokens
        if limit is not None and self._reserved + reserve > limit:
            return False
        held = self.kept.pop(row.conversation, 0)
        self._kept_tokens -= held
        if len(self.kept) + self.running >= self.config.max_running:
            self._forget()
        while limit is not None and self._reserved + reserve + self._kept_tokens > limit and self.kept:
            self._forget()
        shared = row.shared if self._warm else 0
        row.cached = row.done = min(max(held, shared), row.prompt - 1)
        self._reserved += reserve
        return True

    def _keep(self, row: Row) -> None:
        """Keep the tokens of an ended sequence, but for the last one, which was not run."""
        self._reserved -= row.prompt + row.answer
        self._kept_tokens -= self.kept.pop(row.conversation, 0)
        self.kept[row.conversation] = row.prompt + row.answer - 1
        self._kept_tokens += self.kept[row.conversation]

    def _forget(self) -> None:
        if self.kept:
            self._kept_tokens -= self.kept.popitem(last=False)[1]

    def _count(self, row: Row, change: int) -> None:
        gateway = row.request.gateway if row.request is not None else 0
        self._by_gateway[gateway] += change
        if not self._by_gateway[gateway]:
            del self._by_gateway[gateway]
