"""The slots: which tokens each one holds in the model's cache, running or kept, and who gets which. No torch here."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

MIN_PREFIX = 8
"""Fewer tokens are not reused: nearly all prompts share a few (the beginning of a text, of a chat's first turn), and to
run so few costs about as much as to copy them."""


def token_array(token_ids: Sequence[int]) -> "array[int]":
    """Token ids so that slices of them are compared in C."""
    return array("i", token_ids)


@dataclass(frozen=True)
class Copy:
    """The first `length` tokens that the slot `source` holds, for the slot `target` to hold as well."""

    source: int
    target: int
    length: int


@dataclass(eq=False)
class Slot:
    """A place for one row's cache. What its last row left is kept until the place or its memory is needed."""

    number: int
    token_ids: "array[int]" = field(default_factory=lambda: token_array(()))
    """The history of its row, or of its last one."""
    length: int = 0
    """How many of them the cache holds."""
    adapter: object = None
    """The LoRA adapter by which it was computed: for rows of another, or of none, it is of no use."""
    reserved: int = 0
    """Tokens that its row may come to hold; 0: no row runs in it."""
    used: int = 0
    """When it was last given out, given back or copied from, as a count of such events; 0: it is empty."""

    @property
    def tokens(self) -> int:
        """Tokens for which memory is set aside."""
        return self.reserved or self.length


class Slots:
    """Gives slots to rows, with what they can reuse of another's tokens, within `max_tokens` for all together.

    `released` and `copies` are what the runner must do before the step that is being planned, in this order.
    """

    def __init__(self, count: int, max_tokens: int | None, keep: bool):
        """`max_tokens`: None is no limit. `keep`: whether slots without a row keep what they hold for reuse."""
        self.max_tokens = max_tokens
        self.all = [Slot(number) for number in range(count)]
        self.released: list[int] = []
        self.copies: list[Copy] = []
        self._keep = keep
        self._clock = 0

    @property
    def has_free(self) -> bool:
        """Whether a row could have a slot, were there memory for it."""
        return any(not slot.reserved for slot in self.all)

    @property
    def kept(self) -> list[Slot]:
        """Those without a row that hold something."""
        return [slot for slot in self.all if slot.length and not slot.reserved]

    @property
    def tokens(self) -> int:
        """Tokens for which memory is set aside in all slots together."""
        return sum(slot.tokens for slot in self.all)

    def take(self, history: "array[int]", reserve: int, adapter: object = None, *, reuse: bool = True) -> Slot | None:
        """A slot for a row that has run nothing yet; its `length` says how much of `history` it holds already.

        The longest common beginning with what any slot holds is reused, but never all of the history: the last token
        must be run for its logits. `reuse` False: nothing is. None: all slots are taken, or there is no memory before a
        row has ended.
        """
        source, length = self._longest_prefix(history, adapter) if reuse else (None, 0)
        slot = self._choose(source, length, reserve)
        if slot is None:
            return None
        if slot is not source:
            self._empty(slot)
            if source is not None:
                self.copies.append(Copy(source.number, slot.number, length))
                self._touch(source)
        slot.token_ids, slot.length, slot.reserved, slot.adapter = history, length, reserve, adapter
        self._touch(slot)
        return slot

    def free(self, slot: Slot) -> None:
        """A row has ended: its slot may be given out, and keeps what it holds until then."""
        slot.reserved = 0
        self._touch(slot)
        if not self._keep or not slot.length:  # a step that ran when its row was aborted may have left something
            self._release(slot)

    def drop(self, adapter: object) -> None:
        """Keep nothing that this adapter has computed; no row has it any more."""
        for slot in self.kept:
            if slot.adapter is adapter:
                self._release(slot)

    def forget(self) -> None:
        """The runner was reset, or is another one: no slot holds anything."""
        for slot in self.all:
            slot.length = 0
            if not slot.reserved:
                slot.token_ids, slot.used, slot.adapter = token_array(()), 0, None
        self.released.clear()

    def check(self) -> None:
        """The invariants of what slots hold. Raises AssertionError."""
        for slot in self.all:
            if slot.length > min(len(slot.token_ids), slot.reserved or slot.length):
                raise AssertionError(f"{slot} holds more than its row has, or than is reserved")
            if bool(slot.used) != bool(slot.length or slot.reserved):
                raise AssertionError(f"{slot} is empty and was used, or the other way round")
            if slot.length and not slot.reserved and not self._keep:
                raise AssertionError(f"{slot} is kept")
        if self.max_tokens is not None and self.tokens > self.max_tokens:
            raise AssertionError(f"{self.tokens} tokens, of {self.max_tokens}")

    def _choose(self, source: Slot | None, length: int, reserve: int) -> Slot | None:
        """The slot for a row that reuses `length` tokens of `source`; makes room in memory for it.

        A kept source is taken in place if all of it is reused, or if it cannot stay beside its copy. Otherwise the slot
        that was used longest ago is taken, an empty one first.
        """
        copied_from = {self.all[copy.source] for copy in self.copies}  # they must live until the copies are made
        own = source if source is not None and not source.reserved else None
        others = [slot for slot in self.all if not slot.reserved and slot is not own and slot not in copied_from]
        target = min(others, key=lambda slot: slot.used, default=None)
        if own is not None and (length == own.length or target is None or not self._fits(reserve, {own, *copied_from})):
            target = own
        if target is None or not self._fits(reserve, copied_from - {target}):
            return None
        spared = {target, *copied_from, *([source] if source else [])}
        for slot in sorted(self.kept, key=lambda slot: slot.used):
            if self.max_tokens is None or self.tokens - target.tokens + reserve <= self.max_tokens:
                break
            if slot not in spared:
                self._release(slot)
        return target

    def _fits(self, reserve: int, staying: set[Slot]) -> bool:
        """Whether there is room for so many tokens beside the running rows and these slots."""
        beside = {slot for slot in self.all if slot.reserved} | staying
        return self.max_tokens is None or reserve + sum(slot.tokens for slot in beside) <= self.max_tokens

    def _longest_prefix(self, history: "array[int]", adapter: object) -> tuple[Slot | None, int]:
        """The slot of this adapter that shares the longest beginning with `history`, and how many tokens that is."""
        best, longest = None, MIN_PREFIX - 1
        for slot in self.all if self._keep else ():
            most = min(slot.length, len(history) - 1)
            # Nothing to find in most slots: only one that shares more than the best so far is searched.
            if most > longest and slot.adapter is adapter and slot.token_ids[: longest + 1] == history[: longest + 1]:
                best, longest = slot, _common(slot.token_ids, history, longest + 1, most)
        return best, longest if best else 0

    def _empty(self, slot: Slot) -> None:
        if slot.length:
            self._release(slot)

    def _release(self, slot: Slot) -> None:
        slot.token_ids, slot.length, slot.used, slot.adapter = token_array(()), 0, 0, None
        self.released.append(slot.number)

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.used = self._clock


def _common(one: "array[int]", other: "array[int]", known: int, most: int) -> int:
    """Length of the common beginning, at least `known` and at most `most`; by bisection, so that C compares."""
    while known < most:
        middle = (known + most + 1) // 2
        if one[known:middle] == other[known:middle]:
            known = middle
        else:
            most = middle - 1
    return known
