"""Batches of the generic runner: rows aligned at their ends, and their dense KV cache, which grows in place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from run_gpt.engine.plan import ScheduledTokens

GROWTH = 64
"""Number of columns that are added when the cache is full."""


class CacheLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one model layer, [rows, heads, columns, size], in buffers with room for more columns."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        self.columns = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns; see transformers' DynamicLayer."""
        end = self.columns + key_states.shape[-2]
        buffers = self._buffers
        if buffers is None or buffers[0].shape[-2] < end:
            buffers = (self._grown(0, key_states, end), self._grown(1, value_states, end))
        for buffer, states in zip(buffers, (key_states, value_states), strict=True):
            buffer[..., self.columns : end, :] = states
        self._set(buffers, end)
        return self.keys, self.values

    def crop(self, columns: int) -> None:
        """Keep the first `columns` columns."""
        assert self._buffers is not None
        self._set(self._buffers, columns)

    def _grown(self, which: int, states: torch.Tensor, end: int) -> torch.Tensor:
        buffer = states.new_zeros(*states.shape[:-2], end + GROWTH, states.shape[-1])
        if self._buffers is not None:
            buffer[..., : self.columns, :] = self._buffers[which][..., : self.columns, :]
        return buffer

    def _set(self, buffers: tuple[torch.Tensor, torch.Tensor], columns: int) -> None:
        self._buffers, self.columns, self.is_initialized = buffers, columns, True
        self.keys, self.values = (buffer[..., :columns, :] for buffer in buffers)

    def cut_out(self, row: int, start: int, end: int) -> "CacheLayer":
        """Return a new layer with a copy of one row's columns."""
        part = CacheLayer()
        part.update(self.keys[row : row + 1, :, start:end], self.values[row : row + 1, :, start:end])
        return part

    @classmethod
    def joined(cls, parts: "Sequence[tuple[CacheLayer, torch.Tensor]]", columns: int) -> "CacheLayer":
        """Return a new layer with a copy of the chosen rows of several layers, only their last `columns` columns."""
        buffers = []
        for which in (0, 1):
            like = parts[0][0].keys if which == 0 else parts[0][0].values
            rows = sum(len(index) for _, index in parts)
            buffer = like.new_zeros(rows, like.shape[1], columns + GROWTH, like.shape[-1])
            start = 0
            for layer, index in parts:
                kept = min(columns, layer.columns)
                states = (layer.keys if which == 0 else layer.values)[..., layer.columns - kept :, :]
                buffer[start : start + len(index), :, columns - kept : columns] = states[index.to(states.device)]
                start += len(index)
            buffers.append(buffer)
        joined = cls()
        joined._set((buffers[0], buffers[1]), columns)
        return joined


@dataclass(eq=False)
class Batch:
    """Batch of rows that run together, or of one row that is kept."""

    slots: list[int]
    """Slot of each row; -1 for a row whose slot was released."""
    mask: torch.Tensor
    """Mask [rows, columns]: 1 for a token, 0 for padding, which is in front."""
    cache: Cache

    @classmethod
    def begun(cls, runs: Sequence[ScheduledTokens]) -> "tuple[Batch, torch.Tensor]":
        """Return a batch for runs that begin their rows, and their token ids: [rows, columns], padded in front."""
        columns = max(run.end for run in runs)
        ids = torch.zeros(len(runs), columns, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, run in enumerate(runs):
            ids[row, columns - run.end :] = torch.tensor(run.token_ids)
            mask[row, columns - run.end :] = 1
        return cls([run.slot for run in runs], mask, Cache(layer_class_to_replicate=CacheLayer)), ids

    @classmethod
    def joined(cls, parts: "Sequence[Batch]") -> "Batch":
        """Return one batch with a copy of the rows of several batches, without those that were released."""
        rows = [torch.tensor([i for i, slot in enumerate(batch.slots) if slot >= 0]) for batch in parts]
        columns = max(int(batch.mask[row].sum(1).max()) for batch, row in zip(parts, rows, strict=True))
        masks = []
        for batch, row in zip(parts, rows, strict=True):
            kept = batch.mask[row][:, -columns:]
            masks.append(torch.nn.functional.pad(kept, (columns - kept.shape[1], 0)))
        layers = [
            CacheLayer.joined([(batch.cache.layers[i], row) for batch, row in zip(parts, rows, strict=True)], columns)
            for i in range(len(parts[0].cache.layers))
        ]
        slots = [slot for batch in parts for slot in batch.slots if slot >= 0]
        return cls(slots, torch.cat(masks), Cache(layers=layers))

    def length(self, slot: int) -> int:
        """Return the number of tokens that a slot holds."""
        return int(self.mask[self.slots.index(slot)].sum())

    def cut_out(self, slot: int, length: int, new_slot: int) -> "Batch":
        """Return a batch of `new_slot` alone, without padding, with a copy of the first `length` tokens of `slot`."""
        row, padding = self.slots.index(slot), self.mask.shape[1] - self.length(slot)
        layers = [layer.cut_out(row, padding, padding + length) for layer in self.cache.layers]
        return Batch([new_slot], self.mask.new_ones(1, length), Cache(layers=layers))

    def crop(self, length: int) -> None:
        """Keep the first `length` tokens of the only row."""
        self.mask = self.mask[:, :length]
        for layer in self.cache.layers:
            layer.crop(length)
