"""Shapes of models: the numbers by which the kernels compute their layers, from transformers' configurations."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

ACTIVATIONS = {
    **{"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu", "relu2": "relu_squared"},
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_tanh"), "gelu_tanh"),
}
"""The kernels' activations, by transformers' names."""
ROTARY_KINDS = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies do not change with the length of the text."""
Order = Callable[[Any], Any]
"""Function from a configuration to the rows of a joined layer in the kernels' order, as a tensor of indices."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names of a family's modules: `layers`, `final` and `positions` in the model, all others in a layer."""

    layers: str = "model.layers"
    final: str = "model.norm"
    embedding_norm: str | None = None
    positions: str | None = None
    """Embedding of positions that is added to that of tokens."""
    rotary: str = "model.rotary_emb"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    output: str = "self_attn.o_proj"
    up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    norm: str | None = "input_layernorm"
    q_norm: str | None = None
    k_norm: str | None = None
    after_attention: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    after_mlp: str | None = None


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Numbers of a model that the kernels need."""

    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    activation: str
    """One of the values of ACTIVATIONS."""
    rotated: int
    """Rotated numbers of each head."""
    pairs: bool = False
    """True if neighbours are rotated together, and not the halves of a head."""
    parallel: bool = False
    """True if attention and MLP have the same input."""
    mean: bool = False
    """True for LayerNorm, false for RMSNorm."""
    plus_one: bool = False
    """True if a norm's weight is what it adds to 1."""
    attention_scale: float
    attention_cap: float = 0
    logit_cap: float = 0
    embedding_scale: float = 1
    residual_scale: float = 1
    logit_scale: float = 1
    clip: float = 0
    slopes: tuple[float, ...] = ()
    """Slopes of ALiBi, by head."""
    kinds: tuple[str, ...]
    """Kind of each layer's attention; layers of a kind share a rotary table."""
    windows: Mapping[str, int] = field(default_factory=dict)
    """Number of tokens that a token sees, by kind, where it is limited."""
    unrotated: frozenset[int] = frozenset()
    """Numbers of the layers without positions."""
    qkv_order: Any = None
    """Rows of a joined layer of queries, keys and values in this order; None: they are in it."""
    up_order: Any = None
    """The same of a joined layer of gate and up, whose panels of 16 rows take turns."""


def llama_shape(config: Any, **more: Any) -> Shape | None:
    """Return the shape of a configuration in Llama's words, with changes; None for an unknown activation or rotation.

    A value of None in `more` means that the configuration has something unknown.
    """
    heads = config.num_attention_heads
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    activation = ACTIVATIONS.get(str(more.pop("act", None) or config.hidden_act))
    known = all(one.get("rope_type", "default") in ROTARY_KINDS for one in nested)
    if activation is None or not known or any(value is None for value in more.values()):
        return None
    partial = nested[0].get("partial_rotary_factor", 1.0)
    return Shape(
        **{
            "hidden": config.hidden_size,
            "heads": heads,
            "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
            "head_size": size,
            "intermediate": getattr(config, "intermediate_size", 0),
            "activation": activation,
            "rotated": int(size * partial),
            "attention_scale": size**-0.5,
            **_attention(config),
            **{name: value for name, value in more.items() if value is not _DEFAULT},
        }
    )


_DEFAULT = object()


def _attention(config: Any) -> dict[str, Any]:
    """Return the kinds of the layers, and their windows."""
    count, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    kinds = tuple(getattr(config, "layer_types", None) or ("sliding_attention",) * count)
    unknown = set(kinds) - {"sliding_attention", "full_attention"}
    if unknown or len(kinds) != count:
        raise ValueError(f"layers of the kinds {sorted(unknown)}")
    if not window or window >= config.max_position_embeddings:
        return {"kinds": kinds}
    return {"kinds": kinds, "windows": {"sliding_attention": int(window)}}


def unbiased(config: Any) -> Any:
    """Return a value that leaves the shape as it is, or None where the MLP of a model like Llama has biases."""
    return None if getattr(config, "mlp_bias", False) else config.num_attention_heads


# Indices name their device, since transformers makes a model within another one's context while it loads.


def turns_of_halves(config: Any) -> Any:
    """Return the order of a layer that has all gates, then all ups: their panels of 16 rows in turn."""
    import torch

    return torch.arange(2 * config.intermediate_size, device="cpu").view(2, -1, 16).transpose(0, 1).flatten()


def _by_head(heads: int, parts: int, size: int) -> Any:
    """Return the order of a layer that has queries, keys and values of one head after the other."""
    import torch

    rows = torch.arange(heads * parts * size, device="cpu").view(heads, parts, size)
    return torch.cat([rows[:, :-2].flatten(), rows[:, -2].flatten(), rows[:, -1].flatten()])


def _bloom_slopes(heads: int) -> tuple[float, ...]:
    """Return the slopes of ALiBi (Press et al. 2021) as in BLOOM."""
    power = 2 ** math.floor(math.log2(heads))
    base, extra = 2 ** -(2 ** -(math.log2(power) - 3)), 2 ** -(2 ** -(math.log2(2 * power) - 3))
    more = min(power, heads - power)
    return (*(base**i for i in range(1, power + 1)), *(extra**i for i in range(1, 1 + 2 * more, 2)))


def _mpt_slopes(heads: int, largest: float) -> tuple[float, ...]:
    power = 2 ** math.ceil(math.log2(heads))
    slopes = [2 ** -(i * largest / power) for i in range(1, power + 1)]
    return tuple(slopes) if power == heads else tuple((slopes[1::2] + slopes[::2])[:heads])


def gpt_shape(config: Any, **more: Any) -> Shape | None:
    """Return the shape of a configuration in GPT-2's words: learned positions or rotated pairs, LayerNorm."""
    size, heads = config.n_embd // config.n_head, config.n_head
    activation = ACTIVATIONS.get(config.activation_function)
    if activation is None:
        return None
    return Shape(
        **{
            "hidden": config.n_embd,
            "heads": heads,
            "kv_heads": heads,
            "head_size": size,
            "intermediate": config.n_inner or 4 * config.n_embd,
            "activation": activation,
            "rotated": 0,
            "mean": True,
            "attention_scale": size**-0.5,
            "kinds": ("full_attention",) * config.n_layer,
            **more,
        }
    )


def codegen_shape(config: Any) -> Shape | None:
    import torch

    size, blocks = config.n_embd // config.n_head, 4
    # In each block queries, values and keys.
    rows = torch.arange(3 * config.n_embd, device="cpu").view(blocks, 3, config.n_embd // blocks)
    order = torch.cat([rows[:, part].flatten() for part in (0, 2, 1)])
    return gpt_shape(config, parallel=True, pairs=True, rotated=config.rotary_dim or size, qkv_order=order)


def gpt2_shape(config: Any) -> Shape | None:
    if config.scale_attn_by_inverse_layer_idx or config.reorder_and_upcast_attn or config.add_cross_attention:
        return None
    return gpt_shape(config, **({} if config.scale_attn_weights else {"attention_scale": 1.0}))


def neox_shape(config: Any) -> Shape | None:
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    order = _by_head(heads, 3, size)
    return llama_shape(config, mean=True, parallel=config.use_parallel_residual, qkv_order=order)


def opt_shape(config: Any) -> Shape | None:
    plain = config.do_layer_norm_before and config.word_embed_proj_dim == config.hidden_size
    plain = plain and config.layer_norm_elementwise_affine and not config._remove_final_layer_norm
    act, width = config.activation_function, config.ffn_dim
    return llama_shape(config, act=act, intermediate=width, mean=True, rotated=0) if plain else None


def bloom_shape(config: Any) -> Shape | None:
    heads, size = config.n_head, config.hidden_size // config.n_head
    if config.apply_residual_connection_post_layernorm:
        return None
    return Shape(
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=heads,
        head_size=size,
        intermediate=4 * config.hidden_size,
        activation="gelu_tanh",
        rotated=0,
        mean=True,
        attention_scale=size**-0.5,
        slopes=_bloom_slopes(heads),
        kinds=("full_attention",) * config.n_layer,
        qkv_order=_by_head(heads, 3, size),
    )


def mpt_shape(config: Any) -> Shape | None:
    attention, size = config.attn_config, config.d_model // config.n_heads
    if not attention.alibi or attention.prefix_lm or attention.qk_ln or attention.attn_type != "multihead_attention":
        return None
    return Shape(
        hidden=config.d_model,
        heads=config.n_heads,
        kv_heads=config.n_heads,
        head_size=size,
        intermediate=4 * config.d_model,
        activation="gelu",
        rotated=0,
        mean=True,
        attention_scale=attention.softmax_scale or size**-0.5,
        clip=attention.clip_qkv or 0,
        slopes=_mpt_slopes(config.n_heads, attention.alibi_bias_max),
        kinds=("full_attention",) * config.n_layers,
    )


def falcon_shape(config: Any) -> Shape | None:
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    if config.alibi:  # transformers rounds its slopes to bf16, which is no longer the same everywhere in a text
        return None
    kv_heads, order = heads, _DEFAULT
    if config.new_decoder_architecture:
        kv_heads = config.num_kv_heads
        order = _by_head(kv_heads, heads // kv_heads + 2, size)
    elif config.multi_query:
        kv_heads = 1
    else:
        order = _by_head(heads, 3, size)
    return llama_shape(
        config,
        act=config.activation,
        kv_heads=kv_heads,
        intermediate=config.ffn_hidden_size,
        mean=True,
        parallel=bool(config.parallel_attn or config.new_decoder_architecture),
        qkv_order=order,
    )


def stablelm_shape(config: Any) -> Shape | None:
    return None if config.qk_layernorm else llama_shape(config, mean=True, parallel=config.use_parallel_residual)


def gemma2_shape(config: Any) -> Shape | None:
    return llama_shape(
        config,
        act=config.hidden_activation,
        plus_one=True,
        attention_scale=config.query_pre_attn_scalar**-0.5,
        attention_cap=getattr(config, "attn_logit_softcapping", None) or 0,
        logit_cap=config.final_logit_softcapping or 0,
        embedding_scale=config.hidden_size**0.5,
    )


def smollm3_shape(config: Any) -> Shape | None:
    without = frozenset(i for i, rotates in enumerate(config.no_rope_layers) if not rotates)
    return llama_shape(config, heads=unbiased(config), unrotated=without)
