"""Shapes of models: the numbers by which the kernels compute their layers, from transformers' configurations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from run_gpt.engine.runners.native.router import Router

ACTIVATIONS = {
    **{"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu", "relu2": "relu_squared"},
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_tanh"), "gelu_tanh"),
}
"""The kernels' activations, by transformers' names."""
ROTARY_KINDS = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies do not change with the length of the text."""


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
    router: Router | None = None
    """Choice of experts, in the layers that have some."""


def llama_shape(config: Any, *, act: str | None = None, **more: Any) -> Shape | None:
    """Return the shape of a configuration in Llama's words, with the changes `more`.

    None for an activation, a rotation, biases of the MLP or an attention to later tokens that the kernels do not have.
    `act`: name of the activation; default: `hidden_act`.
    """
    heads = config.num_attention_heads
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    activation = ACTIVATIONS.get(act or config.hidden_act)
    known = all(one.get("rope_type", "default") in ROTARY_KINDS for one in nested)
    other = any(getattr(config, name, False) for name in ("mlp_bias", "use_bidirectional_attention"))
    if activation is None or not known or other:
        return None
    return Shape(
        **{
            "hidden": config.hidden_size,
            "heads": heads,
            "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
            "head_size": size,
            "intermediate": getattr(config, "intermediate_size", 0),
            "activation": activation,
            "rotated": int(size * nested[0].get("partial_rotary_factor", 1.0)),
            "attention_scale": size**-0.5,
            **_attention(config),
            **more,
        }
    )


def _attention(config: Any) -> dict[str, Any]:
    """Return the kinds of the layers, and their windows. Raises ValueError for another kind of attention."""
    count, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    kinds = tuple(getattr(config, "layer_types", None) or ("sliding_attention",) * count)
    unknown = set(kinds) - {"sliding_attention", "full_attention"}
    if unknown or len(kinds) != count:
        raise ValueError(f"layers of the kinds {sorted(unknown)}")
    return {"kinds": kinds, "windows": {"sliding_attention": int(window)} if window else {}}


# Indices name their device, since transformers makes a model within another one's context while it loads.


def turns_of_halves(width: int) -> Any:
    """Return the order of a layer that has all gates, then all ups, `width` each: their panels of 16 rows in turn."""
    import torch

    return torch.arange(2 * width, device="cpu").view(2, -1, 16).transpose(0, 1).flatten()


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


def gptj_shape(config: Any, **more: Any) -> Shape | None:
    """Return the shape of GPT-J; None if it rotates whole heads, by a table that transformers makes otherwise."""
    if not config.rotary_dim:
        return None
    return gpt_shape(config, parallel=True, pairs=True, rotated=config.rotary_dim, **more)


def codegen_shape(config: Any) -> Shape | None:
    """Return the shape of CodeGen and MOSS: GPT-J's, with joined queries, values and keys."""
    import torch

    blocks = 4
    # In each block queries, values and keys.
    rows = torch.arange(3 * config.n_embd, device="cpu").view(blocks, 3, config.n_embd // blocks)
    order = torch.cat([rows[:, part].flatten() for part in (0, 2, 1)])
    return gptj_shape(config, qkv_order=order)


def gpt2_shape(config: Any) -> Shape | None:
    """Return the shape of GPT-2; None for scales by layer and for attention to another model."""
    if config.scale_attn_by_inverse_layer_idx or config.reorder_and_upcast_attn or config.add_cross_attention:
        return None
    return gpt_shape(config, **({} if config.scale_attn_weights else {"attention_scale": 1.0}))


def neox_shape(config: Any) -> Shape | None:
    """Return the shape of GPT-NeoX, Pythia and the first StableLM."""
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    order = _by_head(heads, 3, size)
    return llama_shape(config, mean=True, parallel=config.use_parallel_residual, qkv_order=order)


def opt_shape(config: Any) -> Shape | None:
    """Return the shape of OPT; None for the sizes that norm after each layer or project their embedding."""
    plain = config.do_layer_norm_before and config.word_embed_proj_dim == config.hidden_size
    plain = plain and config.layer_norm_elementwise_affine and not config._remove_final_layer_norm
    act, width = config.activation_function, config.ffn_dim
    return llama_shape(config, act=act, intermediate=width, mean=True, rotated=0) if plain else None


def bloom_shape(config: Any) -> Shape | None:
    """Return the shape of BLOOM."""
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
    """Return the shape of MPT; None without ALiBi."""
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
    """Return the shape of Falcon, in any of its three architectures; None with ALiBi."""
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    if config.alibi:  # transformers rounds its slopes to bf16, which is no longer the same everywhere in a text
        return None
    kv_heads, order = heads, None
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
    """Return the shape of StableLM 2; None with norms by head."""
    return None if config.qk_layernorm else llama_shape(config, mean=True, parallel=config.use_parallel_residual)


def phi_shape(config: Any) -> Shape | None:
    """Return the shape of Phi 1 and 2; None with norms by head."""
    return None if config.qk_layernorm else llama_shape(config, mean=True, parallel=True)


def cohere_shape(config: Any) -> Shape | None:
    """Return the shape of Command R; None with norms by head."""
    if config.use_qk_norm:
        return None
    return llama_shape(config, mean=True, parallel=True, pairs=True, logit_scale=config.logit_scale)


def gemma2_shape(config: Any) -> Shape | None:
    """Return the shape of Gemma 2 and 3."""
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
    """Return the shape of SmolLM 3, some of whose layers do not rotate."""
    without = frozenset(i for i, rotates in enumerate(config.no_rope_layers) if not rotates)
    return llama_shape(config, unrotated=without)
