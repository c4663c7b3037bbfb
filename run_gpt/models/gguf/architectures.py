"""Families of models that are read from GGUF, and the fields of transformers' configuration for their metadata.

Each is checked against transformers' own model: another family, and a key that is not here, are refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from run_gpt.models.gguf.parts import GgufModel
from run_gpt.models.gguf.values import shortest

Values = dict[str, Any]
"""Fields of a configuration."""

_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
_RMS = {**_SIZES, "attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_LAYER_NORM = {**_SIZES, "attention.layer_norm_epsilon": "layer_norm_eps"}
_HEADS = {**_RMS, "attention.key_length": "head_dim"}
_EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_LLAMA_ROWS = {r"attn_q\.": "pairs_q", r"attn_k\.": "pairs_k"}
_GEMMA_NORMS = {r"norm\.weight": "minus_one"}


@dataclass(frozen=True)
class Architecture:
    """A family: how its metadata and tensors become transformers' ones."""

    model_type: str
    """Family in transformers."""
    fields: Mapping[str, str]
    """Field of the configuration by key; the key without the architecture's name."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields that every model of this family has, which the file does not say."""
    optional: tuple[str, ...] = ()
    """Keys of `fields` without which the family's default is right."""
    also: tuple[str, ...] = ()
    """Further keys that `adjust` reads."""
    rotary: bool = True
    """True if positions are rotary."""
    partial: bool = False
    """True if a part of each head may be rotated."""
    changes: Mapping[str, str] = field(default_factory=dict)
    """Change of a tensor's values by a pattern of its name: see `weights.CHANGES`."""
    adjust: Callable[[GgufModel, Values], None] = lambda model, values: None
    """Function that completes the fields."""


def _has(model: GgufModel, *parts: str) -> bool:
    return any(part in name for name in model.tensors for part in parts)


def _value(model: GgufModel, key: str, default: Any = None) -> Any:
    return shortest(model.metadata.get(f"{model.architecture}.{key}", default))


def _llama(model: GgufModel, values: Values) -> None:
    if _value(model, "expert_count", 0):
        values.update(model_type="mixtral", num_local_experts=_value(model, "expert_count"))
        values["num_experts_per_tok"] = _value(model, "expert_used_count")
        values["sliding_window"] = _value(model, "attention.sliding_window") or None
    elif _value(model, "attention.sliding_window", 0):
        values.update(model_type="mistral", sliding_window=_value(model, "attention.sliding_window"))
    else:
        _biases(model, values)


def _biases(model: GgufModel, values: Values) -> None:
    values["attention_bias"] = _has(model, "attn_q.bias", "attn_output.bias")
    values["mlp_bias"] = _has(model, "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias")


def _experts(model: GgufModel, values: Values) -> None:
    """Set the widths of experts, which old files do not say."""
    for key, tensor, at in (
        ("moe_intermediate_size", "blk.0.ffn_gate_exps.weight", 1),
        ("shared_expert_intermediate_size", "blk.0.ffn_gate_shexp.weight", 0),
    ):
        if key not in values and tensor in model.tensors:
            values[key] = model.tensors[tensor].shape[at]


def _phi3(model: GgufModel, values: Values) -> None:
    values["sliding_window"] = _value(model, "attention.sliding_window") or None
    original = _value(model, "rope.scaling.original_context_length")
    values["original_max_position_embeddings"] = original or values["max_position_embeddings"]


def _gemma2(model: GgufModel, values: Values) -> None:
    whole_heads = values["num_hidden_layers"] == 46  # 27B alone scales by the model's width for each head
    values["query_pre_attn_scalar"] = (
        values["hidden_size"] // values["num_attention_heads"] if whole_heads else values["head_dim"]
    )


def _gemma3(model: GgufModel, values: Values) -> None:
    whole_heads = values["num_hidden_layers"] == 62  # 27B alone
    values["query_pre_attn_scalar"] = (
        values["hidden_size"] // values["num_attention_heads"] if whole_heads else values["head_dim"]
    )
    pattern = _value(model, "attention.sliding_window_pattern", 6)
    slides = (
        [(layer + 1) % pattern != 0 for layer in range(values["num_hidden_layers"])]
        if isinstance(pattern, int)
        else pattern
    )
    values["layer_types"] = ["sliding_attention" if slide else "full_attention" for slide in slides]
    local = {"rope_type": "default", "rope_theta": _value(model, "rope.freq_base_swa", 10000.0)}
    values["rope_parameters"] = {"full_attention": values["rope_parameters"], "sliding_attention": local}


def _starcoder2(model: GgufModel, values: Values) -> None:
    values["use_bias"] = _has(model, "attn_q.bias")


def _stablelm(model: GgufModel, values: Values) -> None:
    values["use_qkv_bias"] = _has(model, "attn_q.bias")
    values["use_parallel_residual"] = not _has(model, "ffn_norm")


def _cohere(model: GgufModel, values: Values) -> None:
    values["use_qk_norm"] = _has(model, "attn_q_norm")


def _lfm2(model: GgufModel, values: Values) -> None:
    heads = _value(model, "attention.head_count_kv")
    heads = heads if isinstance(heads, list) else [heads] * values["num_hidden_layers"]
    values["num_key_value_heads"] = max(heads)
    values["layer_types"] = ["full_attention" if count else "conv" for count in heads]
    values["conv_bias"] = _has(model, "shortconv.in_proj.bias")


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(
        "llama",
        _HEADS,
        also=("attention.sliding_window", "expert_count", "expert_used_count"),
        changes=_LLAMA_ROWS,
        adjust=_llama,
    ),
    "granite": Architecture(
        "granite",
        {
            **_RMS,
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
        changes=_LLAMA_ROWS,
        adjust=_biases,
    ),
    "smollm3": Architecture("smollm3", _RMS, {"no_rope_layer_interval": 4}, changes=_LLAMA_ROWS, adjust=_biases),
    "qwen2": Architecture("qwen2", _RMS, {"use_sliding_window": False}),
    "qwen3": Architecture("qwen3", _HEADS, {"use_sliding_window": False}),
    "qwen2moe": Architecture(
        "qwen2_moe",
        {**_RMS, **_EXPERTS, "expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        {"use_sliding_window": False, "norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
        optional=("feed_forward_length", "expert_feed_forward_length", "expert_shared_feed_forward_length"),
        changes={"ffn_gate_inp_shexp": "one_row"},
        adjust=_experts,
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        {**_HEADS, **_EXPERTS},
        {"use_sliding_window": False, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
        optional=("feed_forward_length", "expert_feed_forward_length"),
        adjust=_experts,
    ),
    "olmo2": Architecture("olmo2", _RMS),
    "phi3": Architecture("phi3", _RMS, partial=True, also=("attention.sliding_window",), adjust=_phi3),
    "gemma": Architecture("gemma", _HEADS, changes=_GEMMA_NORMS),
    "gemma2": Architecture(
        "gemma2",
        {
            **_HEADS,
            "attention.sliding_window": "sliding_window",
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        optional=("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"),
        changes=_GEMMA_NORMS,
        adjust=_gemma2,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        {
            **_HEADS,
            "attention.sliding_window": "sliding_window",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        optional=("final_logit_softcapping",),
        also=("attention.sliding_window_pattern", "rope.freq_base_swa"),
        changes=_GEMMA_NORMS,
        adjust=_gemma3,
    ),
    "command-r": Architecture("cohere", {**_LAYER_NORM, "logit_scale": "logit_scale"}, adjust=_cohere),
    "starcoder2": Architecture(
        "starcoder2", {**_SIZES, "attention.layer_norm_epsilon": "norm_epsilon"}, adjust=_starcoder2
    ),
    "stablelm": Architecture("stablelm", _LAYER_NORM, partial=True, also=("use_parallel_residual",), adjust=_stablelm),
    "nemotron": Architecture(
        "nemotron",
        {**_SIZES, "attention.key_length": "head_dim", "attention.layer_norm_epsilon": "norm_eps"},
        also=("attention.layer_norm_rms_epsilon",),
        partial=True,
        changes=_GEMMA_NORMS,
    ),
    "falcon": Architecture(
        "falcon",
        {
            "context_length": "max_position_embeddings",
            "embedding_length": "hidden_size",
            "block_count": "num_hidden_layers",
            "feed_forward_length": "ffn_hidden_size",
            "attention.head_count": "num_attention_heads",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "bias": False, "alibi": False},
    ),
    "gpt2": Architecture(
        "gpt2",
        {
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        rotary=False,
        changes={r"(attn_qkv|attn_output|ffn_up|ffn_down)\.weight": "turned"},
    ),
    "bloom": Architecture(
        "bloom",
        {
            "context_length": "seq_length",
            "embedding_length": "hidden_size",
            "block_count": "n_layer",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        also=("feed_forward_length", "attention.head_count_kv"),
        rotary=False,
        changes={r"attn_qkv\.": "by_head"},
    ),
    "mamba": Architecture(
        "mamba",
        {
            "context_length": "max_position_embeddings",
            "embedding_length": "hidden_size",
            "block_count": "num_hidden_layers",
            "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
            "ssm.conv_kernel": "conv_kernel",
            "ssm.state_size": "state_size",
            "ssm.time_step_rank": "time_step_rank",
            "ssm.inner_size": "intermediate_size",
        },
        also=("feed_forward_length", "attention.head_count"),
        rotary=False,
        changes={"ssm_conv1d.weight": "middle", r"ssm_a$": "log_negative"},
    ),
    "lfm2": Architecture(
        "lfm2",
        {
            **{key: name for key, name in _SIZES.items() if key != "attention.head_count_kv"},
            "attention.layer_norm_rms_epsilon": "norm_eps",
            "shortconv.l_cache": "conv_L_cache",
        },
        {"block_auto_adjust_ff_dim": False},
        also=("attention.head_count_kv",),
        changes={r"shortconv\.conv\.weight": "middle"},
        adjust=_lfm2,
    ),
}
"""Family by the name of its architecture in GGUF."""
