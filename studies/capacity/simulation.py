"""Simulate users, gateways and replicas, event by event: the answers of a cluster and their times. The same seed gives
the same run.

users.py, gateway.py and replica.py define users, gateways and replicas.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from run_gpt.gateway.affinity import WORTH_ONE
from run_gpt.gateway.replica import PROBE_SECONDS
from studies.capacity.costs import Costs
from studies.capacity.gateway import Gateway
from studies.capacity.replica import Replica, ReplicaConfig, Row
from studies.capacity.steps import StepModel
from studies.capacity.users import Request, User, Workload, new_user

Policy = Literal["least-busy", "affinity"]
PROBES_PER_SECOND = 1 / PROBE_SECONDS
"""Probes per second of each gateway to each replica."""
FULL = 0.98
"""Largest share of a core that probes take in a simulation; with more the core would stand still."""


@dataclass(frozen=True)
class Cluster:
    """Gateways and replicas that serve."""

    steps: StepModel
    replica: ReplicaConfig = field(default_factory=ReplicaConfig)
    replicas: int = 1
    gateways: int = 1
    policy: Policy = "affinity"
    sticky: bool = True
    """True when a conversation always comes through the same gateway; else through any."""
    costs: Costs = field(default_factory=Costs)
    affinity_characters: float = WORTH_ONE
    """Characters already sent to a replica that outweigh a request in flight."""
    shared_cores: float | None = None
    """Cores of the one machine on which all parts run, users included; None: each part has its own."""


@dataclass
class Run:
    """Results of a simulation."""

    requests: list[Request]
    """Requests sent within the measured time."""
    gaps: list[tuple[float, int]]
    """Seconds between two events of a stream, and the number of streams."""
    seconds: float
    """Measured time in seconds."""
    tokens: int
    """Tokens that users got in the measured time."""
    in_system: float
    """Mean number of requests in the system, from sending to end."""
    gateway_busy: float
    """Used share of the busiest gateway's core, its probes included."""
    gateway_work: float
    """Cores that all gateways used, without probes."""
    replica_busy: float
    """Mean share of time in steps."""
    sent: int
    ended: int
    """Number of all requests that ended; equal to `sent` after the run."""


class Simulation:
    """One run: `users` in a closed loop, or conversations that begin at `rate` per second, or both."""

    def __init__(self, cluster: Cluster, workload: Workload, *, users: int = 0, rate: float = 0.0, seed: int = 0):
        self.cluster, self.workload, self.seed = cluster, workload, seed
        probing = _probe_share(cluster.replicas, cluster.costs.gateway_probe)
        self._gateway_factor = 1 / (1 - probing)
        probed = _probe_share(cluster.gateways, cluster.costs.executor_probe)
        self._steps = cluster.steps.slower(1 / (1 - probed))
        self.probing = probing
        affinity = cluster.affinity_characters if cluster.policy == "affinity" else None
        self.gateways = [Gateway([0] * cluster.replicas, affinity) for _ in range(cluster.gateways)]
        self.replicas = [Replica(cluster.replica) for _ in range(cluster.replicas)]
        self._users = [new_user(number, workload, seed) for number in range(users)]
        self._rate = rate
        self._rng = random.Random(f"{seed}/cluster")
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._now = 0.0
        self._stepping = 0
        self._sent = self._ended = self._in_system = 0
        self._area = self._seen = 0.0
        self._requests: list[Request] = []
        self._gaps: list[tuple[float, int]] = []
        self._tokens = 0

    def run(self, seconds: float, warm_up: float = 0.0) -> Run:
        """Let users ask for `seconds` after a warm-up, then answer the remaining requests.

        Only the time after the warm-up is measured.
        """
        self._begin, self._end = warm_up, warm_up + seconds
        for user in self._users:
            self._at(user.rng.uniform(0, max(user.workload.think_seconds, 1e-3)), self._ask_of(user))
        if self._rate:
            self._at(self._rng.expovariate(self._rate), self._arrive)
        while self._queue:
            moment, _, event = heapq.heappop(self._queue)
            self._count(moment)
            self._now = moment
            event()
        whole = max(self._now, self._end)
        worked = [gateway.busy / whole * (1 - self.probing) for gateway in self.gateways]
        stepping = sum(replica.busy for replica in self.replicas) / len(self.replicas) / self._end
        return Run(
            [request for request in self._requests if self._begin <= request.sent < self._end],
            self._gaps,
            seconds,
            self._tokens,
            self._area / seconds,
            max(worked) + self.probing,
            sum(worked),
            stepping,
            self._sent,
            self._ended,
        )

    def _at(self, moment: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (moment, next(self._order), event))

    def _count(self, moment: float) -> None:
        """Add to the integral of the requests in the system, within the measured time."""
        start, end = max(self._now, self._begin), min(moment, self._end)
        if end > start:
            self._area += self._in_system * (end - start)

    # Users

    def _arrive(self) -> None:
        if self._now < self._end:
            user = new_user(1_000_000 + self._sent, self.workload, self.seed, once=True)
            self._ask(user)
            self._at(self._now + self._rng.expovariate(self._rate), self._arrive)

    def _ask_of(self, user: User) -> Callable[[], None]:
        return lambda: self._ask(user)

    def _ask(self, user: User) -> None:
        if self._now >= self._end:
            return
        question, answer = user.ask()
        prompt = user.history + question + self.workload.turn_overhead
        request = Request(user, prompt, answer, self._now)
        number = hash(user.number) if self.cluster.sticky else self._rng.randrange(len(self.gateways))
        request.gateway = number % len(self.gateways)
        self._sent += 1
        self._in_system += 1
        self._requests.append(request)
        gateway = self.gateways[request.gateway]
        done = gateway.work(self._now, self.cluster.costs.gateway_request * self._gateway_factor)
        self._at(done, lambda: self._dispatch(request))

    def _over(self, request: Request) -> None:
        """End a request: the user has the answer, or the refusal."""
        self._ended += 1
        self._in_system -= 1
        user = request.user
        if not request.refused:
            user.history = request.prompt_tokens + request.answer_tokens
        if not (user.once and user.turns_left == 0):
            self._at(self._now + user.think(), self._ask_of(user))

    # The gateway

    def _dispatch(self, request: Request) -> None:
        gateway = self.gateways[request.gateway]
        request.replica = gateway.choose(request)
        conversation = (request.user.number, request.user.conversation)
        replica = self.replicas[request.replica]
        row = Row(request, conversation, request.prompt_tokens, request.answer_tokens, self.workload.system_tokens)
        if not replica.add(row):
            request.refused, request.end = True, self._now
            self._over(request)
            return
        gateway.in_flight[request.replica] += 1
        gateway.note(request)
        self._step(request.replica)

    # The replicas

    def _step(self, number: int) -> None:
        """Begin a step, if none runs and there is something to run."""
        replica = self.replicas[number]
        step = None if replica.stepping else replica.begin()
        if step is None:
            return
        self._stepping += 1
        seconds = self._shared(self._steps.seconds(*step), step[0])
        replica.busy += max(0.0, min(self._end, self._now + seconds) - self._now)
        self._at(self._now + seconds, lambda: self._stepped(number))

    def _shared(self, seconds: float, events: int) -> float:
        """Return the time of a step with the cost of its events, limited by the shared cores."""
        costs, threads, cores = self.cluster.costs, self.cluster.replica.threads, self.cluster.shared_cores
        # A replica's own cores make its events, under the Python lock that its steps need as well.
        alone = seconds + events * costs.executor_event / threads
        if cores is None:
            return alone
        outside = events * (costs.gateway_event + costs.executor_event + costs.client_event)
        return max(alone, self._stepping * (seconds * threads + outside) / cores)

    def _stepped(self, number: int) -> None:
        replica = self.replicas[number]
        self._stepping -= 1
        tokens, first, ended = replica.end()
        for gateway, events in tokens.items():
            self._deliver(gateway, number, events)
        for row in first:
            row.request.cached_tokens = row.cached
            row.request.first = self._event(row.request)
        for row in ended:
            self._finish(row.request)
        self._step(number)

    def _deliver(self, number: int, replica: int, events: int) -> None:
        """Deliver events of running sequences; they join an earlier batch of the replica that still waits."""
        gateway = self.gateways[number]
        if self._begin <= self._now < self._end:
            self._tokens += events
        if gateway.pending.get(replica, -1.0) > self._now:
            return
        gateway.pending[replica] = max(gateway.busy_until, self._now)
        done = gateway.work(self._now, events * self.cluster.costs.gateway_event * self._gateway_factor)
        if replica in gateway.delivered and self._begin <= self._now < self._end:
            self._gaps.append((done - gateway.delivered[replica], events))
        gateway.delivered[replica] = done

    def _event(self, request: Request) -> float:
        """Send one event now, and return the time when the user has it."""
        if self._begin <= self._now < self._end:
            self._tokens += 1
        gateway = self.gateways[request.gateway]
        return gateway.work(self._now, self.cluster.costs.gateway_event * self._gateway_factor)

    def _finish(self, request: Request) -> None:
        gateway = self.gateways[request.gateway]
        gateway.in_flight[request.replica] -= 1
        request.end = max(gateway.busy_until, self._now)
        self._at(request.end, lambda: self._over(request))


def _probe_share(others: int, seconds: float) -> float:
    """Return the share of a core for the probes to or from `others` processes."""
    return min(FULL, others * PROBES_PER_SECOND * seconds)
