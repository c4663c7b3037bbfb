"""Generic runner for all causal language models of transformers, in one batch over a dense KV cache.

Rows of the batch are aligned at their ends: all rows share the last column, and shorter rows have padding in front. A
mask hides the padding, and positions do not count it. transformers' own batched generation does the same, so every
model that supports it runs here, with any kind of positions (rotary, learned, ALiBi). A step of rows that continue by
one token writes one column. When rows join or leave, the cache is moved once. A row that leaves gets its own cache,
without padding: it has ended and is kept for reuse, or it checks a draft.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from run_gpt.engine.plan import ScheduledTokens
from run_gpt.engine.runners.base import TransformersRunner
from run_gpt.engine.runners.batches import Batch
from run_gpt.engine.runners.lora import Lora
from run_gpt.engine.runners.memory import cache_bytes_per_token
from run_gpt.engine.slots import Copy
from run_gpt.process.devices import input_device

PADDING_LIMIT = 1.5
"""Largest ratio of the longest to the shortest prompt, in tokens, for prompts that run together."""
CHEAP_TOKENS = 5
"""One sequence with four drafts, or two with one each. Each sequence with drafts is a separate model call."""


class GenericRunner(TransformersRunner):
    """ModelRunner over dense batches: one of the rows that continue by one token, others of kept rows."""

    reuses_prefixes = True
    cheap_tokens = CHEAP_TOKENS

    def __init__(self, model: Any):
        super().__init__(model)
        self._loras: dict[int, Lora | None] = {}  # by slot
        takes = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in takes
        self._takes_logits_to_keep = "logits_to_keep" in takes
        self._batches: list[Batch] = []
        self.cache_bytes_per_token = cache_bytes_per_token(model)

    @torch.inference_mode()
    def forward(self, runs: Sequence[ScheduledTokens]) -> torch.Tensor:
        """See ModelRunner. Rows that continue by one token run together, as do whole prompts of similar length, and
        the first parts of scored prompts. All others run alone.
        """
        crossing = {run.slot: parts for run in runs if len(parts := self._rotary.parts(run)) > 1}
        logits = self._forward([run for run in runs if run.slot not in crossing])
        for slot, parts in crossing.items():
            logits[slot] = torch.cat([self._forward([part])[slot][-part.num_logits :] for part in parts])
        return torch.cat([logits[run.slot][-run.num_logits :] for run in runs if run.num_logits] or [torch.empty(0, 0)])

    def _forward(self, runs: Sequence[ScheduledTokens]) -> dict[int, torch.Tensor]:
        """Run these tokens. Returns the logits by slot, of at least the tokens that need them."""
        self._begin(runs)
        logits: dict[int, torch.Tensor] = {}
        continued = [run for run in runs if run.start and len(run.token_ids) == 1]
        if continued:
            logits.update(self._continue(continued))
        begun = [run for run in runs if run.start == 0 and run.num_logits]
        # Separate groups, so that no unneeded logits are computed, except for padding.
        groups = [*_alike([r for r in begun if r.num_logits == 1]), *_alike([r for r in begun if r.num_logits > 1])]
        for group in groups:
            batch, ids = self._grown(group)
            num_logits = max(run.num_logits for run in group)
            logits.update(zip(batch.slots, self._run(batch, ids, num_logits), strict=True))
        for run in runs:
            if run.slot not in logits:
                logits[run.slot] = self._run_alone(run)
        return logits

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
        """Cut each slot to the tokens before its run; they run again if their rotary embedding was another."""
        self.release([run.slot for run in runs if run.start == 0])
        for run in runs:
            self._loras[run.slot] = run.adapter
            if not self._rotary.begin(run):
                self.release([run.slot])
                before = ScheduledTokens(run.sequence, 0, tuple(run.sequence.token_ids[: run.start]), 0)
                self._run(*self._grown([before]), 1)
            elif run.start and self._batch_of(run.slot).length(run.slot) > run.start:
                self._alone(run.slot).crop(run.start)

    def _continue(self, runs: Sequence[ScheduledTokens]) -> dict[int, torch.Tensor]:
        """Run rows that continue by one token. Returns the logits by slot, [1, vocabulary] each."""
        batch = self._composed([run.slot for run in runs])
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(batch.slots), 1)], dim=1)
        token_ids = {run.slot: run.token_ids for run in runs}
        logits = self._run(batch, torch.tensor([token_ids[slot] for slot in batch.slots]), 1)
        return dict(zip(batch.slots, logits, strict=True))

    def _run_alone(self, run: ScheduledTokens) -> torch.Tensor:
        """Run a part of a prompt, or a row's last token and its drafts. Returns [num_logits, or 1, vocabulary]."""
        batch, ids = self._grown([run])
        return self._run(batch, ids, max(1, run.num_logits))[0]

    def _grown(self, runs: Sequence[ScheduledTokens]) -> tuple[Batch, torch.Tensor]:
        """Return a batch with room for runs that begin their rows, or for one that goes on, and its token ids."""
        if runs[0].start == 0:
            batch, ids = Batch.begun(runs)
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
        self._rotary.copy(copies)

    def release(self, slots: Sequence[int]) -> None:
        """See ModelRunner. The memory of a row in a batch is freed when the batch is next composed."""
        for batch in self._batches:
            batch.slots = [-1 if slot in slots else slot for slot in batch.slots]
        self._batches = [batch for batch in self._batches if any(slot >= 0 for slot in batch.slots)]

    def reset(self) -> None:
        """See ModelRunner."""
        self._batches.clear()

    def _batch_of(self, slot: int) -> Batch:
        return next(batch for batch in self._batches if slot in batch.slots)

    def _alone(self, slot: int) -> Batch:
        """Return the batch of this slot alone, cut out of its previous batch."""
        batch = self._batch_of(slot)
        if len(batch.slots) == 1:
            return batch
        alone = batch.cut_out(slot, batch.length(slot), slot)
        self.release([slot])
        self._batches.append(alone)
        return alone

    def _composed(self, slots: list[int]) -> Batch:
        """Return one batch of exactly these slots: an existing one, or a new one if rows have joined or left."""
        wanted = set(slots)
        for slot in {slot for batch in self._batches if wanted & set(batch.slots) for slot in batch.slots} - wanted:
            if slot >= 0:
                self._alone(slot)
        parts = [batch for batch in self._batches if wanted & set(batch.slots)]
        if len(parts) == 1 and set(parts[0].slots) == wanted:
            return parts[0]
        composed = Batch.joined(parts)
        self._batches = [*(batch for batch in self._batches if batch not in parts), composed]
        return composed

    def _run(self, batch: Batch, ids: torch.Tensor, num_logits: int) -> torch.Tensor:
        """Return the logits after the last columns: [rows, num_logits, vocabulary]."""
        options = {"logits_to_keep": num_logits} if self._takes_logits_to_keep else {}
        return self._call(self._model, batch, ids, **options).logits[:, -num_logits:]  # type: ignore[no-any-return]

    def _call(self, model: Any, batch: Batch, ids: torch.Tensor, **options: Any) -> Any:
        """Call the model, or its part below the output layer. `batch.mask` covers `ids` already."""
        device = input_device(self._model)
        inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": batch.mask.to(device)}
        positions = (batch.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if self._takes_positions:
            inputs["position_ids"] = positions.to(device)
        adapters = self._adapters.rows([self._loras.get(slot) for slot in batch.slots])
        with adapters, self._rotary.of(batch.slots, positions):
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
