"""Measure the steps of the real engine to which the study fits its model."""

import asyncio
import itertools
import os
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from studies.capacity.steps import Step, pairs

RANDOM_IDS = range(1000, 40000)
WARM_UP_TOKENS = 16


def progress(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Batch:
    """Streams that the engine runs together: prompt tokens and new tokens for each."""

    name: str
    streams: tuple[tuple[int, int], ...]


def batches(most_rows: int) -> Iterator[Batch]:
    """Yield steps of every kind: few and many sequences, short and long contexts, prompts beside sequences."""
    for rows in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64):
        if rows <= most_rows:
            yield Batch(f"{rows} short streams", ((16, 32 if rows < 16 else 12),) * rows)
    yield Batch("1 stream in a long context", ((1800, 32),))
    yield Batch("4 streams in long contexts", ((1200, 24),) * 4)
    yield Batch("prompts of several lengths", tuple((tokens, 2) for tokens in (40, 90, 180, 300, 450, 512)))
    yield Batch("prompts beside streams", (*(((16, 64),) * 6), *((tokens, 24) for tokens in (250, 500, 900, 140, 60))))


class Recorder:
    """Records each step of an engine: its plan, and the time until the next plan, or until its commit if none follows.

    `clock` is called in the engine's thread.
    """

    def __init__(self, scheduler: Any, clock: Callable[[], float]):
        self.steps: list[Step] = []
        self._clock = clock
        self._plan, self._commit = scheduler.plan, scheduler.commit
        self._scheduler = scheduler
        self._open: tuple[float, Step] | None = None
        scheduler.plan, scheduler.commit = self.plan, self.commit

    def plan(self) -> Any:
        """Replace the scheduler's `plan`; end the step before it now if it is still open."""
        start = self._clock()
        self._close(start)
        plan = self._plan()
        self._open = (start, content_of(plan)) if plan.runs else None
        return plan

    def commit(self, *arguments: Any) -> Any:
        """Replace the scheduler's `commit`; without further work the step ends here, as the next plan may be late."""
        outcomes = self._commit(*arguments)
        if not self._scheduler.has_work:
            self._close(self._clock())
        return outcomes

    def _close(self, end: float) -> None:
        if self._open is not None:
            start, step = self._open
            self.steps.append(
                Step(step.rows, step.row_context, step.prompt_tokens, step.prompt_pairs, seconds=end - start)
            )
        self._open = None


def content_of(plan: Any) -> Step:
    rows = context = tokens = prompt_pairs = 0
    for run in plan.runs:
        if run.sequence.answered:
            rows, context = rows + 1, context + run.start
        else:
            tokens += len(run.token_ids)
            prompt_pairs += pairs(run.start, len(run.token_ids))
    return Step(rows, context, tokens, prompt_pairs)


def measure_steps(model_name: str, threads: int, seconds: float) -> list[Step]:
    """Measure steps of the engine of `rungpt serve`, without speculation, for about `seconds`.

    With one thread their time is that thread's processor time, which other programs change little; with more it is
    wall time.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
    import torch

    from run_gpt.config import EngineConfig, ModelConfig
    from run_gpt.local.create import load_model

    torch.set_num_threads(threads)
    progress(f"loading {model_name} with {threads} threads")
    config = EngineConfig(speculate=False, reuse_prefixes=False)
    model = load_model(ModelConfig(model_name=model_name), config)
    engine: Any = model._engine
    try:
        _run(engine, Batch("warm-up", ((WARM_UP_TOKENS, WARM_UP_TOKENS),) * 4), random.Random(0))
        recorder = Recorder(engine.scheduler, time.thread_time if threads == 1 else time.perf_counter)
        end = time.perf_counter() + seconds
        for number in itertools.count():
            for batch in batches(config.max_running):
                if number and time.perf_counter() > end:
                    return recorder.steps
                progress(f"round {number + 1}: {batch.name}")
                _run(engine, batch, random.Random(number))
        raise AssertionError("unreachable: the loop above ends by return")
    finally:
        model.shutdown()


def _run(engine: Any, batch: Batch, rng: random.Random) -> None:
    from run_gpt.engine.request import Request, SamplingParams

    async def stream(prompt_tokens: int, new_tokens: int) -> None:
        request = Request(
            id=uuid.uuid4().hex,
            prompt_ids=tuple(rng.choices(RANDOM_IDS, k=prompt_tokens)),
            max_new_tokens=new_tokens,
            sampling=SamplingParams(min_new_tokens=new_tokens),
        )
        async for _ in engine.submit(request):
            pass

    async def run() -> None:
        await asyncio.gather(*(stream(prompt, new) for prompt, new in batch.streams))

    asyncio.run(run())
