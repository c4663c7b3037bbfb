"""Fast runner for Llama and similar models (Llama, Mistral, Qwen 2 and 3, SmolLM): the forward pass written out.

It is faster than transformers' own pass for these reasons. The projections of one input are one product. The prompts of
a step run as one matrix without padding, together with decoding sequences. Keys and values are never moved when
sequences join or leave. And little runs between the products, where a small model spends most of the time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from run_gpt.engine.plan import ScheduledTokens
from run_gpt.engine.runners.base import TransformersRunner
from run_gpt.engine.runners.blocks import BlockCache, Places
from run_gpt.engine.runners.memory import cache_bytes_per_token
from run_gpt.engine.runners.packed import joined_linear
from run_gpt.engine.slots import Copy

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROTARY_KINDS = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings of one table for all layers, with frequencies that do not change with the length of the text."""
BLOCK_ON_GPU = 64
"""Number of tokens in a block of the cache."""
BLOCK_ON_CPU = 2048
"""Large, so that a sequence is mostly in one piece; memory that is not written costs nothing on a CPU."""
CHEAP_ON_GPU = 64
"""Number of tokens that a GPU computes while it reads all weights, which every step must do: some dozens."""
CHEAP_ON_CPU = 8

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Attention from queries [tokens, heads, size] over a layer's whole cache of keys and values."""
AttendLayer = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Attention from a layer's number and the tokens' queries, keys and values; it writes the latter into the cache."""


def fits(model: Any) -> bool:
    """Return True when this runner computes the same as the model: a known family, plain weights, one device."""
    if not fits_config(model.config):
        return False
    plain = all(type(m) is nn.Linear for name, m in model.named_modules() if name.endswith(("_proj", "lm_head")))
    hooked = any(hasattr(module, "_hf_hook") for module in model.modules())
    return plain and not hooked and model.lm_head.weight.is_floating_point()


def fits_config(config: Any) -> bool:
    """Return the part of `fits` that the configuration decides, before the model is loaded."""
    own_code = getattr(config, "auto_map", None)  # code that comes with a model may be another one of the same name
    if config.model_type not in FAMILIES or config.hidden_act != "silu" or own_code:
        return False
    return config.rope_parameters.get("rope_type") in ROTARY_KINDS and not _slides(config)


def _slides(config: Any) -> bool:
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or ["sliding_attention"]
    longest = config.max_position_embeddings * max(1, config.rope_parameters.get("factor") or 1)
    return window is not None and window < longest and "sliding_attention" in layers


@dataclass
class _Layer:
    """Weights of one layer. Projections of the same input are joined."""

    norm: torch.Tensor
    qkv: nn.Module
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    output: nn.Module
    mlp_norm: torch.Tensor
    gate_up: nn.Module
    down: nn.Module
    paths: list[tuple[str, int]]
    """Paths in the model, and numbers of outputs, of the joined projections: q, k, v, gate and up."""


class LlamaRunner(TransformersRunner):
    """ModelRunner over a KV cache in blocks.

    The linear layers run over all tokens of a step. Attention runs for one sequence after the other. On a GPU, where
    each call costs more than its computation, the sequences that continue by one token run together.
    """

    reuses_prefixes = True

    def __init__(self, model: Any, max_running: int):
        super().__init__(model)
        config = model.config
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._epsilon = config.rms_norm_eps
        self._like = model.lm_head.weight.new_empty(0)
        self._layers = [_fused(layer, f"model.layers.{i}") for i, layer in enumerate(model.model.layers)]
        self._head = _taken_over(model, "lm_head")
        gpu = self._like.device.type != "cpu"
        self._together = gpu
        self.cheap_tokens = CHEAP_ON_GPU if gpu else CHEAP_ON_CPU
        self.cache_bytes_per_token = cache_bytes_per_token(model)
        block = BLOCK_ON_GPU if gpu else BLOCK_ON_CPU
        self._cache = BlockCache(len(self._layers), max_running, self._kv_heads, self._size, block, self._like)
        self._table = self._like, self._like

    @torch.inference_mode()
    def forward(self, runs: Sequence[ScheduledTokens]) -> torch.Tensor:
        """See ModelRunner."""
        hidden, ends = self._hidden(runs)
        wanted = [place for run in runs for place in range(ends[run.slot] - run.num_logits, ends[run.slot])]
        with self._adapters.rows([run.adapter for run in runs for _ in range(run.num_logits)]):
            return self._logits(hidden if wanted == list(range(len(hidden))) else hidden[wanted])

    @torch.inference_mode()
    def embed(self, runs: Sequence[ScheduledTokens]) -> torch.Tensor:
        """See ModelRunner."""
        hidden, ends = self._hidden(runs)
        states = self._norm(hidden, self._model.model.norm.weight).float()
        return torch.stack([states[ends[run.slot] - len(run.token_ids) : ends[run.slot]].sum(0) for run in runs])

    def _hidden(self, runs: Sequence[ScheduledTokens]) -> tuple[torch.Tensor, dict[int, int]]:
        """Run the layers over all tokens. Returns [tokens, hidden], and the end of each slot's tokens in it."""
        for run in runs:
            self._cache.hold(run.slot, run.end)
        device = self._like.device
        # Runs that attend together come first, so that they, and each other run, are one slice of the step's tokens.
        together = [run for run in runs if self._together and len(run.token_ids) == 1]
        alone = [run for run in runs if not (self._together and len(run.token_ids) == 1)]
        ordered = [*together, *alone]
        sizes = accumulate(len(run.token_ids) for run in ordered)
        ends = {run.slot: end for run, end in zip(ordered, sizes, strict=True)}
        ids = torch.tensor([token for run in ordered for token in run.token_ids], device=device)
        positions = torch.cat([torch.arange(run.start, run.end) for run in ordered]).to(device)
        written = torch.cat([_indices(self._cache.places(run.slot, run.end, run.start), device) for run in ordered])
        attends = [(slice(ends[run.slot] - len(run.token_ids), ends[run.slot]), self._alone(run)) for run in alone]
        if together:
            attends.append((slice(0, len(together)), self._rows_together(together)))

        def attend(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = self._cache.layers[i]
            keys[written], values[written] = k, v
            out = torch.empty_like(q)
            for tokens, attend_some in attends:
                out[tokens] = attend_some(q[tokens], keys, values)
            return out

        angles = self._angles(positions, max(run.end for run in runs))
        with self._adapters.rows([run.adapter for run in ordered for _ in run.token_ids]):
            return self._run(ids, angles, attend), ends

    def _alone(self, run: ScheduledTokens) -> Attend:
        """Return the attention of one run. It is causal by position, so a later part of a prompt sees earlier parts."""
        places = self._cache.places(run.slot, run.end)
        mask = None if run.start == 0 or len(run.token_ids) == 1 else _causal(run.start, run.end, self._like.device)

        def attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            out = F.scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                keys[places].transpose(0, 1)[None],
                values[places].transpose(0, 1)[None],
                attn_mask=mask,
                is_causal=run.start == 0,
                enable_gqa=True,
            )
            return out[0].transpose(0, 1)

        return attend

    def _rows_together(self, runs: Sequence[ScheduledTokens]) -> Attend:
        """Return the attention of sequences that continue by one token each."""
        table, mask = self._cache.table({run.slot: run.end for run in runs})

        def attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            # Query heads that share keys become several queries of one head.
            out = F.scaled_dot_product_attention(
                q.reshape(len(runs), self._kv_heads, -1, self._size),
                keys[table].transpose(1, 2),
                values[table].transpose(1, 2),
                attn_mask=mask[:, None, None],
            )
            return out.reshape(len(runs), self._heads, self._size)

        return attend

    @torch.inference_mode()
    def copy(self, copies: Sequence[Copy]) -> None:
        """See ModelRunner."""
        for copy in copies:
            self._cache.copy(copy.source, copy.target, copy.length)

    def release(self, slots: Sequence[int]) -> None:
        """See ModelRunner."""
        for slot in slots:
            self._cache.hold(slot, 0)

    def reset(self) -> None:
        """See ModelRunner."""
        self._cache.reset()

    def _angles(self, positions: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines of positions, [tokens, 1, size]. Their table grows with the longest sequence."""
        if longest > len(self._table[0]):
            known = torch.arange(max(longest, 2 * len(self._table[0])), device=self._like.device)[None]
            cos, sin = self._model.model.rotary_emb(self._like, known)
            self._table = cos[0, :, None], sin[0, :, None]
        return self._table[0][positions], self._table[1][positions]

    def _run(self, ids: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], attend: AttendLayer) -> torch.Tensor:
        """Run the layers: returns [tokens, hidden]. `attend` gets q, k and v as [tokens, heads, size]."""
        hidden: torch.Tensor = self._model.model.embed_tokens(ids)
        cos, sin = angles
        split = [self._heads, self._kv_heads, self._kv_heads]
        for i, layer in enumerate(self._layers):
            normed = self._norm(hidden, layer.norm)
            qkv = self._adapted(normed, layer.qkv(normed), layer.paths[:3])
            q, k, v = qkv.view(len(ids), -1, self._size).split(split, dim=1)  # type: ignore[no-untyped-call]
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
            attended = attend(i, _rotated(q, cos, sin), _rotated(k, cos, sin), v)
            hidden = hidden + layer.output(attended.reshape(len(ids), -1))
            normed = self._norm(hidden, layer.mlp_norm)
            gate, up = self._adapted(normed, layer.gate_up(normed), layer.paths[3:]).chunk(2, dim=-1)
            hidden = hidden + layer.down(F.silu(gate) * up)
        return hidden

    def _adapted(self, x: torch.Tensor, out: torch.Tensor, parts: Sequence[tuple[str, int]]) -> torch.Tensor:
        """Add the adapters' parts to the output of joined layers; `parts` are their paths and numbers of outputs.

        A layer that is not joined is the model's own, and its hook adds them.
        """
        if not self._adapters.active:
            return out
        split = torch.split(out, [outputs for _, outputs in parts], dim=-1)
        return torch.cat([self._adapters(path, x, one) for (path, _), one in zip(parts, split, strict=True)], dim=-1)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden states: [rows, vocabulary]."""
        logits: torch.Tensor = self._head(self._norm(hidden, self._model.model.norm.weight))
        return logits

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Apply RMSNorm, always in fp32: in bf16 the sum of squares would lose differences that distinguish words."""
        return F.rms_norm(x.float(), (x.shape[-1],), eps=self._epsilon).to(x.dtype) * weight


def _indices(places: Places, device: Any) -> torch.Tensor:
    """Return places as indices: [tokens]."""
    return torch.arange(places.start, places.stop, device=device) if isinstance(places, slice) else places


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary position embedding (Su et al. 2021), with halves as in GPT-NeoX. `x`: [tokens, heads, size]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _causal(start: int, end: int, device: Any) -> torch.Tensor:
    """Return the causal mask [end - start, end]: True where the token of a row sees the token of a column."""
    columns = torch.arange(end, device=device)
    return columns <= columns[start:, None]


def _fused(layer: Any, path: str) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    names = (*(f"self_attn.{name}_proj" for name in "qkv"), "mlp.gate_proj", "mlp.up_proj")
    paths = [(f"{path}.{name}", int(layer.get_submodule(name).out_features)) for name in names]
    return _Layer(
        norm=layer.input_layernorm.weight,
        qkv=_taken_over(attention, "q_proj", "k_proj", "v_proj"),
        q_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        k_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        output=_taken_over(attention, "o_proj"),
        mlp_norm=layer.post_attention_layernorm.weight,
        gate_up=_taken_over(mlp, "gate_proj", "up_proj"),
        down=_taken_over(mlp, "down_proj"),
        paths=paths,
    )


def _taken_over(owner: nn.Module, *names: str) -> nn.Module:
    """Join these layers of `owner` into one. From now on the model's own forward pass, for beam search, uses it too."""
    joined, places = joined_linear([owner.get_submodule(name) for name in names])  # type: ignore[misc]
    for name, place in zip(names, places, strict=True):
        setattr(owner, name, place)
    return joined
