"""Generic runner for all causal language models of transformers, in one batch over a dense KV cache.

Rows of the batch are aligned at their ends: all rows share the last column, and shorter rows have padding in front. A
mask hides the padding, and positions do not count it. transformers' own batched generation does the same, so every
model that supports it runs here, with any kind of positions (rotary, learned, ALiBi). A step of rows that continue by
one token writes one column. When rows join or leave, the cache is moved once. A row that leaves gets its own cache,
without padding: it has ended and is kept for reuse, or it checks a draft.
"""

import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from run_gpt.engine.plan import ScheduledTokens
from run_gpt.engine.request import Request
from run_gpt.engine.runner import ModelRunner
from run_gpt.engine.runners.beams import beam_search, end_ids_of
from run_gpt.engine.runners.lora import Adapters, Lora
from run_gpt.engine.runners.memory import cache_bytes_per_token
from run_gpt.engine.slots import Copy
from run_gpt.process.devices import input_device

GROWTH = 64
"""Number of columns that are added when the cache is full."""
PADDING_LIMIT = 1.5
"""Largest ratio of the longest to the shortest prompt, in tokens, for prompts that run together."""
CHEAP_TOKENS = 5
"""One sequence with four drafts, or two with one each. Each sequence with drafts is a separate model call."""


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

    def cut_out(self, row: int, start: int, end: int) -> "_Layer":
        """Return a new layer with a copy of one row's columns."""
        part = _Layer()
        part.update(self.keys[row : row + 1, :, start:end], self.values[row : row + 1, :, start:end])
        return part

    @classmethod
    def joined(cls, parts: "Sequence[tuple[_Layer, torch.Tensor]]", columns: int) -> "_Layer":
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
class _Batch:
    """Batch of rows that run together, or of one row that is kept."""

    slots: list[int]
    mask: torch.Tensor
    """Mask [rows, columns]: 1 for a token, 0 for padding, which is in front."""
    cache: Cache

    def length(self, slot: int) -> int:
        """Return the number of tokens that a slot holds."""
        return int(self.mask[self.slots.index(slot)].sum())

    def cut_out(self, slot: int, length: int, new_slot: int) -> "_Batch":
        """Return a batch of `new_slot` alone, without padding, with a copy of the first `length` tokens of `slot`."""
        row, padding = self.slots.index(slot), self.mask.shape[1] - self.length(slot)
        layers = [layer.cut_out(row, padding, padding + length) for layer in self.cache.layers]
        return _Batch([new_slot], self.mask.new_ones(1, length), Cache(layers=layers))

    def crop(self, length: int) -> None:
        """Keep the first `length` tokens of the only row."""
        self.mask = self.mask[:, :length]
        for layer in self.cache.layers:
            layer.crop(length)


class GenericRunner(ModelRunner):
    """ModelRunner over dense batches: one of the rows that continue by one token, others of kept rows."""

    reuses_prefixes = True
    cheap_tokens = CHEAP_TOKENS

    def __init__(self, model: Any):
        self._model = model
        self._adapters = Adapters(model)
        self._loras: dict[int, Lora | None] = {}  # by slot
        takes = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in takes
        self._takes_wanted = "logits_to_keep" in takes
        self._batches: list[_Batch] = []
        self.cache_bytes_per_token = cache_bytes_per_token(model)
        self.end_ids = end_ids_of(model)

    @torch.inference_mode()
    def forward(self, runs: Sequence[ScheduledTokens]) -> torch.Tensor:
        """See ModelRunner. Rows that continue by one token run together, as do whole prompts of similar length, and
        the first parts of scored prompts. All others run alone.
        """
        self._begin(runs)
        logits: dict[int, torch.Tensor] = {}  # by slot
        continued = [run for run in runs if run.start and len(run.token_ids) == 1]
        if continued:
            logits.update(self._continue(continued))
        begun = [run for run in runs if run.start == 0 and run.num_logits]
        # Separate groups, so that no unneeded logits are computed, except for padding.
        groups = [*_alike([r for r in begun if r.num_logits == 1]), *_alike([r for r in begun if r.num_logits > 1])]
        for group in groups:
            batch, ids = self._grown(group)
            wanted = max(run.num_logits for run in group)
            logits.update(zip(batch.slots, self._run(batch, ids, wanted), strict=True))
        for run in runs:
            if run.slot not in logits:
                logits[run.slot] = self._run_alone(run)
        return torch.cat([logits[run.slot][-run.num_logits :] for run in runs if run.num_logits] or [torch.empty(0, 0)])

    @torch.inference_mode()
    def embed(self, runs: Sequence[ScheduledTokens]) -> torch.Tensor:
        """See ModelRunner. Whole prompts of similar length run together, others alone."""
        self._begin(runs)
        sums: dict[int, torch.Tensor] = {}  # by slot
        groups = [*_alike([run for run in runs if run.start == 0]), *([run] for run in runs if run.start)]
        for group in groups:
            batch, ids = self._grown(group)
            states = self._call(self._model.base_model, batch, ids).last_hidden_state.float()
            mask = batch.mask[:, -ids.shape[1] :].to(states.device)
            sums.update(zip(batch.slots, (states * mask[..., None]).sum(1), strict=True))
        return torch.stack([sums[run.slot] for run in runs])

    def _begin(self, runs: Sequence[ScheduledTokens]) -> None:
        """Cut each slot to the tokens before its run."""
        self.release([run.slot for run in runs if run.start == 0])
        for run in runs:
            self._loras[run.slot] = run.adapter
            if run.start and self._batch_of(run.slot).length(run.slot) > run.start:
                self._alone(run.slot).crop(run.start)

    def _continue(self, runs: Sequence[ScheduledTokens]) -> dict[int, torch.Tensor]:
        """Run rows that continue by one token. Returns the logits by slot, [1, vocabulary] each."""
        batch = self._composed([run.slot for run in runs])
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(batch.slots), 1)], dim=1)
        token_ids = {run.slot: run.token_ids for run in runs}
        logits = self._run(batch, torch.tensor([token_ids[slot] for slot in batch.slots]), 1)
        return dict(zip(batch.slots, logits, strict=True))

    def _run_alone(self, run: ScheduledTokens) -> torch.Tensor:
        """Run a part of a prompt, or a row's last token and its drafts. Returns [wanted, or 1, vocabulary]."""
        batch, ids = self._grown([run])
        return self._run(batch, ids, max(1, run.num_logits))[0]

    def _grown(self, runs: Sequence[ScheduledTokens]) -> tuple[_Batch, torch.Tensor]:
        """Return a batch with room for runs that begin their rows, or for one that goes on, and its token ids."""
        if runs[0].start == 0:
            batch, ids = _padded(runs)
            self._batches.append(batch)
        else:
            batch, ids = self._alone(runs[0].slot), torch.tensor([runs[0].token_ids])
            batch.mask = torch.cat([batch.mask, torch.ones_like(ids)], dim=1)
        return batch, ids

    @torch.inference_mode()
    def copy(self, copies: Sequence[Copy]) -> None:
        """See ModelRunner."""
        for copy in copies:
            self.release([copy.target])
            self._batches.append(self._batch_of(copy.source).cut_out(copy.source, copy.length, copy.target))

    def release(self, slots: Sequence[int]) -> None:
        """See ModelRunner. The memory of a row in a batch is freed when the batch is next composed."""
        for batch in self._batches:
            batch.slots = [-1 if slot in slots else slot for slot in batch.slots]
        self._batches = [batch for batch in self._batches if any(slot >= 0 for slot in batch.slots)]

    def reset(self) -> None:
        """See ModelRunner."""
        self._batches.clear()

    def add_adapter(self, lora: Lora) -> None:
        """See ModelRunner."""
        self._adapters.add(lora)

    def remove_adapter(self, lora: Lora) -> None:
        """See ModelRunner."""
        self._adapters.remove(lora)

    def beam_search(self, request: Request, stopped: threading.Event, lora: Lora | None = None) -> list[list[int]]:
        """See ModelRunner."""
        return beam_search(self._model, request, stopped, self._adapters, lora)

    def _batch_of(self, slot: int) -> _Batch:
        return next(batch for batch in self._batches if slot in batch.slots)

    def _alone(self, slot: int) -> _Batch:
        """Return the batch of this slot alone, cut out of its previous batch."""
        batch = self._batch_of(slot)
        if len(batch.slots) == 1:
            return batch
        alone = batch.cut_out(slot, batch.length(slot), slot)
        self.release([slot])
        self._batches.append(alone)
        return alone

    def _composed(self, slots: list[int]) -> _Batch:
        """Return one batch of exactly these slots: an existing one, or a new one if rows have joined or left."""
        wanted = set(slots)
        for slot in {slot for batch in self._batches if wanted & set(batch.slots) for slot in batch.slots} - wanted:
            if slot >= 0:
                self._alone(slot)
        parts = [batch for batch in self._batches if wanted & set(batch.slots)]
        if len(parts) == 1 and set(parts[0].slots) == wanted:
            return parts[0]
        rows = [torch.tensor([i for i, slot in enumerate(batch.slots) if slot >= 0]) for batch in parts]
        columns = max(int(batch.mask[row].sum(1).max()) for batch, row in zip(parts, rows, strict=True))
        masks = []
        for batch, row in zip(parts, rows, strict=True):
            kept = batch.mask[row][:, -columns:]
            masks.append(torch.nn.functional.pad(kept, (columns - kept.shape[1], 0)))
        layers = [
            _Layer.joined([(batch.cache.layers[i], row) for batch, row in zip(parts, rows, strict=True)], columns)
            for i in range(len(parts[0].cache.layers))
        ]
        joined = [slot for batch in parts for slot in batch.slots if slot >= 0]
        composed = _Batch(joined, torch.cat(masks), Cache(layers=layers))
        self._batches = [*(batch for batch in self._batches if batch not in parts), composed]
        return composed

    def _run(self, batch: _Batch, ids: torch.Tensor, wanted: int) -> torch.Tensor:
        """Return the logits after the last columns: [rows, wanted, vocabulary]."""
        options = {"logits_to_keep": wanted} if self._takes_wanted else {}
        return self._call(self._model, batch, ids, **options).logits[:, -wanted:]  # type: ignore[no-any-return]

    def _call(self, model: Any, batch: _Batch, ids: torch.Tensor, **options: Any) -> Any:
        """Call the model, or its part below the output layer. `batch.mask` covers `ids` already."""
        device = input_device(self._model)
        inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": batch.mask.to(device)}
        if self._takes_positions:
            positions = (batch.mask.cumsum(1) - 1).clamp(min=0)
            inputs["position_ids"] = positions[:, -ids.shape[1] :].to(device)
        with self._adapters.rows([self._loras.get(slot) for slot in batch.slots]):
            return model(**inputs, past_key_values=batch.cache, use_cache=True, **options)


def _alike(runs: Sequence[ScheduledTokens]) -> list[list[ScheduledTokens]]:
    """Group whole prompts that run together, sorted by length so that padding costs little."""
    groups: list[list[ScheduledTokens]] = []
    for run in sorted(runs, key=lambda run: run.end):
        if groups and run.end <= PADDING_LIMIT * groups[-1][0].end:
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


def _padded(runs: Sequence[ScheduledTokens]) -> tuple[_Batch, torch.Tensor]:
    """Return a new batch for runs that begin their rows, and their token ids: [rows, columns], padded in front."""
    columns = max(run.end for run in runs)
    ids = torch.zeros(len(runs), columns, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, run in enumerate(runs):
        ids[row, columns - run.end :] = torch.tensor(run.token_ids)
        mask[row, columns - run.end :] = 1
    return _Batch([run.slot for run in runs], mask, Cache(layer_class_to_replicate=_Layer)), ids
