"""Rotary embeddings whose frequencies depend on the length of the text: each token gets those of its own sequence.

For dynamic NTK and LongRoPE transformers chooses the frequencies by the last position of a forward pass, and keeps
them in the module. A longer sequence beside, a part of a prompt, or an earlier request would change the answer. So a
runner gives the length that counts for each token, as `model.generate` alone would have it: for a token of the prompt
the prompt's length, for a token of the answer its own place.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from run_gpt.engine.plan import ScheduledTokens
from run_gpt.engine.slots import Copy

FIXED_KINDS = ("default", "linear", "llama3", "yarn", "proportional", "axial", "mrope")
"""Kinds of rotary embeddings whose frequencies are the same for each length of the text."""

_lengths: ContextVar[torch.Tensor | None] = ContextVar("lengths", default=None)
_lock = threading.Lock()
"""Lock of all modules' frequencies: a beam search runs in a thread beside the batch."""


def switch_length(config: Any) -> int | None:
    """Return the number of tokens up to which the frequencies stay the same; None if they always do."""
    config = config.get_text_config()
    return min((_switch(config, kind) for kind in _kinds(config) if _kind(kind) not in FIXED_KINDS), default=None)


def _kinds(config: Any) -> list[dict[str, Any]]:
    """Return the parameters of the rotary embeddings: one, or one for each kind of layer."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in found.values() if isinstance(value, dict)]
    return nested or ([found] if found else [])


def _kind(parameters: dict[str, Any]) -> str:
    return str(parameters.get("rope_type") or parameters.get("type") or "default")


def _switch(config: Any, parameters: dict[str, Any]) -> int:
    name = "original_max_position_embeddings"
    own = None if _kind(parameters) == "dynamic" else parameters.get(name) or getattr(config, name, None)
    return int(own or config.max_position_embeddings)


class Lengths:
    """Lengths by which the sequences' frequencies are chosen, by slot.

    A slot's cache is that of a base: the number of tokens that the first forward pass of its sequence had. Two caches
    of the same tokens are equal if their bases have the same frequencies, since each later token has its own place.
    """

    def __init__(self, model: Any):
        config = model.config.get_text_config()
        self._switch = switch_length(config)
        self._last: int | None = None
        self._anew: int | None = None
        self._bases: dict[int, int] = {}
        if self._switch is None:
            return
        if all(_kind(kind) in (*FIXED_KINDS, "longrope") for kind in _kinds(config)):
            self._last = self._switch + 1  # two sets of frequencies, not one for each length
        # Phi-3's `generate` drops its cache when a text gets longer than this number: all tokens are run again.
        if "original_max_position_embeddings" in type(model).prepare_inputs_for_generation.__code__.co_names:
            self._anew = config.original_max_position_embeddings + 1
        for module in model.modules():
            if hasattr(module, "rope_type") and not isinstance(module.forward, _ByLength):
                module.forward = _ByLength(module)

    def begin(self, run: ScheduledTokens) -> bool:
        """Note that a run goes on in its slot. Returns False if what the slot holds has other frequencies."""
        if self._switch is None:
            return True
        base = self._base(run)
        fits = not run.start or self._bases.get(run.slot) == base
        self._bases[run.slot] = base
        return fits

    def parts(self, run: ScheduledTokens) -> list[ScheduledTokens]:
        """Return the parts of a run with drafts that must run one after the other; most often the run itself."""
        if self._anew is None or run.end <= run.prompt_length or not 0 < run.start < self._anew - 1 < run.end:
            return [run]
        before, sequence = self._anew - 1 - run.start, run.sequence
        after = min(run.num_logits, len(run.token_ids) - before)
        return [
            ScheduledTokens(sequence, run.start, run.token_ids[:before], run.num_logits - after),
            ScheduledTokens(sequence, 0, (*sequence.token_ids[: run.start], *run.token_ids), after),
        ]

    def copy(self, copies: Sequence[Copy]) -> None:
        """Note copies between slots."""
        for copy in copies:
            if copy.source in self._bases:
                self._bases[copy.target] = self._bases[copy.source]

    @contextmanager
    def of(self, slots: Sequence[int], positions: torch.Tensor) -> Iterator[None]:
        """Choose in this block the frequencies of rows in `slots` by their own lengths. `positions`: [rows, tokens]."""
        if self._switch is None:
            yield
            return
        bases = torch.tensor([self._bases.get(slot, 0) for slot in slots])[:, None]
        before = _lengths.set(torch.maximum(bases, positions + 1).clamp(self._switch, self._last))
        try:
            yield
        finally:
            _lengths.reset(before)

    def _base(self, run: ScheduledTokens) -> int:
        assert self._switch is not None
        base = run.prompt_length
        if self._anew is not None and max(base, run.end) >= self._anew:
            base = max(base, self._anew)
        return max(self._switch, base if self._last is None else min(base, self._last))


class _ByLength:
    """Forward pass of a rotary module without a state: the frequencies follow from the lengths, or from the call."""

    def __init__(self, module: Any):
        self._module = module
        self._inner: Callable[..., Any] = module.forward
        self._buffers = {name: buffer.clone() for name, buffer in module.named_buffers(recurse=False)}
        self._numbers = {name: value for name, value in vars(module).items() if type(value) in (int, float)}

    def __call__(self, x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **options: Any) -> Any:
        """Return what the module returns for these positions."""
        lengths = _lengths.get()
        with _lock:
            if lengths is None:
                self._reset()
                return self._inner(x, position_ids, *args, **options)
            mixed: Any = None
            for length in sorted(set(lengths.flatten().tolist())):
                mine = (lengths == length).to(x.device)
                self._reset()
                known = torch.where(mine, position_ids.to(x.device), 0)
                last = known.new_full((*known.shape[:-1], 1), length - 1)  # by which the module knows the length
                found = self._inner(x, torch.cat([known, last], dim=-1), *args, **options)
                mixed = _joined(found, mixed, mine)
            return mixed

    def _reset(self) -> None:
        """Set the module to its state before the first call."""
        vars(self._module).update(self._numbers)
        self._module._buffers.update({name: buffer.clone() for name, buffer in self._buffers.items()})


def _joined(found: Any, before: Any, mine: torch.Tensor) -> Any:
    """Return cosines and sines, or both as one complex tensor, without the last position: `found` for `mine`."""
    if isinstance(found, tuple):
        return tuple(_joined(part, before and before[i], mine) for i, part in enumerate(found))
    found = found[..., :-1, :]
    return found if before is None else torch.where(mine[..., None], found, before)
