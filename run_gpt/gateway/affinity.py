"""Which replica a request goes to: the one that has lately seen its beginning, unless that one is too busy.

Replicas keep what they computed of a prompt and reuse it for one that begins alike. The gateway has no tokenizer, so
it compares texts: of each it knows digests of its beginnings, in steps of BLOCK characters.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from run_gpt.api.schema import AnyRequest, ChatRequest, GenerateRequest

BLOCK = 256
"""Characters from one compared beginning to the next; a shorter text has none."""
MOST_CHARACTERS = 2048 * BLOCK
"""Of a text no more is compared: about the longest context."""
WORTH_ONE = 500
"""Characters already seen that outweigh one request in flight."""
MOST_WORTH = 8.0
"""However long the beginning is, a replica with so many more requests in flight than another does not get it."""
CAPACITY = 1 << 17
"""Beginnings that are known at most; the one that was sent longest ago is forgotten first. About 40 MB."""
MOST_HOLDERS = 32
"""Of one beginning the last so many replicas are known."""


class Candidate(Protocol):
    """What is asked of a replica."""

    in_flight: int
    """Requests that it has of this gateway."""
    cache: object
    """Stands for what it keeps; another object once that is lost."""


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


class Affinity:
    """What was sent where, by the digests of beginnings, for at most `capacity` of them."""

    def __init__(self, capacity: int = CAPACITY):
        self._capacity = capacity
        self._holders: OrderedDict[int, tuple[object, ...]] = OrderedDict()

    def note(self, digests: Sequence[int], cache: object) -> None:
        """The text with these digests goes to the replica that has this `cache`."""
        # The longest beginning is the oldest, so that none is forgotten before those that go on after it.
        for digest in reversed(digests):
            holders = self._holders.get(digest, ())
            if not holders or holders[-1] is not cache:
                others = tuple(holder for holder in holders if holder is not cache)
                self._holders[digest] = (*others[1 - MOST_HOLDERS :], cache)
            self._holders.move_to_end(digest)
        while len(self._holders) > self._capacity:
            self._holders.popitem(last=False)

    def matched(self, digests: Sequence[int]) -> dict[object, int]:
        """Of each cache that knows a beginning of the text with these digests: how many characters of it."""
        characters: dict[object, int] = {}
        for count, digest in enumerate(digests, 1):
            holders = self._holders.get(digest)
            if holders is None:
                break
            for holder in holders:
                characters[holder] = count * BLOCK
        return characters

    def __len__(self) -> int:
        """Number of beginnings that are known."""
        return len(self._holders)


def choose(candidates: Sequence[AnyCandidate], matched: Mapping[object, int], turn: int) -> AnyCandidate:
    """The one with the fewest requests in flight, less what its matched characters are worth.

    Of those that tie, the one that knows more; then they take turns, by the caller's counter `turn`.
    """

    least: tuple[float, int] = (float("inf"), 0)
    best: list[AnyCandidate] = []
    for candidate in candidates:
        characters = matched.get(candidate.cache, 0)
        cost = (candidate.in_flight - worth(characters) if characters else candidate.in_flight, -characters)
        if cost < least:
            least, best = cost, [candidate]
        elif cost == least:
            best.append(candidate)
    return best[turn % len(best)]


def worth(characters: int) -> float:
    """How many requests in flight so many characters that need not be computed again outweigh."""
    return min(MOST_WORTH, characters / WORTH_ONE)


def digests_of(text: str) -> list[int]:
    """A digest of each beginning of `text` that is compared: each has all in it that came before."""
    digest, digests = 0, []
    for start in range(0, min(len(text), MOST_CHARACTERS) - BLOCK + 1, BLOCK):
        # Of two processes each has its own hashes of texts, which nobody outside can guess.
        digest = hash((digest, text[start : start + BLOCK]))
        digests.append(digest)
    return digests


def prompt_text(request: AnyRequest) -> str:
    """What of a request makes its prompt, in the prompt's order; empty for one that has none.

    That of a chat's earlier turn is a beginning of that of a later one.
    """
    if isinstance(request, GenerateRequest):
        prompt = request.prompt
        return f"{request.adapter}\n{prompt if isinstance(prompt, str) else ' '.join(map(str, prompt))}"
    if not isinstance(request, ChatRequest):
        return ""
    tools = [] if request.tool_choice == "none" else request.tools or []
    before = [str(request.adapter), str(request.parallel_tool_calls is not False)]
    parts = (part.model_dump_json(exclude_none=True) for part in (*tools, *request.messages))
    return "\n".join((*before, *parts))
