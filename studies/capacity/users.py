"""Users of the simulation, and of its check with a real server: their questions and times."""

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """Questions of users. Lengths are in tokens, each drawn from a log-normal distribution with this mean."""

    think_seconds: float = 15.0
    """Mean time between an answer's end and the next question; exponential."""
    turns: float = 5.0
    """Mean questions of a conversation; geometric."""
    system_tokens: int = 200
    """Tokens at the beginning that all conversations share."""
    question_tokens: float = 60.0
    answer_tokens: float = 120.0
    spread: float = 0.6
    """Sigma of the logarithm of a length."""
    turn_overhead: int = 8
    """Tokens that a chat template adds for each turn."""
    max_context: int = 2048
    """Most tokens of a conversation; a longer one begins anew."""


@dataclass(eq=False)
class Request:
    """One question, from the moment it is sent to its end: answered or refused, once."""

    user: "User"
    prompt_tokens: int
    answer_tokens: int
    sent: float
    gateway: int = 0
    replica: int = -1
    cached_tokens: int = 0
    first: float = math.nan
    """Time when the user had the first token."""
    end: float = math.nan
    refused: bool = False


@dataclass(eq=False)
class User:
    """One person. The n-th user draws the same values in every run."""

    number: int
    workload: Workload
    rng: random.Random
    conversation: int = -1
    turns_left: int = 0
    history: int = 0
    """Tokens of the conversation so far."""
    once: bool = False
    """True when the user leaves after one conversation."""

    def ask(self) -> tuple[int, int]:
        """Return the tokens of the next question and of its answer; `conversation` grows when it begins a new one."""
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
        """Return the seconds until the next question."""
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
    """Return the n-th user of a seed."""
    return User(number, workload, random.Random(f"{seed}/{number}"), once=once)
