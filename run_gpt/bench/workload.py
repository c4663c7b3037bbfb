"""Prompts of a benchmark, made from a seed or taken from a dataset, as single prompts or as turns of chats."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from run_gpt.bench import dataset
from run_gpt.bench.lengths import Lengths
from run_gpt.errors import SetupError

# Common words that are one token in most tokenizers: a prompt has about as many tokens as words.
_TEXT = (
    "the of and to in is that for it as was with be by on not he this are or his from at which but have an had they "
    "you were their one all we can her has there been if more when will would who so no out up into than them only "
    "time some could these two may then do first any my now such like our over man me even most made after also did "
    "many before must through back years where much your way well down should because each just those people how "
    "too little state good very make world still own see men work long get here between both life being under never "
    "day same another know while last might us great old year off come since against go came right used take three"
)
_WORDS = _TEXT.split()


@dataclass(frozen=True)
class WorkloadConfig:
    """Properties of the prompts. Lengths of prompts are in words, those of answers in tokens."""

    prompt_words: Lengths
    output_tokens: Lengths
    dataset: Path | None = None
    system_words: int = 0
    """Number of words of the system prompt of all chats."""
    turns: int = 1
    """Number of questions of a chat; each follows the answers to the earlier ones."""
    seed: int = 0


@dataclass
class Chat:
    """State of a conversation: the messages before the next question."""

    rng: np.random.Generator
    messages: list[dict[str, Any]]
    turns_left: int


@dataclass(frozen=True)
class Prompt:
    """Prompt of one request: a text, or the messages of a chat."""

    max_tokens: int
    text: str = ""
    messages: tuple[dict[str, Any], ...] = ()
    chat: Chat | None = field(default=None, compare=False, repr=False)


class Prompts(Protocol):
    """Source of prompts."""

    def next(self) -> Prompt:
        """Return the prompt of the next request."""

    def answered(self, prompt: Prompt, answer: str) -> None:
        """Record the answer to a prompt."""


class Given:
    """Fixed sequence of prompts."""

    def __init__(self, prompts: Iterable[Prompt]):
        self._prompts = iter(prompts)

    def next(self) -> Prompt:
        """See Prompts. Raises StopIteration after the last."""
        return next(self._prompts)

    def answered(self, prompt: Prompt, answer: str) -> None:
        """See Prompts. Answers have no effect here."""


class Workload:
    """Endless prompts. The same configuration and `stream` give the same ones, independent of the server.

    Each load of a run has its own `stream`, so that it does not find the prompts of another in the server's cache.
    Raises SetupError for a dataset that cannot be read, and for chats where `takes_chats` is False.
    """

    def __init__(self, config: WorkloadConfig, *, takes_chats: bool, stream: int = 0):
        self._config, self._takes_chats, self._stream = config, takes_chats, stream
        self._made = 0
        self._waiting: deque[Chat] = deque()
        self._entries = dataset.read(config.dataset) if config.dataset else []
        if not takes_chats and (config.system_words or config.turns > 1 or any(e.messages for e in self._entries)):
            raise SetupError("these are chats, and this --api takes texts: use --api openai-chat or chat")
        if self._entries and (config.system_words or config.turns > 1):
            raise SetupError("--dataset has its own chats: leave out --system-words and --turns")
        self._order = np.random.default_rng([config.seed, 1]).permutation(len(self._entries))
        self._system = words(np.random.default_rng([config.seed, 2]), config.system_words)

    def next(self) -> Prompt:
        """Return the next question of the chat that has waited longest, or the first question of a new chat."""
        if self._waiting:
            return self._ask(self._waiting.popleft())
        number, self._made = self._made, self._made + 1
        rng = np.random.default_rng([self._config.seed, 3, self._stream, number])
        if self._entries:
            return self._from_dataset(number, rng)
        messages = [{"role": "system", "content": self._system}] if self._system else []
        return self._ask(Chat(rng, messages, self._config.turns))

    def answered(self, prompt: Prompt, answer: str) -> None:
        """Record the answer to a prompt, after which its chat continues. A chat without an answer ends."""
        if prompt.chat is not None and prompt.chat.turns_left:
            # An empty answer still needs a message, and servers refuse empty ones.
            prompt.chat.messages.append({"role": "assistant", "content": answer or "..."})
            self._waiting.append(prompt.chat)

    def _ask(self, chat: Chat) -> Prompt:
        text = words(chat.rng, self._config.prompt_words.draw(chat.rng))
        limit = self._config.output_tokens.draw(chat.rng)
        if not self._takes_chats:
            return Prompt(limit, text)
        chat.messages.append({"role": "user", "content": text})
        chat.turns_left -= 1
        return Prompt(limit, messages=tuple(chat.messages), chat=chat)

    def _from_dataset(self, number: int, rng: np.random.Generator) -> Prompt:
        """Return an entry of the dataset, cyclically in an order from the seed; each load begins at another entry."""
        offset = self._stream * 7919  # a prime, so that the loads of a run begin at different entries
        entry = self._entries[self._order[(offset + number) % len(self._entries)]]
        limit = entry.max_tokens or self._config.output_tokens.draw(rng)
        if not self._takes_chats:
            return Prompt(limit, entry.text or "")
        return Prompt(limit, messages=entry.messages or ({"role": "user", "content": entry.text or ""},))


def words(rng: np.random.Generator, count: int) -> str:
    """Draw `count` random words."""
    return " ".join(_WORDS[i] for i in rng.integers(0, len(_WORDS), count))
