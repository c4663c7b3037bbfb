"""Slots of the KV cache: the tokens that each one holds, running or kept, and their assignment. No torch here."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

MIN_PREFIX = 8
"""Shortest prefix that is reused. Nearly all prompts share a few tokens (the beginning of a text, of a chat's first
turn), and running so few costs about as much as copying them."""


def token_array(token_ids: Sequence[int]) -> "array[int]":
    """Return token ids as an array, so that slices of them are compared in C."""
    return array("i", token_ids)


@dataclass(frozen=True)
class Copy:
    """Copy of the first `length` tokens of the slot `source` into the slot `target`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True)
class Ring:
    """Bound of the cache of layers with a sliding window: of each slot they hold the last `size` positions only."""

    size: int
    back: int
    """Largest number of positions after a prefix at which the windows of its next token are still whole."""
    layers: int
    """Number of the layers with a window."""
    all_layers: int

    def holds(self, written: int, length: int) -> bool:
        """Return True if `length` tokens can go on, in a slot where `written` positions have been written."""
        return written <= self.size or written - length <= self.back

    def cost(self, tokens: int) -> int:
        """Return the memory of a sequence, as a number of tokens in all layers, rounded up."""
        whole = self.all_layers - self.layers
        return -(-(whole * tokens + self.layers * min(tokens, self.size)) // self.all_layers)

    def longest(self, cost: int) -> int | None:
        """Return the number of tokens of the longest sequence with this memory; None if there is no such bound."""
        if cost < self.size:
            return cost
        whole = self.all_layers - self.layers
        return (cost * self.all_layers - self.layers * self.size) // whole if whole else None


@dataclass(eq=False)
class Slot:
    """Place for the KV cache of one sequence. An ended sequence's cache is kept until the place or memory is needed."""

    number: int
    token_ids: "array[int]" = field(default_factory=lambda: token_array(()))
    """History of the sequence that runs in it, or of the last one that did."""
    length: int = 0
    """Number of these tokens that the cache holds."""
    written: int = 0
    """End of the positions that steps have written since it was empty. Drafts and later tokens of another sequence
    that were there may be beyond `length`; in a ring they have replaced earlier positions (see Ring)."""
    adapter: object = None
    """LoRA adapter that computed the cache. Sequences of another adapter, or of none, cannot use it."""
    space: str = ""
    """Space of the sequence that computed the cache (see Request.cache_space). Those of another space cannot use it."""
    reserved: int = 0
    """Tokens that its sequence may grow to; 0 when no sequence runs in it."""
    used: int = 0
    """Time of its last assignment, release or copy, as a count of such events; 0 when it is empty."""

    @property
    def tokens(self) -> int:
        """Tokens for which memory is set aside."""
        return self.reserved or self.length


class Slots:
    """Assigner of slots to sequences. It reuses common prefixes and keeps all slots together within `max_tokens`.

    With a `ring`, a slot lends a prefix only while the windows of the token after it are whole. So it lends nothing of
    a prefix that ends more than `back` tokens before the end of what was written, unless all that was written fits the
    ring. A shorter prefix of the same slot would end even earlier. And a token beyond the ring's size counts for the
    layers without a window only.

    The runner must do what `released` and `copies` list, in this order, before the step that is being planned.
    """

    def __init__(self, count: int, max_tokens: int | None, keep: bool, ring: Ring | None = None):
        """`max_tokens`: None is no limit. `keep`: slots without a sequence keep what they hold, for reuse.

        `ring`: None: all layers hold all tokens.
        """
        self.max_tokens = max_tokens
        self.ring = ring
        self.all = [Slot(number) for number in range(count)]
        self.released: list[int] = []
        self.copies: list[Copy] = []
        self._keep = keep
        self._clock = 0

    @property
    def has_free(self) -> bool:
        """True when a slot is free; there may still be no memory for its sequence."""
        return any(not slot.reserved for slot in self.all)

    @property
    def kept(self) -> list[Slot]:
        """Slots that hold tokens but run no sequence."""
        return [slot for slot in self.all if slot.length and not slot.reserved]

    @property
    def tokens(self) -> int:
        """Tokens for which memory is set aside in all slots together."""
        return sum(self.cost(slot.tokens) for slot in self.all)

    @property
    def longest(self) -> int | None:
        """Most tokens of one sequence; None is no limit."""
        if self.max_tokens is None or self.ring is None:
            return self.max_tokens
        return self.ring.longest(self.max_tokens)

    def cost(self, tokens: int) -> int:
        """Return the part of `max_tokens` that a sequence of so many tokens takes."""
        return self.ring.cost(tokens) if self.ring else tokens

    def take(
        self, token_ids: "array[int]", reserve: int, adapter: object = None, space: str = "", *, reuse: bool = True
    ) -> Slot | None:
        """Assign a slot to a sequence that has run nothing yet. Its `length` is the part of `token_ids` that it holds.

        The longest prefix that any slot of this adapter and space holds is reused, but never all of the tokens: the
        last token must be run for its logits. With `reuse` False nothing is reused. Returns None if all slots are
        taken, or if there is no memory until a sequence ends.
        """
        source, length = self._longest_prefix(token_ids, adapter, space) if reuse else (None, 0)
        slot = self._choose(source, length, self.cost(reserve))
        if slot is None:
            return None
        if slot is not source:
            self._empty(slot)
            if source is not None:
                self.copies.append(Copy(source.number, slot.number, length))
                self._touch(source)
        slot.token_ids, slot.length, slot.reserved = token_ids, length, reserve
        slot.written = source.written if source else 0
        slot.adapter, slot.space = adapter, space
        self._touch(slot)
        return slot

    def free(self, slot: Slot) -> None:
        """Free the slot of an ended sequence. It keeps its tokens until it is assigned again."""
        slot.reserved = 0
        self._touch(slot)
        if not self._keep or not slot.length:  # a step that ran when it was aborted may have written here
            self._release(slot)

    def drop(self, adapter: object) -> None:
        """Release the kept slots that this adapter computed. No sequence uses the adapter any more."""
        for slot in self.kept:
            if slot.adapter is adapter:
                self._release(slot)

    def forget(self) -> None:
        """Mark all slots as empty, because the runner was reset or replaced."""
        for slot in self.all:
            slot.length = slot.written = 0
            if not slot.reserved:
                slot.token_ids, slot.used, slot.adapter, slot.space = token_array(()), 0, None, ""
        self.released.clear()

    def check(self) -> None:
        """Check the invariants of the slots. Raises AssertionError."""
        for slot in self.all:
            if slot.length > min(len(slot.token_ids), slot.reserved or slot.length):
                raise AssertionError(f"{slot} holds more than its sequence has, or than is reserved")
            if slot.length > slot.written or (self.ring and not self.ring.holds(slot.written, slot.length)):
                raise AssertionError(f"{slot} cannot go on: its windows are not whole, or were never written")
            if bool(slot.used) != bool(slot.length or slot.reserved):
                raise AssertionError(f"{slot} is empty and was used, or the other way round")
            if slot.length and not slot.reserved and not self._keep:
                raise AssertionError(f"{slot} is kept")
        if self.max_tokens is not None and self.tokens > self.max_tokens:
            raise AssertionError(f"{self.tokens} tokens, of {self.max_tokens}")

    def _choose(self, source: Slot | None, length: int, reserve: int) -> Slot | None:
        """Return the slot for a sequence that reuses `length` tokens of `source`, and make room in memory for it.

        `reserve`: its part of `max_tokens`.

        A kept source is taken in place if all of it is reused, or if it does not fit beside its copy. Otherwise the
        least recently used slot is taken, an empty one first.
        """
        copied_from = {self.all[copy.source] for copy in self.copies}  # they must stay until the copies are made
        own = source if source is not None and not source.reserved else None
        others = [slot for slot in self.all if not slot.reserved and slot is not own and slot not in copied_from]
        target = min(others, key=lambda slot: slot.used, default=None)
        if own is not None and (length == own.length or target is None or not self._fits(reserve, {own, *copied_from})):
            target = own
        if target is None or not self._fits(reserve, copied_from - {target}):
            return None
        spared = {target, *copied_from, *([source] if source else [])}
        for slot in sorted(self.kept, key=lambda slot: slot.used):
            if self.max_tokens is None or self.tokens - self.cost(target.tokens) + reserve <= self.max_tokens:
                break
            if slot not in spared:
                self._release(slot)
        return target

    def _fits(self, reserve: int, staying: set[Slot]) -> bool:
        """Return True when there is room for this part of `max_tokens` beside the running and the `staying` slots."""
        beside = {slot for slot in self.all if slot.reserved} | staying
        return self.max_tokens is None or reserve + sum(self.cost(slot.tokens) for slot in beside) <= self.max_tokens

    def _longest_prefix(self, token_ids: "array[int]", adapter: object, space: str = "") -> tuple[Slot | None, int]:
        """Return the slot of this adapter and space with the longest prefix of `token_ids` that it can lend, and the
        prefix's length.
        """
        best, longest = None, MIN_PREFIX - 1
        for slot in self.all if self._keep else ():
            most = min(slot.length, len(token_ids) - 1)
            if most <= longest or slot.adapter is not adapter or slot.space != space:
                continue
            # Most slots share nothing: only a slot that shares more than the best so far is searched.
            if slot.token_ids[: longest + 1] == token_ids[: longest + 1]:
                length = _common(slot.token_ids, token_ids, longest + 1, most)
                if self.ring is None or self.ring.holds(slot.written, length):
                    best, longest = slot, length
        return best, longest if best else 0

    def _empty(self, slot: Slot) -> None:
        if slot.length:
            self._release(slot)

    def _release(self, slot: Slot) -> None:
        slot.token_ids, slot.length, slot.written, slot.used = token_array(()), 0, 0, 0
        slot.adapter, slot.space = None, ""
        self.released.append(slot.number)

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.used = self._clock


def _common(one: "array[int]", other: "array[int]", known: int, most: int) -> int:
    """Return the length of the common prefix, `known` to `most`; by bisection, so that slices are compared in C."""
    while known < most:
        middle = (known + most + 1) // 2
        if one[known:middle] == other[known:middle]:
            known = middle
        else:
            most = middle - 1
    return known
