"""Simulates users, gateways and replicas, event by event: what a cluster would answer, and when. The same seed gives
the same run.

Users hold conversations: a question, its answer, a time to think, the next question. A gateway is one core that serves
what comes in its order, and chooses a replica for each request; a replica is what scripts/capacity_replica.py says.
"""

import heapq
import itertools
import math
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from capacity_replica import Replica, ReplicaConfig, Row
from capacity_steps import StepModel

Policy = Literal["least-busy", "affinity"]

AFFINITY_CAP = 8.0
AFFINITY_CHARACTERS = 2000.0
"""Of a replica's score its matched characters take off one request for each so many, up to the cap."""
CHARACTERS_PER_TOKEN = 4.0
MOST_HOLDERS = 32
"""Of a beginning a gateway knows the last so many replicas."""
PROBES_PER_SECOND = 2.0
"""Of each gateway to each replica."""
FULL = 0.98
"""Of a core: the most that probes may take of it in a simulation; what more would do is stand still."""


@dataclass(frozen=True)
class Workload:
    """What users ask. Lengths are in tokens, each drawn from a log-normal distribution with this mean."""

    think_seconds: float = 15.0
    """Mean time between an answer's end and the next question; exponential."""
    turns: float = 5.0
    """Mean questions of a conversation; geometric."""
    system_tokens: int = 200
    """The beginning that all conversations share."""
    question_tokens: float = 60.0
    answer_tokens: float = 120.0
    spread: float = 0.6
    """Sigma of the logarithm of a length."""
    turn_overhead: int = 8
    """What a chat template adds for each turn."""
    max_context: int = 2048
    """A conversation that would pass it begins anew."""


@dataclass(frozen=True)
class Costs:
    """Processor seconds of the doors; see capacity_measure.DoorCosts."""

    gateway_request: float = 0.0
    gateway_event: float = 0.0
    gateway_probe: float = 0.0
    executor_probe: float = 0.0
    executor_event: float = 0.0
    client_event: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """What serves."""

    steps: StepModel
    replica: ReplicaConfig = field(default_factory=ReplicaConfig)
    replicas: int = 1
    gateways: int = 1
    policy: Policy = "affinity"
    sticky: bool = True
    """Whether a conversation always comes through the same gateway; else through any."""
    costs: Costs = field(default_factory=Costs)
    affinity_characters: float = AFFINITY_CHARACTERS
    shared_cores: int | None = None
    """Cores of the one machine on which all of it runs, users included; None: each part has its own."""

    def worth(self, tokens: int) -> float:
        """What tokens that a replica holds take off its score."""
        return min(AFFINITY_CAP, tokens * CHARACTERS_PER_TOKEN / self.affinity_characters)


@dataclass(eq=False)
class Request:
    """One question, from the user's key to its end: answered or refused, once."""

    user: "User"
    prompt_tokens: int
    answer_tokens: int
    sent: float
    gateway: int = 0
    replica: int = -1
    cached_tokens: int = 0
    first: float = math.nan
    """When the user had the first token."""
    end: float = math.nan
    refused: bool = False


@dataclass(eq=False)
class User:
    """One person. What is drawn for the n-th user is the same whatever else is in the run."""

    number: int
    workload: Workload
    rng: random.Random
    conversation: int = -1
    turns_left: int = 0
    history: int = 0
    """Tokens of the conversation so far."""
    once: bool = False
    """Leaves after one conversation."""

    def ask(self) -> tuple[int, int]:
        """Tokens of the next question and of its answer; `conversation` says whether it begins a new one."""
        question = self._length(self.workload.question_tokens)
        answer = self._length(self.workload.answer_tokens)
        if self.turns_left == 0 or self.history + question + answer > self.workload.max_context:
            self.conversation += 1
            self.turns_left = max(self.turns_left, self._turns())
            self.history = self.workload.system_tokens
            room = self.workload.max_context - self.history - self.workload.turn_overhead
            question, answer = min(question, room // 2), min(answer, room // 2)
        self.turns_left -= 1
        return question, answer

    def think(self) -> float:
        """Seconds until the next question."""
        mean = self.workload.think_seconds
        return self.rng.expovariate(1 / mean) if mean else 0.0

    def _turns(self) -> int:
        turns = 1
        while self.rng.random() > 1 / max(1.0, self.workload.turns):
            turns += 1
        return turns

    def _length(self, mean: float) -> int:
        spread = self.workload.spread
        return max(1, round(self.rng.lognormvariate(math.log(mean) - spread**2 / 2, spread)))


def new_user(number: int, workload: Workload, seed: int, *, once: bool = False) -> User:
    """The n-th user of a seed."""
    return User(number, workload, random.Random(f"{seed}/{number}"), once=once)


@dataclass
class Gateway:
    """One core that serves in order, and what it knows of the replicas: only what it sent itself."""

    in_flight: list[int]
    busy_until: float = 0.0
    busy: float = 0.0
    """Processor seconds used."""
    sent: dict[int, tuple[int, dict[int, int]]] = field(default_factory=dict)
    """Of each user the conversation, and tokens of it by the replica that they were sent to."""
    warm: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """The last MOST_HOLDERS replicas that had a request of it, so that they hold the shared beginning."""
    pending: dict[int, float] = field(default_factory=dict)
    """When the last batch of events from a replica is begun."""
    delivered: dict[int, float] = field(default_factory=dict)

    def work(self, now: float, seconds: float) -> float:
        """When work that comes now is done."""
        self.busy_until = max(self.busy_until, now) + seconds
        self.busy += seconds
        return self.busy_until


@dataclass
class Run:
    """What came of a simulation."""

    requests: list[Request]
    """Those sent within the measured time."""
    gaps: list[tuple[float, int]]
    """Seconds between two events of a stream, and of how many streams."""
    seconds: float
    """Measured time."""
    tokens: int
    """That users got in it."""
    in_system: float
    """Mean requests from key to end."""
    gateway_busy: float
    """Of the busiest gateway's core, its probes included."""
    gateway_work: float
    """Cores that all gateways used, without probes."""
    replica_busy: float
    """Mean share of time in steps."""
    sent: int
    ended: int
    """Of all requests; with the run over they are the same."""


class Simulation:
    """One run: `users` of a closed loop, or conversations that begin at `rate` per second, or both."""

    def __init__(self, cluster: Cluster, workload: Workload, *, users: int = 0, rate: float = 0.0, seed: int = 0):
        self.cluster, self.workload, self.seed = cluster, workload, seed
        probing = _probe_share(cluster.replicas, cluster.costs.gateway_probe)
        self._gateway_factor = 1 / (1 - probing)
        probed = _probe_share(cluster.gateways, cluster.costs.executor_probe)
        self._steps = cluster.steps.slower(1 / (1 - probed))
        self.probing = probing
        self.gateways = [Gateway([0] * cluster.replicas) for _ in range(cluster.gateways)]
        self.replicas = [Replica(cluster.replica) for _ in range(cluster.replicas)]
        self._users = [new_user(number, workload, seed) for number in range(users)]
        self._rate = rate
        self._rng = random.Random(f"{seed}/cluster")
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._now = 0.0
        self._turn = 0
        self._stepping = 0
        self._sent = self._ended = self._in_system = 0
        self._area = self._seen = 0.0
        self._requests: list[Request] = []
        self._gaps: list[tuple[float, int]] = []
        self._tokens = 0

    def run(self, seconds: float, warm_up: float = 0.0) -> Run:
        """Let users ask for so long after a warm-up, then answer what is left; measured is the time after the
        warm-up."""
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
        """The user has the answer, or knows that there is none."""
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
        request.replica = self._choose(gateway, request)
        conversation = (request.user.number, request.user.conversation)
        replica = self.replicas[request.replica]
        row = Row(request, conversation, request.prompt_tokens, request.answer_tokens, self.workload.system_tokens)
        if not replica.add(row):
            request.refused, request.end = True, self._now
            self._over(request)
            return
        gateway.in_flight[request.replica] += 1
        self._note(gateway, request)
        self._step(request.replica)

    def _note(self, gateway: Gateway, request: Request) -> None:
        user, replica = request.user, request.replica
        conversation, tokens = gateway.sent.get(user.number, (-1, {}))
        if conversation != user.conversation:
            tokens = {}
            gateway.sent[user.number] = (user.conversation, tokens)
        tokens[replica] = request.prompt_tokens
        gateway.warm[replica] = None
        gateway.warm.move_to_end(replica)
        if len(gateway.warm) > MOST_HOLDERS:
            gateway.warm.popitem(last=False)

    def _choose(self, gateway: Gateway, request: Request) -> int:
        """The replica with the lowest score; of those that tie the one that knows more, then in turns."""
        self._turn += 1
        known: dict[int, int] = {}
        if self.cluster.policy == "affinity":
            known = dict.fromkeys(gateway.warm, self.workload.system_tokens)
            conversation, tokens = gateway.sent.get(request.user.number, (-1, {}))
            if conversation == request.user.conversation:
                known |= tokens
        scores = [(float(busy), 0) for busy in gateway.in_flight]
        for number, held in known.items():
            scores[number] = (gateway.in_flight[number] - self.cluster.worth(held), -held)
        best = min(scores)
        tied = [number for number, score in enumerate(scores) if score == best]
        return tied[self._turn % len(tied)]

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
        """The time of a step with what its events cost: no more work is done than the cores can do."""
        costs, threads, cores = self.cluster.costs, self.cluster.replica.threads, self.cluster.shared_cores
        if cores is None:  # a replica's own cores make its events, too
            return seconds + events * costs.executor_event / threads
        doors = events * (costs.gateway_event + costs.executor_event + costs.client_event)
        wanted = self._stepping * (seconds * threads + doors)
        return max(seconds, wanted / cores)

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
        """Events of rows that go on: what comes while an earlier batch of theirs still waits goes with it."""
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
        """When the user has one event that is sent now."""
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
    """Of a core, for the probes to or from so many others."""
    return min(FULL, others * PROBES_PER_SECOND * seconds)
