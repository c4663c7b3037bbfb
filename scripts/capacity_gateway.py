"""A gateway of the simulation: one core that serves what comes in its order, and chooses a replica for each request."""

from collections import OrderedDict
from dataclasses import dataclass, field

from capacity_users import Request

AFFINITY_CAP = 8.0
AFFINITY_CHARACTERS = 500.0
"""Of a replica's score its matched characters take off one request for each so many, up to the cap."""
CHARACTERS_PER_TOKEN = 4.0
MOST_HOLDERS = 32
"""Of a beginning a gateway knows the last so many replicas."""


@dataclass
class Gateway:
    """One core that serves in order, and what it knows of the replicas: only what it sent itself."""

    in_flight: list[int]
    """Its requests in each replica."""
    affinity: float | None
    """Characters already sent to a replica that outweigh a request in flight; None: the least busy one it is."""
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
    """And when the last one was passed on."""
    turn: int = 0

    def work(self, now: float, seconds: float) -> float:
        """When work that comes now is done."""
        self.busy_until = max(self.busy_until, now) + seconds
        self.busy += seconds
        return self.busy_until

    def note(self, request: Request) -> None:
        """A request goes to its replica."""
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
        """The replica with the lowest score; of those that tie the one that knows more, then in turns."""
        self.turn += 1
        scores = [(float(busy), 0) for busy in self.in_flight]
        if self.affinity is not None:
            for number, tokens in self._known(request).items():
                scores[number] = (self.in_flight[number] - self.worth(tokens), -tokens)
        best = min(scores)
        tied = [number for number, score in enumerate(scores) if score == best]
        return tied[self.turn % len(tied)]

    def worth(self, tokens: int) -> float:
        """What tokens that a replica holds take off its score."""
        return 0.0 if self.affinity is None else min(AFFINITY_CAP, tokens * CHARACTERS_PER_TOKEN / self.affinity)

    def _known(self, request: Request) -> dict[int, int]:
        """Of the replicas that hold a beginning of the prompt: its tokens."""
        known = dict.fromkeys(self.warm, request.user.workload.system_tokens)
        conversation, tokens = self.sent.get(request.user.number, (-1, {}))
        return known | tokens if conversation == request.user.conversation else known
