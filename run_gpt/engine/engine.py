"""Engine: a thread that plans, runs and commits one step after the other, and the queues between it and its callers."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial

import torch
from prometheus_client import generate_latest

from run_gpt.config import EngineConfig
from run_gpt.engine.adapters import LoadedAdapters
from run_gpt.engine.beam_search import BeamSearches
from run_gpt.engine.deliveries import Deliveries
from run_gpt.engine.exits import end_at_exit
from run_gpt.engine.heartbeat import Heartbeat
from run_gpt.engine.inbox import Delivery
from run_gpt.engine.interface import Engine, EngineStats, Outlet, State
from run_gpt.engine.metrics import EngineMetrics
from run_gpt.engine.plan import StepPlan
from run_gpt.engine.request import Request, TokenEvent
from run_gpt.engine.runner import ModelRunner
from run_gpt.engine.runners.lora import Lora
from run_gpt.engine.sampler import Sampler
from run_gpt.engine.scheduler import Scheduler
from run_gpt.engine.steps import describe_failure, run_step, try_alone
from run_gpt.engine.tasks import TaskQueue
from run_gpt.engine.text import Decode, TextStream
from run_gpt.errors import InternalError, InvalidRequest, Unavailable


class BatchEngine(Engine):
    """Engine over a ModelRunner.

    Failures: a fault in the data of one sequence ends that sequence (see Scheduler, choose_tokens and Deliveries). If
    the runner fails, the sequence with which it fails alone is found and ended, and the others go on (see Suspects).
    If it then fails without any sequence, the engine is dead: `on_dead` is called, and everything is refused with
    Unavailable. An error beside runner and sequences ends all that run; two such steps in a row end the engine.
    """

    def __init__(
        self,
        runner: ModelRunner,
        decode: Decode,
        config: EngineConfig,
        on_dead: Callable[[], None] = lambda: None,
        on_shutdown: Callable[[], None] = lambda: None,
        *,
        vocabulary: int | None = None,
    ):
        """`vocabulary`: number of token ids that the model takes; None: they are not checked."""
        self._runner = runner
        self._decode = decode
        self._config = config
        self._on_dead = on_dead
        self._on_shutdown = on_shutdown
        self._vocabulary = vocabulary
        self._sampler = Sampler(runner.end_ids, runner.likeliest, runner.choose)
        self.scheduler = Scheduler(
            max_running=config.max_running,
            max_waiting=config.max_waiting,
            max_step_tokens=config.max_step_tokens,
            end_ids=runner.end_ids,
            new_text=self._new_text,
            max_cache_tokens=config.max_cache_tokens,
            ring=runner.ring,
            reuse_prefixes=config.reuse_prefixes and runner.reuses_prefixes,
            cheap_tokens=self._cheap_tokens(),
            seconds_until=lambda ended: self._metrics.seconds_until(ended),
        )
        self._adapters = LoadedAdapters()
        self._changed = threading.Condition()
        self._tasks = TaskQueue(self._changed)
        self._state: State = "ready"
        self._stopping = False
        self._failures = 0
        self._beams = BeamSearches(config.max_waiting, self._new_text, runner.end_ids)
        self._deliveries = Deliveries(self.scheduler, self._beams, self._changed)
        self._metrics = EngineMetrics(self.scheduler, self._beams, self._changed)
        self.heartbeat = Heartbeat()
        self._thread = threading.Thread(target=self._run, name="rungpt-engine", daemon=True)
        self._thread.start()
        end_at_exit(self)

    def start(self, request: Request, outlet: Outlet) -> None:
        """See Engine."""
        loop = asyncio.get_running_loop()
        self._check(request)
        with self._changed:
            if self._state != "ready":
                raise Unavailable(f"the engine is {self._state}: ask another replica, or try again later")
            delivery = self._deliveries.new(request, outlet, loop)
            self._admit(request, delivery)
            if request.deadline is not None:
                delivery.timer = loop.call_later(request.deadline - time.monotonic(), self._deliveries.expire, delivery)

    def abort(self, request_id: str) -> None:
        """See Engine."""
        with self._changed:
            self._deliveries.abort(request_id)

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
            self._tasks.refuse(f"the engine is {self._state}")
            self._deliveries.end_all(Unavailable("the server was stopped before the answer was complete"))
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
            self._adapters.move(runner)
            self._runner, self._sampler = runner, Sampler(runner.end_ids, runner.likeliest, runner.choose)
            self.scheduler.slots.ring = runner.ring
            self.scheduler.restart(self._cheap_tokens())

        try:
            self._tasks.call(replace)
        except Unavailable:
            return False
        return True

    def load_adapter(self, name: str, weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """See Engine."""
        lora = Lora(name, weights)
        self._tasks.call(lambda: self._adapters.load(lora, self._runner))

    def unload_adapter(self, name: str) -> None:
        """See Engine."""
        with self._changed:
            lora = self._adapters.withdraw(name)
            self._changed.wait_for(lambda: self._tasks.refusal or not self._deliveries.use(lora))

        def free() -> None:
            self._adapters.free(lora, self._runner)
            self.scheduler.slots.drop(lora)

        self._tasks.call(free)

    @property
    def adapters(self) -> tuple[str, ...]:
        """See Engine."""
        return self._adapters.names

    def fail(self, reason: str) -> None:
        """End the engine because its runner lost something that it needs; callable from any thread."""
        with self._changed:
            if self._state == "dead":
                return
            self._state = "dead"
            self._tasks.refuse("the engine is dead")
            self._deliveries.end_all(Unavailable(f"the engine is dead: {reason}"))
            self._changed.notify_all()
        self._on_dead()

    def _check(self, request: Request) -> None:
        """Raise InvalidRequest for a request that no engine of this model could run."""
        if not request.prompt_ids:
            raise InvalidRequest("the prompt has no token: give at least one", param="prompt")
        for ids, param in ((request.prompt_ids, "prompt"), (request.sampling.logit_bias, "logit_bias")):
            if ids and self._vocabulary is not None and not 0 <= min(ids) <= max(ids) < self._vocabulary:
                wrong = next(one for one in ids if not 0 <= one < self._vocabulary)
                message = f"{param}: token id {wrong} is outside the vocabulary of {self._vocabulary}"
                raise InvalidRequest(message, param=param)

    def _admit(self, request: Request, delivery: Delivery) -> None:
        delivery.adapter = None if request.adapter is None else self._adapters.get(request.adapter)
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

    def _run(self) -> None:
        """Run the engine's thread. If anything but `shutdown` ends it, the engine is dead and all requests end."""
        try:
            self._loop()
        except BaseException as error:
            self.fail(describe_failure(error, self._config))
        finally:
            self.heartbeat.rest()

    def _loop(self) -> None:
        while self._state != "dead":
            with self._changed:
                self.heartbeat.rest()
                self._changed.wait_for(lambda: self._stopping or self._tasks or self.scheduler.has_work)
                if self._stopping:
                    return
                self.heartbeat.begin()
                self._tasks.run()
            try:
                self._step()
            except BaseException as error:  # a library's panic is no Exception
                self._step_failed(error)
            else:
                self._failures = 0

    def _step(self) -> None:
        """Plan, run and commit a step. The data of one sequence cannot break it: see Scheduler and `choose_tokens`."""
        with self._changed:
            started = time.perf_counter()
            plan = self.scheduler.plan()
        try:
            results = run_step(plan, self._runner, self._sampler)
        except BaseException as error:  # a library's panic is no Exception
            self._runner_failed(plan, error)
            return
        with self._changed:
            outcomes = self.scheduler.commit(plan, *results)
            try:
                self._metrics.step(plan, outcomes, started, time.perf_counter())  # it sets the sequences' times
            finally:
                self._deliveries.deliver(outcomes)

    def _runner_failed(self, plan: StepPlan, error: BaseException) -> None:
        """End the sequence with which the runner fails, once it is found, and the engine if it fails without any."""
        reason = describe_failure(error, self._config)
        self._runner.reset()
        with self._changed:
            outcomes = self.scheduler.search(plan, InternalError(reason))
            self._deliveries.deliver(outcomes)
        if outcomes or not plan.runs:
            try:
                try_alone(self._runner)
            except BaseException as broken:
                self.fail(describe_failure(broken, self._config))

    def _step_failed(self, error: BaseException) -> None:
        self._failures += 1
        reason = describe_failure(error, self._config)
        self._runner.reset()
        with self._changed:
            self._deliveries.deliver(self.scheduler.fail(InternalError(reason)))
        if self._failures == 2:
            self.fail(reason)

    def _beams_ended(
        self, request: Request, delivery: Delivery, result: Sequence[TokenEvent] | BaseException, seconds: float
    ) -> None:
        """Take the result of a beam search (see beam_search.Ended)."""
        with self._changed:
            if delivery not in self._deliveries:  # it was stopped
                return
            if isinstance(result, BaseException):
                self._metrics.beams(request, [], seconds)
                self._deliveries.put(delivery, InternalError(describe_failure(result, self._config)))
            else:
                self._metrics.beams(request, result, seconds)
                for event in result:
                    self._deliveries.put(delivery, event)
            self._deliveries.flush()

    def _cheap_tokens(self) -> int:
        return self._runner.cheap_tokens if self._config.speculate else 1

    def _new_text(self, request: Request) -> TextStream:
        unstopped = None if request.unstopped is None else request.unstopped()
        return TextStream(self._decode, request.prompt_ids, request.stop, whole=request.whole, unstopped=unstopped)
