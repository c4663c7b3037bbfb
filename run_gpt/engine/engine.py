"""Engine: a thread that plans, runs and commits one step after the other, and the queues between it and its callers."""

import asyncio
import threading
import time
from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial

import torch
from msgspec.structs import replace
from prometheus_client import generate_latest

from run_gpt.config import EngineConfig
from run_gpt.engine.beam_search import BeamSearches
from run_gpt.engine.deliveries import Deliveries
from run_gpt.engine.errands import Errands
from run_gpt.engine.inbox import Delivery
from run_gpt.engine.interface import Engine, EngineStats, Outlet, State
from run_gpt.engine.metrics import EngineMetrics
from run_gpt.engine.plan import Outcome, Result, Scores, Sequence, StepPlan, Sums
from run_gpt.engine.request import Request, TokenEvent
from run_gpt.engine.runner import ModelRunner
from run_gpt.engine.runners.lora import Lora
from run_gpt.engine.sampler import Sampler
from run_gpt.engine.scheduler import Scheduler
from run_gpt.engine.score import score_prompts
from run_gpt.engine.text import Decode, TextStream
from run_gpt.engine.verify import choose_tokens
from run_gpt.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    RequestError,
    Unavailable,
)


class BatchEngine(Engine):
    """Engine over a ModelRunner.

    Failures: an exception in the forward pass fails the sequences of that step and resets the runner. If the next step
    fails as well, the engine is dead: `on_dead` is called, and everything is refused with Unavailable.
    """

    def __init__(
        self,
        runner: ModelRunner,
        decode: Decode,
        config: EngineConfig,
        on_dead: Callable[[], None] = lambda: None,
        on_shutdown: Callable[[], None] = lambda: None,
    ):
        self._runner = runner
        self._decode = decode
        self._config = config
        self._on_dead = on_dead
        self._on_shutdown = on_shutdown
        self._sampler = Sampler(runner.end_ids, runner.likeliest)
        self.scheduler = Scheduler(
            max_running=config.max_running,
            max_waiting=config.max_waiting,
            max_step_tokens=config.max_step_tokens,
            end_ids=runner.end_ids,
            new_text=self._new_text,
            max_cache_tokens=config.max_cache_tokens,
            reuse_prefixes=config.reuse_prefixes and runner.reuses_prefixes,
            cheap_tokens=self._cheap_tokens(),
        )
        self._errands = Errands()
        self._loras: dict[str, Lora] = {}
        self._changed = threading.Condition()
        self._state: State = "ready"
        self._stopping = False
        self._failures = 0
        self._deliveries = Deliveries(self._abandon)
        self._beams = BeamSearches(config.max_waiting, self._new_text, runner.end_ids)
        self._metrics = EngineMetrics(self.scheduler, self._beams, self._changed)
        self._thread = threading.Thread(target=self._live, name="rungpt-engine", daemon=True)
        self._thread.start()

    def start(self, request: Request, outlet: Outlet) -> None:
        """See Engine."""
        loop = asyncio.get_running_loop()
        with self._changed:
            if self._state != "ready":
                raise Unavailable(f"the engine is {self._state}: ask another replica, or try again later")
            delivery = self._deliveries.new(request, outlet, loop)
            self._admit(request, delivery)
            if request.deadline is not None:
                delivery.timer = loop.call_later(request.deadline - time.monotonic(), self._expire, delivery)

    def abort(self, request_id: str) -> None:
        """See Engine."""
        with self._changed:
            if (delivery := self._deliveries.get(request_id)) is not None:
                self._abandon(delivery)
            else:
                self._deliveries.cut(request_id)

    def _abandon(self, delivery: Delivery) -> None:
        """Free the resources of a request, if it has not ended, without a call of its outlet."""
        with self._changed:
            delivery.inbox.drop(delivery)
            if self._deliveries.has(delivery):
                self._close(delivery)
                self.scheduler.abort(delivery.request_id)

    def _expire(self, delivery: Delivery) -> None:
        with self._changed:
            if self._deliveries.has(delivery):
                self._put(delivery, DeadlineExceeded("the request's time was up before its answer was complete"))
                self._deliveries.flush()

    def stats(self) -> EngineStats:
        """See Engine."""
        with self._changed:
            scheduler = self.scheduler
            return EngineStats(
                self._state,
                len(scheduler.running),
                len(scheduler.waiting) + len(self._beams),
                len(scheduler.slots.kept),
                **asdict(scheduler.counters),
            )

    def metrics(self) -> str:
        """See Engine."""
        return generate_latest(self._metrics).decode()

    def shutdown(self, drain_seconds: float = 0.0) -> None:
        """See Engine."""
        with self._changed:
            if self._state == "ready":
                self._state = "draining"
            self._changed.wait_for(lambda: not self._deliveries, timeout=drain_seconds)
            self._stopping = True
            self._refuse_errands()
            self._end_all(Unavailable("the server was stopped before the answer was complete"))
            self._changed.notify_all()
        self._thread.join()
        self._beams.shutdown()
        self._on_shutdown()

    def replace_runner(self, runner: ModelRunner) -> bool:
        """Replace the runner by another one of the same model, between two steps; blocks.

        Returns False if the engine ended before. Running sequences are recomputed from their tokens so far. Both
        runners must reuse prefixes, or neither. Raises ValueError if an adapter does not fit the other runner.
        """

        def replace() -> None:
            used = [delivery.adapter for delivery in self._deliveries if delivery.adapter is not None]
            for lora in {*self._loras.values(), *used}:
                runner.add_adapter(lora)
            self._runner, self._sampler = runner, Sampler(runner.end_ids, runner.likeliest)
            self.scheduler.restart(self._cheap_tokens())

        try:
            self._between_steps(replace)
        except Unavailable:
            return False
        return True

    def load_adapter(self, name: str, weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """See Engine."""
        lora = Lora(name, weights)

        def load() -> None:
            if name in self._loras:
                raise InvalidRequest(
                    f"name = {name!r}: an adapter of this name is loaded: unload it first", param="name"
                )
            self._runner.add_adapter(lora)
            self._loras[name] = lora

        try:
            self._between_steps(load)
        except ValueError as error:
            raise InvalidRequest(f"the adapter {name!r} does not fit: {error}", param="path") from error

    def unload_adapter(self, name: str) -> None:
        """See Engine."""
        with self._changed:
            lora = self._lora(name)
            del self._loras[name]
            self._changed.wait_for(lambda: self._over or all(one.adapter is not lora for one in self._deliveries))

        def unload() -> None:
            self._runner.remove_adapter(lora)
            self.scheduler.slots.drop(lora)

        self._between_steps(unload)

    @property
    def adapters(self) -> tuple[str, ...]:
        """See Engine."""
        return tuple(self._loras)

    def _lora(self, name: str) -> Lora:
        if name not in self._loras:
            there = f"there are {', '.join(self._loras)}" if self._loras else "none is loaded"
            raise ModelNotFound(f"adapter = {name!r} is not loaded: {there}", param="adapter")
        return self._loras[name]

    def _between_steps(self, errand: Callable[[], None]) -> None:
        """Call `errand` in the engine's thread between two steps, while the runner is idle; blocks.

        Raises the errand's error, and Unavailable if the engine ends before.
        """
        with self._changed:
            done = self._errands.add(errand)
            if self._over:
                self._refuse_errands()
            self._changed.notify_all()
        done.result()

    def _refuse_errands(self) -> None:
        self._errands.refuse(Unavailable(f"the engine is {self._state}"))

    @property
    def _over(self) -> bool:
        return self._stopping or self._state == "dead"

    def fail(self, reason: str) -> None:
        """End the engine because its runner lost something that it needs; callable from any thread."""
        if self._state != "dead":
            self._die(reason)

    def _admit(self, request: Request, delivery: Delivery) -> None:
        delivery.adapter = None if request.adapter is None else self._lora(request.adapter)
        if request.num_beams > 1:
            self._beams.start(
                request,
                lambda stop: self._runner.beam_search(request, stop, delivery.adapter),
                partial(self._beams_ended, request, delivery),
            )
        else:
            now = time.perf_counter()
            for sequence in self.scheduler.add(request, delivery.adapter):
                sequence.times.arrived = now
        self._deliveries.open(delivery)
        self._changed.notify_all()

    def _live(self) -> None:
        """Run the engine's thread. If anything but `shutdown` ends it, the engine is dead and all requests end."""
        try:
            self._loop()
        except Exception as error:
            self._die(self._explain(error))

    def _die(self, reason: str) -> None:
        with self._changed:
            if self._state == "dead":
                return
            self._state = "dead"
            self._refuse_errands()
            self._end_all(Unavailable(f"the engine is dead: {reason}"))
            self._changed.notify_all()
        self._on_dead()

    def _loop(self) -> None:
        while self._state != "dead":
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._errands or self.scheduler.has_work)
                if self._stopping:
                    return
                self._errands.do()
                started = time.perf_counter()
                plan = self.scheduler.plan()
            try:
                results = self._run(plan)
            except Exception as error:
                self._step_failed(error)
                continue
            self._failures = 0
            with self._changed:
                outcomes = self.scheduler.commit(plan, *results)
                self._metrics.step(plan, outcomes, started, time.perf_counter())  # it sets the sequences' times
                self._deliver(outcomes)

    def _run(self, plan: StepPlan) -> tuple[list[Result], list[Sums], list[Scores]]:
        """Run a step. Returns the arguments of `commit`: sampled tokens, sums of pooled runs, scores of prompts."""
        self._runner.release(plan.released)
        self._runner.copy(plan.copies)
        answering, pooled = [[run for run in plan.runs if run.pooled is which] for which in (False, True)]
        results: list[Result] = []
        scores: list[Scores] = []
        if answering:
            logits = self._runner.forward(answering)
            results, scores = choose_tokens(self._sampler, logits, answering), score_prompts(logits, answering)
        return results, self._runner.embed(pooled).tolist() if pooled else [], scores

    def _deliver(self, outcomes: abc.Sequence[tuple[Sequence, Outcome]]) -> None:
        for sequence, outcome in outcomes:
            if isinstance(outcome, TokenEvent) and outcome.finish_reason is not None:
                outcome = replace(outcome, timing=sequence.timing)
            if (delivery := self._deliveries.get(sequence.request.id)) is not None:  # else it was aborted
                self._put(delivery, outcome)
        self._deliveries.flush()

    def _put(self, delivery: Delivery, outcome: Outcome) -> None:
        """Queue an event or an error, and end the request if it is the last one. The caller flushes later."""
        if isinstance(outcome, RequestError):
            self._close(delivery)
            self.scheduler.abort(delivery.request_id)
            delivery.inbox.end(delivery, outcome)
            return
        delivery.inbox.put(delivery, outcome)
        if outcome.finish_reason is not None:
            delivery.unfinished -= 1
            if delivery.unfinished == 0:
                self._close(delivery)
                delivery.inbox.end(delivery, None)

    def _close(self, delivery: Delivery) -> None:
        """Note that a request has ended."""
        self._deliveries.close(delivery)
        self._beams.stop(delivery.request_id)
        self._changed.notify_all()

    def _end_all(self, error: RequestError) -> None:
        for delivery in self._deliveries:
            self._put(delivery, error)
        self._deliveries.flush()

    def _step_failed(self, error: Exception) -> None:
        self._failures += 1
        reason = self._explain(error)
        self._runner.reset()
        with self._changed:
            self._deliver(self.scheduler.fail(InternalError(reason)))
        if self._failures == 2:
            self._die(reason)

    def _explain(self, error: Exception) -> str:
        text = str(error).strip().split("\n")[0]
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
            return (
                f"out of memory in the model: lower --max-cache-tokens (now {self._config.max_cache_tokens}), "
                f"--max-running (now {self._config.max_running}) or --max-context, or use a smaller --precision"
            )
        return f"the model failed: {type(error).__name__}: {text}"

    def _beams_ended(
        self, request: Request, delivery: Delivery, result: abc.Sequence[TokenEvent] | Exception, seconds: float
    ) -> None:
        """Take the result of a beam search (see beam_search.Ended)."""
        events: abc.Sequence[TokenEvent] = []
        outcomes: abc.Sequence[Outcome]
        if isinstance(result, Exception):
            outcomes = [InternalError(self._explain(result))]
        else:
            outcomes = events = result
        with self._changed:
            if not self._deliveries.has(delivery):  # it was stopped
                return
            self._metrics.beams(request, events, seconds)
            for outcome in outcomes:
                self._put(delivery, outcome)
            self._deliveries.flush()

    def _cheap_tokens(self) -> int:
        return self._runner.cheap_tokens if self._config.speculate else 1

    def _new_text(self, request: Request) -> TextStream:
        return TextStream(self._decode, request.prompt_ids, request.stop, whole=request.whole)
