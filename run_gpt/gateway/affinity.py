"""Choice of a replica for a request: the one that has lately seen the request's prefix, unless it is too busy.

Replicas keep the KV cache of a prompt and reuse it for a prompt with the same prefix. The gateway has no tokenizer, so
it compares texts: for each text it keeps digests of its prefixes, in steps of BLOCK characters.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from run_gpt.api.request import AnyRequest
from run_gpt.api.schema import ChatRequest, GenerateRequest

BLOCK = 256
"""Characters from one compared prefix to the next; a shorter text has none."""
MOST_CHARACTERS = 2048 * BLOCK
"""Number of characters of a text that are compared at most: about the longest context."""
MOST_IDS = MOST_CHARACTERS // 8
"""Number of token ids of a prompt that are compared at most."""
WORTH_ONE = 500
"""Characters already seen that outweigh one request in flight."""
MOST_WORTH = 8.0
"""Most requests in flight that a prefix outweighs, however long it is."""
CAPACITY = 1 << 17
"""Number of prefixes that are kept at most; the least recently sent is dropped first. About 40 MB."""
MOST_HOLDERS = 32
"""Number of replicas that are kept for one prefix: the most recent ones."""


class Candidate(Protocol):
    """Attributes of a replica that the choice needs."""

    in_flight: int
    """Requests from this gateway that it runs."""
    cache: object
    """Object that stands for its cached prompts; replaced by another one when they are lost."""


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


class Affinity:
    """Record of the replicas that texts were sent to, by the digests of prefixes, for at most `capacity` of them."""

    def __init__(self, capacity: int = CAPACITY):
        self._capacity = capacity
        self._holders: OrderedDict[int, tuple[object, ...]] = OrderedDict()

    def note(self, digests: Sequence[int], cache: object) -> None:
        """Note that the text with these digests goes to the replica that has this `cache`."""
        # The longest prefix is noted as the oldest, so that no prefix is dropped before its continuations.
        for digest in reversed(digests):
            holders = self._holders.get(digest, ())
            if not holders or holders[-1] is not cache:
                others = tuple(holder for holder in holders if holder is not cache)
                self._holders[digest] = (*others[1 - MOST_HOLDERS :], cache)
            self._holders.move_to_end(digest)
        while len(self._holders) > self._capacity:
            self._holders.popitem(last=False)

    def matched(self, digests: Sequence[int]) -> dict[object, int]:
        """Return, for each cache that holds a prefix of the text with these digests, the characters of that prefix."""
        characters: dict[object, int] = {}
        for count, digest in enumerate(digests, 1):
            holders = self._holders.get(digest)
            if holders is None:
                break
            for holder in holders:
                characters[holder] = count * BLOCK
        return characters

    def __len__(self) -> int:
        """Return the number of prefixes that are kept."""
        return len(self._holders)


def choose(candidates: Sequence[AnyCandidate], matched: Mapping[object, int], turn: int) -> AnyCandidate:
    """Return the candidate with the fewest requests in flight, less what its matched characters are worth.

    A tie goes to the candidate with more matched characters; then they take turns, by the caller's counter `turn`.
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
    """Return the number of requests in flight that so many cached characters outweigh."""
    return min(MOST_WORTH, characters / WORTH_ONE)


def digests_of(text: str, space: str = "", key: str | None = None) -> list[int]:
    """Return a digest of each prefix of `text` that is compared. Each digest covers the whole prefix, and the `space`.

    Replicas reuse nothing of another space (see process.tenants), so the same text there is another one. A
    client's `key` keeps its requests together: the first digest is that of the key alone, and counts as one block.
    """
    digest, digests = hash(space), []
    if key is not None:
        digest = hash((space, key))
        digests.append(digest)
    for start in range(0, min(len(text), MOST_CHARACTERS) - BLOCK + 1, BLOCK):
        # Each process has its own hashes of texts, which outsiders cannot guess.
        digest = hash((digest, text[start : start + BLOCK]))
        digests.append(digest)
    return digests


def prompt_text(request: AnyRequest) -> str:
    """Return the parts of a request that make its prompt, in the prompt's order; empty if it has no prompt.

    The text of a chat's earlier turn is a prefix of the text of a later turn. It ends after about MOST_CHARACTERS, or
    MOST_IDS token ids: nothing beyond them is compared.
    """
    if isinstance(request, GenerateRequest):
        prompt = request.prompt
        shown = prompt[:MOST_CHARACTERS] if isinstance(prompt, str) else " ".join(map(str, prompt[:MOST_IDS]))
        return f"{request.adapter}\n{shown}"
    if not isinstance(request, ChatRequest):
        return ""
    tools = [] if request.tool_choice == "none" else request.tools or []
    texts = [str(request.adapter), str(request.parallel_tool_calls is not False)]
    characters = 0
    for part in (*tools, *request.messages):
        if characters >= MOST_CHARACTERS:
            break
        texts.append(part.model_dump_json(exclude_none=True))
        characters += len(texts[-1])
    return "\n".join(texts)
