"""Engine: a thread that plans, runs and commits one step after the other, and the queues between it and its callers."""

import asyncio
import threading
import time
from collections import abc
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import torch
from msgspec.structs import replace
from prometheus_client import generate_latest

from run_gpt.config import EngineConfig
from run_gpt.engine.errands import Errands
from run_gpt.engine.inbox import Delivery, Inbox
from run_gpt.engine.interface import Engine, EngineStats, Outlet, State
from run_gpt.engine.metrics import EngineMetrics
from run_gpt.engine.request import Request, TokenEvent
from run_gpt.engine.runner import ModelRunner
from run_gpt.engine.runners.lora import Lora
from run_gpt.engine.sampler import Sampler
from run_gpt.engine.scheduler import Outcome, Result, Scheduler, Scores, Sequence, StepPlan, Sums
from run_gpt.engine.score import score_prompts
from run_gpt.engine.text import Decode, TextStream
from run_gpt.engine.timing import Timing
from run_gpt.engine.verify import choose_tokens
from run_gpt.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
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
        self._lora_of: dict[str, Lora] = {}
        self._changed = threading.Condition()
        self._state: State = "ready"
        self._stopping = False
        self._failures = 0
        self._deliveries: dict[str, Delivery] = {}
        self._inboxes: dict[asyncio.AbstractEventLoop, Inbox] = {}
        self._beams: dict[str, threading.Event] = {}
        self._metrics = EngineMetrics(self.scheduler, self._beams, self._changed)
        self._beam_thread = ThreadPoolExecutor(1, thread_name_prefix="rungpt-beam")
        self._thread = threading.Thread(target=self._live, name="rungpt-engine", daemon=True)
        self._thread.start()

    def start(self, request: Request, outlet: Outlet) -> None:
        """See Engine."""
        loop = asyncio.get_running_loop()
        with self._changed:
            delivery = Delivery(request, outlet, self._inbox(loop))
            self._admit(request, delivery)
            if request.deadline is not None:
                delivery.timer = loop.call_later(request.deadline - time.monotonic(), self._expire, delivery)

    def abort(self, request_id: str) -> None:
        """See Engine."""
        with self._changed:
            if (delivery := self._deliveries.get(request_id)) is not None:
                self._abandon(delivery)
                return
            for inbox in self._inboxes.values():
                inbox.cut(request_id)

    def _inbox(self, loop: asyncio.AbstractEventLoop) -> Inbox:
        if loop not in self._inboxes:
            for inbox in [inbox for other, inbox in self._inboxes.items() if other.is_closed()]:
                self._leave(inbox)
            self._inboxes[loop] = Inbox(loop, self._abandon)
        return self._inboxes[loop]

    def _leave(self, inbox: Inbox) -> None:
        """Abort the requests of a closed event loop, because their outlets cannot be called any more."""
        del self._inboxes[inbox.loop]
        for delivery in [one for one in self._deliveries.values() if one.inbox is inbox]:
            self._abandon(delivery)

    def _abandon(self, delivery: Delivery) -> None:
        """Free the resources of a request, if it has not ended, without a call of its outlet."""
        with self._changed:
            delivery.inbox.drop(delivery)
            if self._deliveries.get(delivery.request_id) is delivery:
                self._forget(delivery.request_id)
                self.scheduler.abort(delivery.request_id)

    def _expire(self, delivery: Delivery) -> None:
        with self._changed:
            if self._deliveries.get(delivery.request_id) is delivery:
                error = DeadlineExceeded("the request's time was up before its answer was complete")
                self._outcome(delivery.request_id, error)
                self._flush()

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
        self._beam_thread.shutdown()
        self._on_shutdown()

    def replace_runner(self, runner: ModelRunner) -> bool:
        """Replace the runner by another one of the same model, between two steps; blocks.

        Returns False if the engine ended before. Running sequences are recomputed from their tokens so far. Both
        runners must reuse prefixes, or neither. Raises ValueError if an adapter does not fit the other runner.
        """

        def replace() -> None:
            for lora in {*self._loras.values(), *self._lora_of.values()}:
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
            self._changed.wait_for(lambda: lora not in self._lora_of.values() or self._over)

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
        if self._state != "ready":
            raise Unavailable(f"the engine is {self._state}: ask another replica, or try again later")
        if request.id in self._deliveries:
            raise InvalidRequest(f"id = {request.id!r}: a request with this id is running", param="id")
        lora = None if request.adapter is None else self._lora(request.adapter)
        if request.num_beams > 1:
            self._start_beams(request, lora)
        else:
            now = time.perf_counter()
            for sequence in self.scheduler.add(request, lora):
                sequence.times.arrived = now
        if lora is not None:
            self._lora_of[request.id] = lora
        self._deliveries[request.id] = delivery
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
            self._outcome(sequence.request.id, outcome)
        self._flush()

    def _outcome(self, request_id: str, outcome: Outcome) -> None:
        """Queue an event or an error, and end the request if it is the last one. The caller calls `_flush` later."""
        delivery = self._deliveries.get(request_id)
        if delivery is None:  # it was aborted
            return
        if isinstance(outcome, RequestError):
            self._forget(request_id)
            self.scheduler.abort(request_id)
            delivery.inbox.end(delivery, outcome)
            return
        delivery.inbox.put(delivery, outcome)
        if outcome.finish_reason is not None:
            delivery.unfinished -= 1
            if delivery.unfinished == 0:
                self._forget(request_id)
                delivery.inbox.end(delivery, None)

    def _flush(self) -> None:
        """Wake each event loop that has something to deliver."""
        for inbox in list(self._inboxes.values()):
            if not inbox.flush():
                self._leave(inbox)

    def _forget(self, request_id: str) -> None:
        self._deliveries.pop(request_id, None)
        self._lora_of.pop(request_id, None)
        if (stopped := self._beams.pop(request_id, None)) is not None:
            stopped.set()
        self._changed.notify_all()

    def _end_all(self, error: RequestError) -> None:
        for request_id in list(self._deliveries):
            self._outcome(request_id, error)
        self._flush()

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

    def _start_beams(self, request: Request, lora: Lora | None) -> None:
        """Queue a beam search. They run beside the batch, one request at a time, in a separate thread."""
        if request.prompt_logprobs is not None or not request.max_new_tokens:
            raise InvalidRequest(
                f"num_beams = {request.num_beams}: beam search gives at least one token, and no scores of the prompt: "
                "leave it out",
                param="num_beams",
            )
        if len(self._beams) >= self._config.max_waiting:
            raise QueueFull(f"{len(self._beams)} beam searches wait, the limit is {self._config.max_waiting}")
        self._beams[request.id] = stopped = threading.Event()
        self._beam_thread.submit(self._search_beams, request, stopped, lora, time.perf_counter())

    def _search_beams(self, request: Request, stopped: threading.Event, lora: Lora | None, arrived: float) -> None:
        if stopped.is_set():
            return
        started = time.perf_counter()
        events: list[TokenEvent] = []
        outcomes: abc.Sequence[Outcome] = events
        try:
            answers = self._runner.beam_search(request, stopped, lora)
            timing = Timing(arrived, started, started, time.perf_counter())
            events += [
                replace(self._beam_event(request, index, ids), timing=timing) for index, ids in enumerate(answers)
            ]
        except Exception as error:
            outcomes = [InternalError(self._explain(error))]
        with self._changed:
            if not stopped.is_set():
                self._metrics.beams(request, events, time.perf_counter() - arrived)
            for outcome in outcomes:
                self._outcome(request.id, outcome)
            self._flush()

    def _beam_event(self, request: Request, index: int, token_ids: abc.Sequence[int]) -> TokenEvent:
        text, shown = self._new_text(request), ""
        for count, token_id in enumerate(token_ids, start=1):
            if token_id in self._runner.end_ids:
                return TokenEvent(index, shown + text.finish()[0], count, "stop")
            new, stopped = text.push(token_id)
            shown += new
            if stopped:
                return TokenEvent(index, shown, count, "stop")
        rest, stopped = text.finish()
        return TokenEvent(index, shown + rest, len(token_ids), "stop" if stopped else "length")

    def _cheap_tokens(self) -> int:
        return self._runner.cheap_tokens if self._config.speculate else 1

    def _new_text(self, request: Request) -> TextStream:
        return TextStream(self._decode, request.prompt_ids, request.stop, whole=request.whole)
