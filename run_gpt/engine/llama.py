"""The fast runner for Llama and its like (Llama, Mistral, Qwen 2 and 3, SmolLM): the forward pass written out.

What it saves against transformers' own: the projections of one input are one product; the prompts of a step run as one
matrix without padding; keys and values lie in one place for each slot and are never moved when rows join or leave; and
little runs between the products, which for a small model is where the time goes.
"""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy
import torch
from torch import nn
from torch.nn import functional as F

from run_gpt.engine.beams import beam_search, end_ids_of
from run_gpt.engine.packed import joined_linear
from run_gpt.engine.request import Request
from run_gpt.engine.scheduler import Chunk

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROTARY_KINDS = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies do not change with the length of the text."""
FIRST_COLUMNS = 512
"""Columns of a slot's cache at first; doubled when a row is longer."""

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def fits(model: Any) -> bool:
    """Whether this runner gives what the model itself would: a known family in plain weights on one device."""
    config = model.config
    if config.model_type not in FAMILIES or config.hidden_act != "silu":
        return False
    if config.rope_parameters.get("rope_type") not in ROTARY_KINDS or _slides(config):
        return False
    plain = all(type(m) is nn.Linear for name, m in model.named_modules() if name.endswith(("_proj", "lm_head")))
    hooked = any(hasattr(module, "_hf_hook") for module in model.modules())
    return plain and not hooked and model.lm_head.weight.is_floating_point()


def _slides(config: Any) -> bool:
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or ["sliding_attention"]
    return window is not None and window < config.max_position_embeddings and "sliding_attention" in layers


@dataclass
class _Layer:
    """The weights of one layer, those with the same input as one."""

    norm: torch.Tensor
    qkv: nn.Module
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    output: nn.Module
    mlp_norm: torch.Tensor
    gate_up: nn.Module
    down: nn.Module


class LlamaRunner:
    """A ModelRunner over a dense cache: for each layer keys and values, [slots, heads, columns, size]."""

    def __init__(self, model: Any, max_running: int):
        config = model.config
        self._model = model
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._epsilon = config.rms_norm_eps
        self._slots = max_running
        self._like = model.lm_head.weight.new_empty(0)
        self._layers = [_fused(layer) for layer in model.model.layers]
        self._head = _taken_over(model, "lm_head")
        self._columns = 0
        self._caches: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._lengths = [0] * max_running
        self.end_ids = end_ids_of(model)
        self._make_room(FIRST_COLUMNS)

    @torch.inference_mode()
    def prefill(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """See ModelRunner."""
        self._make_room(max(chunk.end for chunk in chunks))
        ends = list(accumulate(chunk.end - chunk.start for chunk in chunks))
        device = self._like.device

        def attend(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = self._caches[i]
            parts = []
            for chunk, end in zip(chunks, ends, strict=True):
                rows = slice(end - (chunk.end - chunk.start), end)
                keys[chunk.slot, :, chunk.start : chunk.end] = k[rows].transpose(0, 1)
                values[chunk.slot, :, chunk.start : chunk.end] = v[rows].transpose(0, 1)
                # Causal by the columns' numbers: a later part of a prompt sees all of the earlier ones.
                mask = None if chunk.start == 0 else _causal(chunk.start, chunk.end, device)
                out = F.scaled_dot_product_attention(
                    q[rows].transpose(0, 1)[None],
                    keys[None, chunk.slot, :, : chunk.end],
                    values[None, chunk.slot, :, : chunk.end],
                    attn_mask=mask,
                    is_causal=mask is None,
                    enable_gqa=True,
                )
                parts.append(out[0].transpose(0, 1))
            return torch.cat(parts)

        ids = torch.tensor([token for chunk in chunks for token in chunk.token_ids], device=device)
        positions = torch.cat([torch.arange(chunk.start, chunk.end, device=device) for chunk in chunks])
        hidden = self._run(ids, positions, attend)
        for chunk in chunks:
            self._lengths[chunk.slot] = chunk.end
        return self._logits(hidden[[end - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.last]])

    @torch.inference_mode()
    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> torch.Tensor:
        """See ModelRunner."""
        lengths = [self._lengths[slot] for slot in slots]
        self._make_room(max(lengths) + 1)
        device = self._like.device
        rows, columns = torch.tensor(slots, device=device), max(lengths) + 1
        positions = torch.tensor(lengths, device=device)
        mask = (torch.arange(columns, device=device) <= positions[:, None])[:, None, None]
        # Slots are given out from the lowest: those in use lie together, mostly, and their cache is read in place.
        together = list(slots) == list(range(slots[0], slots[0] + len(slots)))
        where = slice(slots[0], slots[0] + len(slots)) if together else rows

        def attend(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = self._caches[i]
            keys[rows, :, positions] = k
            values[rows, :, positions] = v
            # The heads that share keys are the queries of one head.
            out = F.scaled_dot_product_attention(
                q.view(len(slots), self._kv_heads, -1, self._size),
                keys[where, :, :columns],
                values[where, :, :columns],
                attn_mask=mask,
            )
            return out.view(len(slots), self._heads, self._size)

        hidden = self._run(torch.tensor(token_ids, device=device), positions, attend)
        for slot in slots:
            self._lengths[slot] += 1
        return self._logits(hidden)

    def fork(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See ModelRunner."""
        for source, target in pairs:
            length = self._lengths[target] = self._lengths[source]
            for cache in (tensor for pair in self._caches for tensor in pair):
                cache[target, :, :length] = cache[source, :, :length]

    def release(self, slots: Sequence[int]) -> None:
        """See ModelRunner. A cache that has grown stays so: to grow it anew costs a long prompt a second."""
        for slot in slots:
            self._lengths[slot] = 0

    def reset(self) -> None:
        """See ModelRunner."""
        self._lengths = [0] * self._slots
        self._columns, self._caches = 0, []
        self._make_room(FIRST_COLUMNS)

    def beam_search(self, request: Request, stopped: threading.Event) -> list[list[int]]:
        """See ModelRunner."""
        return beam_search(self._model, request, stopped)

    def _make_room(self, columns: int) -> None:
        """Let each slot hold so many columns."""
        if columns <= self._columns:
            return
        grown = max(columns, 2 * self._columns)
        shape = (self._slots, self._kv_heads, grown, self._size)
        old, self._columns = self._caches, grown
        self._caches = [(_lazy_zeros(shape, self._like), _lazy_zeros(shape, self._like)) for _ in self._layers]
        for new_pair, old_pair in zip(self._caches, old, strict=False):
            for new, used in zip(new_pair, old_pair, strict=True):
                for slot, length in enumerate(self._lengths):
                    new[slot, :, :length] = used[slot, :, :length]
        positions = torch.arange(grown, device=self._like.device)[None]
        self._cos, self._sin = (t[0, :, None] for t in self._model.model.rotary_emb(self._like, positions))

    def _run(self, ids: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """[tokens, hidden]: what the layers make of these tokens. `attend` gets q, k, v as [tokens, heads, size]."""
        hidden: torch.Tensor = self._model.model.embed_tokens(ids)
        cos, sin = self._cos[positions], self._sin[positions]
        split = [self._heads, self._kv_heads, self._kv_heads]
        for i, layer in enumerate(self._layers):
            q, k, v = layer.qkv(self._norm(hidden, layer.norm)).view(len(ids), -1, self._size).split(split, dim=1)
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
            attended = attend(i, _rotated(q, cos, sin), _rotated(k, cos, sin), v)
            hidden = hidden + layer.output(attended.reshape(len(ids), -1))
            gate, up = layer.gate_up(self._norm(hidden, layer.mlp_norm)).chunk(2, dim=-1)
            hidden = hidden + layer.down(F.silu(gate) * up)
        return hidden

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, vocabulary]."""
        logits: torch.Tensor = self._head(self._norm(hidden, self._model.model.norm.weight))
        return logits

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMSNorm, in fp32 whatever the weights are: in bf16 its sum of squares would lose what tells words apart."""
        return F.rms_norm(x.float(), (x.shape[-1],), eps=self._epsilon).to(x.dtype) * weight


def _lazy_zeros(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Zeros, since what is masked must still be finite; on a CPU, memory that is only taken when it is written."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    count = math.prod(shape) * like.element_size()
    zeros: torch.Tensor = torch.from_numpy(numpy.zeros(count, dtype=numpy.uint8))
    return zeros.view(like.dtype).view(*shape)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding (Su et al. 2021), with halves as in GPT-NeoX. `x`: [tokens, heads, size]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _causal(start: int, end: int, device: Any) -> torch.Tensor:
    """[end - start, end]: whether the token at a row's position sees that of a column."""
    columns = torch.arange(end, device=device)
    return columns <= columns[start:, None]


def _fused(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        norm=layer.input_layernorm.weight,
        qkv=_taken_over(attention, "q_proj", "k_proj", "v_proj"),
        q_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        k_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        output=_taken_over(attention, "o_proj"),
        mlp_norm=layer.post_attention_layernorm.weight,
        gate_up=_taken_over(mlp, "gate_proj", "up_proj"),
        down=_taken_over(mlp, "down_proj"),
    )


def _taken_over(owner: nn.Module, *names: str) -> nn.Module:
    """These layers of `owner` as one. The model's own forward pass, which beam search uses, runs on it from now on."""
    joined, places = joined_linear([owner.get_submodule(name) for name in names])  # type: ignore[misc]
    for name, place in zip(names, places, strict=True):
        setattr(owner, name, place)
    return joined
