"""Runner for models without a plain KV cache (state-space and recurrent ones): one sequence after the other."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from run_gpt.engine.plan import ScheduledTokens
from run_gpt.engine.runners.base import TransformersRunner
from run_gpt.engine.slots import Copy
from run_gpt.process.devices import input_device

AHEAD = 1024
"""Number of prompt tokens whose logits are kept for its next parts, which would otherwise each run all of it again."""
# Names in transformers' models of the state that goes from one step to the next.
_STATES = ("past_key_values", "cache_params", "state")


class AloneRunner(TransformersRunner):
    """ModelRunner that keeps a state for each sequence and never runs two sequences together.

    A state is the one after the last token: it cannot be cut back or reused at an earlier token.
    """

    reuses_prefixes = False
    cheap_tokens = 1
    cache_bytes_per_token = 0

    def __init__(self, model: Any):
        super().__init__(model)
        self._states: dict[int, Any] = {}
        self._ahead: dict[int, tuple[int, torch.Tensor]] = {}  # by slot: logits, and the position of the first of them
        takes = inspect.signature(model.forward).parameters
        self._takes_logits_to_keep = "logits_to_keep" in takes
        self._takes_positions = "position_ids" in takes
        self._name = next(name for name in _STATES if name in takes)
        self.can_reorder_cache = self._name != "state"  # a plain list of states, such as RWKV's

    @torch.inference_mode()
    def forward(self, runs: Sequence[ScheduledTokens]) -> torch.Tensor:
        """See ModelRunner. These models take a prompt whole or token by token, so its last part runs all of it.

        If a prompt is scored, its first part runs it and keeps the logits for the next parts.
        """
        logits = []
        prompts: dict[Any, tuple[int, torch.Tensor]] = {}
        for run in runs:
            prompt_ids = run.sequence.request.prompt_ids
            if not run.num_logits:
                continue
            if run.end > len(prompt_ids):
                goes_on = self._rotary.begin(run) and run.slot in self._states
                if not goes_on:
                    self.release([run.slot])
                logits.append(self._run(run, run.token_ids if goes_on else run.sequence.token_ids[: run.end], 1))
            elif run.num_logits > 1 or run.end < len(prompt_ids) or run.slot in self._ahead:
                logits.append(self._scored(run))
            elif (prompt_ids, run.adapter) in prompts:  # usually another sequence of the same request
                source, after = prompts[prompt_ids, run.adapter]
                self._states[run.slot] = copy.deepcopy(self._states[source])
                self._rotary.begin(run)
                logits.append(after)
            else:
                self.release([run.slot])
                self._rotary.begin(run)
                logits.append(self._run(run, prompt_ids, 1))
                prompts[prompt_ids, run.adapter] = run.slot, logits[-1]
        return torch.cat(logits) if logits else torch.empty(0, 0)

    @torch.inference_mode()
    def embed(self, runs: Sequence[ScheduledTokens]) -> torch.Tensor:
        """See ModelRunner. The last part of a prompt runs all of it."""
        sums = []
        for run in runs:
            prompt_ids = run.sequence.request.prompt_ids
            if run.end < len(prompt_ids):
                sums.append(torch.zeros(self._model.config.hidden_size, device=input_device(self._model)))
                continue
            ids = torch.tensor([prompt_ids], device=input_device(self._model))
            with self._adapters.rows([run.adapter]):
                states = self._model.base_model(ids).last_hidden_state[0].float()
            sums.append(states[-1] if run.sequence.request.pooling == "last" else states.sum(0))
        return torch.stack(sums)

    def copy(self, copies: Sequence[Copy]) -> None:
        """See ModelRunner. There are no copies, because no prefix is reused."""
        if copies:
            raise NotImplementedError("the state of this model cannot be reused")

    def release(self, slots: Sequence[int]) -> None:
        """See ModelRunner."""
        for slot in slots:
            self._states.pop(slot, None)
            self._ahead.pop(slot, None)

    def reset(self) -> None:
        """See ModelRunner."""
        self._states.clear()
        self._ahead.clear()

    def _scored(self, run: ScheduledTokens) -> torch.Tensor:
        """Return the logits of a part of a scored prompt, or of its last token alone: [num_logits, vocabulary]."""
        prompt_ids, first = run.sequence.request.prompt_ids, run.end - run.num_logits
        start, logits = self._ahead.get(run.slot, (0, torch.empty(0, 0)))
        if not run.start or run.end > start + len(logits):
            self.release([run.slot])
            self._rotary.begin(run)
            start, end = first, max(run.end, min(len(prompt_ids), first + AHEAD))
            logits = self._run(run, prompt_ids[:end], end - start)
        if run.end < len(prompt_ids):
            self._ahead[run.slot] = start, logits
        else:
            self._ahead.pop(run.slot, None)
        return logits[first - start : run.end - start]

    def _run(self, run: ScheduledTokens, token_ids: Sequence[int], num_logits: int) -> torch.Tensor:
        """Return the logits after the last `num_logits` of these tokens: [num_logits, vocabulary]."""
        options: dict[str, Any] = {"logits_to_keep": num_logits} if self._takes_logits_to_keep else {}
        state = self._states.get(run.slot)
        ids = torch.tensor([list(token_ids)], device=input_device(self._model))
        start = 0 if state is None else run.end - len(token_ids)
        positions = torch.arange(start, start + len(token_ids))[None]
        if self._takes_positions:  # a model with layers of several kinds may count its tokens by one without a cache
            options["position_ids"] = positions.to(ids.device)
        with self._adapters.rows([run.adapter]), self._rotary.of([run.slot], positions):
            out = self._model(ids, **{self._name: state}, use_cache=True, **options)
        self._states[run.slot] = out[self._name]
        return out.logits[0, -num_logits:]  # type: ignore[no-any-return]
