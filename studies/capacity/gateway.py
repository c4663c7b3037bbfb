"""A gateway of the simulation: one core that works in order of arrival, and chooses a replica for each request."""

from collections import OrderedDict
from dataclasses import dataclass, field

from run_gpt.gateway.affinity import MOST_HOLDERS, MOST_WORTH
from studies.capacity.users import Request

CHARACTERS_PER_TOKEN = 4.0


@dataclass
class Gateway:
    """One core that works in order of arrival. It knows only the requests that it sent itself."""

    in_flight: list[int]
    """Running requests of this gateway in each replica."""
    affinity: float | None
    """Characters already sent to a replica that outweigh a request in flight; None: choose the least busy one."""
    busy_until: float = 0.0
    busy: float = 0.0
    """Processor seconds used."""
    sent: dict[int, tuple[int, dict[int, int]]] = field(default_factory=dict)
    """Each user's conversation, and its tokens by the replica that got them."""
    warm: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """Last MOST_HOLDERS replicas that got a request of this gateway, so that they hold the shared beginning."""
    pending: dict[int, float] = field(default_factory=dict)
    """Start time of the last batch of events from each replica."""
    delivered: dict[int, float] = field(default_factory=dict)
    """Time when the last batch from each replica was passed on."""
    turn: int = 0

    def work(self, now: float, seconds: float) -> float:
        """Add work that arrives now, and return the time when it is done."""
        self.busy_until = max(self.busy_until, now) + seconds
        self.busy += seconds
        return self.busy_until

    def note(self, request: Request) -> None:
        """Note that a request goes to its replica."""
        user = request.user
        conversation, tokens = self.sent.get(user.number, (-1, {}))
        if conversation != user.conversation:
            tokens = {}
            self.sent[user.number] = (user.conversation, tokens)
        tokens[request.replica] = request.prompt_tokens
        self.warm[request.replica] = None
        self.warm.move_to_end(request.replica)
        if len(self.warm) > MOST_HOLDERS:
            self.warm.popitem(last=False)

    def choose(self, request: Request) -> int:
        """Return the replica with the lowest score. Ties go to the one that holds more, then in turns."""
        self.turn += 1
        scores = [(float(busy), 0) for busy in self.in_flight]
        if self.affinity is not None:
            for number, tokens in self._known(request).items():
                scores[number] = (self.in_flight[number] - self.worth(tokens), -tokens)
        best = min(scores)
        tied = [number for number, score in enumerate(scores) if score == best]
        return tied[self.turn % len(tied)]

    def worth(self, tokens: int) -> float:
        """Return the part of a replica's score that its held tokens take off."""
        return 0.0 if self.affinity is None else min(MOST_WORTH, tokens * CHARACTERS_PER_TOKEN / self.affinity)

    def _known(self, request: Request) -> dict[int, int]:
        """Return the replicas that hold a beginning of the prompt, with the tokens they hold."""
        known = dict.fromkeys(self.warm, request.user.workload.system_tokens)
        conversation, tokens = self.sent.get(request.user.number, (-1, {}))
        return known | tokens if conversation == request.user.conversation else known
