"""The generic runner: every causal language model of transformers, in one batch over a dense key-value cache.

Rows are aligned at their ends: the batch has one last column, which all rows share, and rows that are shorter have
padding in front, which a mask hides and true positions do not count. That is what transformers' own batched
generation does, so every model that can do that runs here, whatever its positions are made of (rotary, learned, ALiBi).
A step writes one column. Rows that join or leave move the cache once.
"""

import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from run_gpt.engine.beams import beam_search, end_ids_of
from run_gpt.engine.request import Request
from run_gpt.engine.scheduler import Chunk

GROWTH = 64
"""Columns that are added when the cache is full."""
PADDING_LIMIT = 1.5
"""Prompts run together while the longest has at most so many times the tokens of the shortest."""


class _Layer(DynamicLayer):  # type: ignore[misc]
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

    def _grown(self, which: int, states: torch.Tensor, end: int) -> torch.Tensor:
        buffer = states.new_zeros(*states.shape[:-2], end + GROWTH, states.shape[-1])
        if self._buffers is not None:
            buffer[..., : self.columns, :] = self._buffers[which][..., : self.columns, :]
        return buffer

    def _set(self, buffers: tuple[torch.Tensor, torch.Tensor], columns: int) -> None:
        self._buffers, self.columns, self.is_initialized = buffers, columns, True
        self.keys, self.values = (buffer[..., :columns, :] for buffer in buffers)

    @classmethod
    def joined(cls, parts: "Sequence[tuple[_Layer, torch.Tensor]]", columns: int) -> "_Layer":
        """A layer of the chosen rows of several layers, of which the last `columns` columns are kept."""
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


@dataclass
class _Batch:
    """Rows that run together."""

    slots: list[int]
    mask: torch.Tensor
    """[rows, columns]: 1 where there is a token, 0 for padding."""
    cache: Cache

    def rows(self, slots: set[int]) -> torch.Tensor:
        """The numbers of the rows of these slots."""
        return torch.tensor([i for i, slot in enumerate(self.slots) if slot in slots], dtype=torch.long)


class GenericRunner:
    """A ModelRunner over one dense batch."""

    def __init__(self, model: Any):
        self._model = model
        takes = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in takes
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._batch: _Batch | None = None
        self._prefilled: list[_Batch] = []
        self.end_ids = end_ids_of(model)

    @torch.inference_mode()
    def prefill(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """See ModelRunner. Whole prompts of like length run together, parts of a long one alone."""
        self.release([chunk.slot for chunk in chunks if chunk.start == 0])
        whole = [chunk for chunk in chunks if chunk.start == 0 and chunk.last]
        logits: dict[int, torch.Tensor] = {}
        for group in _alike(whole):
            batch, ids = _padded(group)
            self._prefilled.append(batch)
            logits.update(zip(batch.slots, self._forward(batch, ids), strict=True))
        for chunk in chunks:
            if chunk.slot not in logits:
                after = self._run_part(chunk)
                if chunk.last:
                    logits[chunk.slot] = after
        return torch.stack([logits[chunk.slot] for chunk in chunks if chunk.last]) if logits else torch.empty(0, 0)

    def _run_part(self, chunk: Chunk) -> torch.Tensor:
        """[vocabulary]: the logits after a part of a prompt, which has a batch of its own until it is whole."""
        if chunk.start == 0:
            batch, ids = _padded([chunk])
            self._prefilled.append(batch)
        else:
            batch = next(batch for batch in self._prefilled if batch.slots == [chunk.slot])
            ids = torch.tensor([chunk.token_ids])
            batch.mask = torch.cat([batch.mask, torch.ones_like(ids)], dim=1)
        return self._forward(batch, ids)[0]

    def fork(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See ModelRunner."""
        for i, batch in enumerate(self._prefilled):
            copies = [(batch.slots.index(source), target) for source, target in pairs if source in batch.slots]
            if copies:
                rows = torch.tensor([*range(len(batch.slots)), *(row for row, _ in copies)])
                columns = batch.mask.shape[1]
                layers = [_Layer.joined([(layer, rows)], columns) for layer in batch.cache.layers]
                slots = [*batch.slots, *(target for _, target in copies)]
                self._prefilled[i] = _Batch(slots, batch.mask[rows], Cache(layers=layers))

    @torch.inference_mode()
    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> torch.Tensor:
        """See ModelRunner."""
        batch = self._composed(list(slots))
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(batch.slots), 1)], dim=1)
        by_slot = dict(zip(slots, token_ids, strict=True))
        logits = self._forward(batch, torch.tensor([[by_slot[slot]] for slot in batch.slots]))
        order = {slot: row for row, slot in enumerate(batch.slots)}
        return logits[[order[slot] for slot in slots]]

    def release(self, slots: Sequence[int]) -> None:
        """See ModelRunner. A row's memory goes when the batch is next composed."""
        for batch in self._batches():
            batch.slots = [-1 if slot in slots else slot for slot in batch.slots]
        if not any(slot >= 0 for batch in self._batches() for slot in batch.slots):
            self.reset()

    def reset(self) -> None:
        """See ModelRunner."""
        self._batch = None
        self._prefilled.clear()

    def beam_search(self, request: Request, stopped: threading.Event) -> list[list[int]]:
        """See ModelRunner."""
        return beam_search(self._model, request, stopped)

    def _batches(self) -> list[_Batch]:
        return [*([self._batch] if self._batch else []), *self._prefilled]

    def _composed(self, slots: list[int]) -> _Batch:
        """The one batch of exactly these slots: what it was, or with rows that joined and without those that left."""
        wanted = set(slots)
        if self._batch is not None and set(self._batch.slots) == wanted:
            return self._batch
        parts = [(batch, rows) for batch in self._batches() if len(rows := batch.rows(wanted))]
        lengths = [int(batch.mask[rows].any(0).flip(0).nonzero().max()) + 1 for batch, rows in parts]
        columns = max(lengths)
        masks = []
        for batch, rows in parts:
            kept = batch.mask[rows][:, -columns:]
            masks.append(torch.nn.functional.pad(kept, (columns - kept.shape[1], 0)))
        layers = [
            _Layer.joined([(batch.cache.layers[i], rows) for batch, rows in parts], columns)
            for i in range(len(parts[0][0].cache.layers))
        ]
        joined = [batch.slots[row] for batch, rows in parts for row in rows.tolist()]
        self._batch = _Batch(joined, torch.cat(masks), Cache(layers=layers))
        # What this step has prefilled joins in the next one.
        self._prefilled = [b for b in self._prefilled if not wanted & set(b.slots) and any(s >= 0 for s in b.slots)]
        return self._batch

    def _forward(self, batch: _Batch, ids: torch.Tensor) -> torch.Tensor:
        """[rows, vocabulary]: the logits after the last column. `batch.mask` covers `ids`, the new columns, already."""
        device = self._model.device
        inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": batch.mask.to(device)}
        if self._takes_positions:
            positions = (batch.mask.cumsum(1) - 1).clamp(min=0)
            inputs["position_ids"] = positions[:, -ids.shape[1] :].to(device)
        out = self._model(**inputs, past_key_values=batch.cache, use_cache=True, **self._last_only)
        return out.logits[:, -1]  # type: ignore[no-any-return]


def _alike(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Whole prompts in groups that run together: sorted by length, so that padding costs little."""
    groups: list[list[Chunk]] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk.end):
        if groups and chunk.end <= PADDING_LIMIT * groups[-1][0].end:
            groups[-1].append(chunk)
        else:
            groups.append([chunk])
    return groups


def _padded(chunks: Sequence[Chunk]) -> tuple[_Batch, torch.Tensor]:
    """A new batch for parts that begin their prompts, and their token ids: [rows, columns], padded in front."""
    columns = max(chunk.end for chunk in chunks)
    ids = torch.zeros(len(chunks), columns, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, chunk in enumerate(chunks):
        ids[row, columns - chunk.end :] = torch.tensor(chunk.token_ids)
        mask[row, columns - chunk.end :] = 1
    return _Batch([chunk.slot for chunk in chunks], mask, Cache(layer_class_to_replicate=_Layer)), ids
