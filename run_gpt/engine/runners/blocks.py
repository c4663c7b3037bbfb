"""KV cache in blocks of tokens. Slots take blocks as their sequences grow, and give them back.

This is the idea of PagedAttention (Kwon et al. 2023, "Efficient memory management for large language model serving"):
memory is taken for the actual tokens, not for the longest sequence in every slot. Attention itself gets a sequence's
tokens as one piece: a view if its blocks are contiguous, else a gathered copy.
"""

import heapq
import math
from collections.abc import Mapping, Sequence

import torch

GROWTH = 1.25
"""Smallest factor by which memory grows, because each growth copies the cache, one layer after the other."""

Places = slice | torch.Tensor


class BlockCache:
    """Keys and values of each layer, [places, heads, size]. Each slot owns some blocks of places."""

    def __init__(self, layers: int, slots: int, heads: int, size: int, block: int, like: torch.Tensor):
        """`block`: number of tokens of a block. `like`: a tensor with the cache's type and device."""
        self._shape, self._like, self._count, self._slots, self._block = (heads, size), like, layers, slots, block
        self.reset()

    def reset(self) -> None:
        """Free all blocks and memory."""
        empty = self._like.new_empty(0, *self._shape)
        self.layers = [(empty, empty)] * self._count
        """Keys and values of each layer."""
        self._blocks: list[list[int]] = [[] for _ in range(self._slots)]
        self._lengths = [0] * self._slots
        self._free: list[int] = []
        self._total = 0

    def hold(self, slot: int, length: int) -> None:
        """Give a slot exactly the blocks for `length` tokens. Blocks that it keeps are not changed."""
        blocks, wanted = self._blocks[slot], math.ceil(length / self._block)
        for block in blocks[wanted:]:
            heapq.heappush(self._free, block)
        del blocks[wanted:]
        self._grow(wanted - len(blocks) - len(self._free))
        # The lowest first, so that the blocks of a sequence that runs alone are contiguous.
        blocks += [heapq.heappop(self._free) for _ in range(wanted - len(blocks))]
        self._lengths[slot] = length

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of `source` to `target`."""
        self.hold(target, length)
        old, new = self.places(source, length), self.places(target, length)
        for tensor in (tensor for pair in self.layers for tensor in pair):
            tensor[new] = tensor[old].clone()  # torch refuses to write from a view of the same tensor by an index

    def places(self, slot: int, end: int, start: int = 0) -> Places:
        """Return the places of a slot's tokens `start` (inclusive) to `end` (exclusive); at least one token."""
        blocks = self._blocks[slot][start // self._block : math.ceil(end / self._block)]
        first, skipped = blocks[0], start % self._block
        if blocks == list(range(first, first + len(blocks))):
            begin = first * self._block + skipped
            return slice(begin, begin + end - start)
        return self._spread([blocks])[0, skipped : skipped + end - start]

    def table(self, lengths: Mapping[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the places of the first tokens of slots, and their mask. `lengths`: number of tokens by slot.

        Both are [slots, longest]. A shorter slot is padded with its own first place, which the mask hides. Hidden
        values must still be finite, and only a place with a token of the slot is sure to be.
        """
        blocks = [self._blocks[slot] for slot in lengths]
        most = max(map(len, blocks))
        places = self._spread([row + row[:1] * (most - len(row)) for row in blocks])[:, : max(lengths.values())]
        ends = torch.tensor(list(lengths.values()), device=places.device)
        mask = torch.arange(places.shape[1], device=places.device) < ends[:, None]
        return torch.where(mask, places, places[:, :1]), mask

    def _spread(self, blocks: Sequence[Sequence[int]]) -> torch.Tensor:
        """Expand block numbers [rows, blocks] to places [rows, places]."""
        firsts = torch.tensor(blocks, device=self._like.device)[:, :, None] * self._block
        return (firsts + torch.arange(self._block, device=self._like.device)).flatten(1)

    def _grow(self, missing: int) -> None:
        """Add at least `missing` blocks. On a CPU, memory is only used once it is written."""
        if missing <= 0:
            return
        old, self._total = self._total, max(self._total + missing, int(GROWTH * self._total))
        held = [self.places(slot, length) for slot, length in enumerate(self._lengths) if length]
        for i, pair in enumerate(self.layers):
            grown = [self._like.new_empty(self._total * self._block, *self._shape) for _ in pair]
            for new, used in zip(grown, pair, strict=True):
                for places in held:
                    new[places] = used[places]
            self.layers[i] = grown[0], grown[1]
        for block in range(old, self._total):
            heapq.heappush(self._free, block)
