"""Families of models that the native runner knows: names of their modules, and what their layers compute."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from run_gpt.engine.runners.native.mixtures import (
    deepseek_moe_shape,
    exaone_moe_shape,
    gpt_oss_shape,
    granite_moe_shape,
    granite_shape,
    minimax_m2_shape,
    mixtral_shape,
    olmoe_shape,
    qwen_moe_shape,
)
from run_gpt.engine.runners.native.shapes import (
    Shape,
    bloom_shape,
    codegen_shape,
    cohere_shape,
    falcon_shape,
    gemma2_shape,
    gpt2_shape,
    gptj_shape,
    llama_shape,
    mpt_shape,
    neox_shape,
    opt_shape,
    phi_shape,
    smollm3_shape,
    stablelm_shape,
    turns_of_halves,
)


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
    sinks: str | None = None
    """Parameter with each head's score that stands for no token."""
    experts: str = "mlp.experts"
    """Experts, in the layers that have some."""
    router: str = "mlp.gate"
    correction: str | None = None
    """Parameter or buffer that is added to the router's scores for the choice."""
    shared_up: tuple[str, ...] = ()
    """Layers of the MLP that all tokens share, beside experts."""
    shared_down: str = ""
    shared_gate: str | None = None

    def of_layer(self, *, experts: bool) -> "Names":
        """Return the names of a layer: `up` and `down` of one with experts are those of its shared MLP."""
        return replace(self, up=self.shared_up, down=self.shared_down) if experts else self

    @property
    def linear(self) -> tuple[tuple[str, ...], ...]:
        """Names of the linear layers of a layer; those with the same input together."""
        return tuple(names for names in (self.qkv, (self.output,), self.up, (self.down,)) if names and names[0])

    def layer_of(self, path: str) -> tuple[int, str] | None:
        """Split the path of a layer's linear module into the layer's number and a name of this object, or None."""
        match = re.fullmatch(rf"{re.escape(self.layers)}\.(\d+)\.(.+)", path)
        if match is None or match[2] not in {*self.qkv, self.output, *self.up, self.down}:
            return None
        return int(match[1]), match[2]


@dataclass(frozen=True)
class Family:
    """Family of models, by its `model_type`."""

    _names: Names
    _shape: Callable[[Any], Shape | None]
    _some: Callable[[Any], Mapping[str, Any]] | None = None
    """Function of the names that depend on the configuration."""

    def names(self, config: Any) -> Names:
        """Return the names of the modules of a model with this configuration."""
        return self._names if self._some is None else replace(self._names, **self._some(config))

    def adapts(self, path: str) -> bool:
        """Return True if the kernels add adapters to the module at this path."""
        return self._names.layer_of(path) is not None

    def shape(self, config: Any) -> Shape | None:
        """Return the shape of a configuration; None if the kernels do not have one of its parts."""
        try:
            return self._shape(config)
        except (AttributeError, KeyError, TypeError, ValueError):  # it has other fields than its family's
            return None


def family_of(config: Any) -> Family | None:
    """Return the family of a transformers configuration, or None."""
    return FAMILIES.get(config.model_type)


def shape_of(config: Any) -> Shape | None:
    """Return the shape of a transformers configuration, or None if the kernels cannot compute it."""
    family = family_of(config)
    return None if family is None else family.shape(config)


_LLAMA = Names()
_QK_NORMS: Mapping[str, Any] = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_GEMMA_2 = Names(
    after_attention="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)
_OLMO_2 = Names(
    norm=None,
    mlp_norm=None,
    after_attention="post_attention_layernorm",
    after_mlp="post_feedforward_layernorm",
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
)
_DEEPSEEK_MOE = Names(
    correction="mlp.gate.e_score_correction_bias",
    shared_up=("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
    shared_down="mlp.shared_experts.down_proj",
)
_GRANITE_MOE = Names(experts="block_sparse_moe.experts", router="block_sparse_moe.router")
_GPT_J = Names(
    layers="transformer.h",
    final="transformer.ln_f",
    qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    output="attn.out_proj",
    up=("mlp.fc_in",),
    down="mlp.fc_out",
    norm="ln_1",
    mlp_norm="ln_1",
)
_BLOOM = Names(
    layers="transformer.h",
    final="transformer.ln_f",
    embedding_norm="transformer.word_embeddings_layernorm",
    qkv=("self_attention.query_key_value",),
    output="self_attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
)


def _falcon_norms(config: Any) -> dict[str, Any]:
    two = config.new_decoder_architecture and (config.num_ln_in_parallel_attn or 2) == 2
    own = "post_attention_layernorm" if not config.parallel_attn else "input_layernorm"
    return {"norm": "ln_attn", "mlp_norm": "ln_mlp"} if two else {"mlp_norm": own}


def _granite_shared(config: Any) -> dict[str, Any]:
    if not config.shared_intermediate_size:
        return {}
    return {"shared_up": ("shared_mlp.input_linear",), "shared_down": "shared_mlp.output_linear"}


FAMILIES: Mapping[str, Family] = {
    "llama": Family(_LLAMA, llama_shape),
    "mistral": Family(_LLAMA, llama_shape),
    "qwen2": Family(_LLAMA, llama_shape),
    "qwen3": Family(replace(_LLAMA, **_QK_NORMS), llama_shape),
    "smollm3": Family(_LLAMA, smollm3_shape),
    "granite": Family(_LLAMA, granite_shape),
    "phi3": Family(
        replace(_LLAMA, qkv=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",)),
        lambda config: llama_shape(config, up_order=turns_of_halves(config.intermediate_size)),
    ),
    "stablelm": Family(
        _LLAMA,
        stablelm_shape,
        lambda config: {"mlp_norm": "input_layernorm"} if config.use_parallel_residual else {},
    ),
    "olmo2": Family(_OLMO_2, llama_shape),
    "gemma": Family(_LLAMA, lambda config: llama_shape(config, plus_one=True, embedding_scale=config.hidden_size**0.5)),
    "gemma2": Family(_GEMMA_2, gemma2_shape),
    "gemma3_text": Family(replace(_GEMMA_2, **_QK_NORMS), gemma2_shape),
    "cohere": Family(replace(_LLAMA, mlp_norm="input_layernorm"), cohere_shape),
    "starcoder2": Family(
        replace(_LLAMA, up=("mlp.c_fc",), down="mlp.c_proj"), lambda config: llama_shape(config, mean=True)
    ),
    "phi": Family(
        replace(
            _LLAMA,
            final="model.final_layernorm",
            output="self_attn.dense",
            up=("mlp.fc1",),
            down="mlp.fc2",
            mlp_norm="input_layernorm",
        ),
        phi_shape,
    ),
    "gpt_neox": Family(
        Names(
            layers="gpt_neox.layers",
            final="gpt_neox.final_layer_norm",
            rotary="gpt_neox.rotary_emb",
            qkv=("attention.query_key_value",),
            output="attention.dense",
            up=("mlp.dense_h_to_4h",),
            down="mlp.dense_4h_to_h",
        ),
        neox_shape,
    ),
    "gptj": Family(_GPT_J, gptj_shape),
    "codegen": Family(replace(_GPT_J, qkv=("attn.qkv_proj",)), codegen_shape),
    "gpt2": Family(
        replace(
            _GPT_J,
            positions="transformer.wpe",
            qkv=("attn.c_attn",),
            output="attn.c_proj",
            up=("mlp.c_fc",),
            down="mlp.c_proj",
            mlp_norm="ln_2",
        ),
        gpt2_shape,
    ),
    "opt": Family(
        Names(
            layers="model.decoder.layers",
            final="model.decoder.final_layer_norm",
            positions="model.decoder.embed_positions",
            output="self_attn.out_proj",
            up=("fc1",),
            down="fc2",
            norm="self_attn_layer_norm",
            mlp_norm="final_layer_norm",
        ),
        opt_shape,
    ),
    "bloom": Family(_BLOOM, bloom_shape),
    "mpt": Family(
        Names(
            layers="transformer.blocks",
            final="transformer.norm_f",
            qkv=("attn.Wqkv",),
            output="attn.out_proj",
            up=("ffn.up_proj",),
            down="ffn.down_proj",
            norm="norm_1",
            mlp_norm="norm_2",
        ),
        mpt_shape,
    ),
    "falcon": Family(
        replace(_BLOOM, embedding_norm=None, rotary="transformer.rotary_emb"),
        falcon_shape,
        _falcon_norms,
    ),
    "mixtral": Family(_LLAMA, mixtral_shape),
    "qwen2_moe": Family(
        replace(
            _LLAMA,
            shared_up=("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
            shared_down="mlp.shared_expert.down_proj",
            shared_gate="mlp.shared_expert_gate",
        ),
        qwen_moe_shape,
    ),
    "qwen3_moe": Family(replace(_LLAMA, **_QK_NORMS), qwen_moe_shape),
    "olmoe": Family(replace(_LLAMA, **_QK_NORMS), olmoe_shape),
    "flex_olmo": Family(_OLMO_2, olmoe_shape),
    "granitemoe": Family(_GRANITE_MOE, granite_moe_shape),
    "granitemoeshared": Family(_GRANITE_MOE, granite_moe_shape, _granite_shared),
    "glm4_moe": Family(_DEEPSEEK_MOE, deepseek_moe_shape, lambda config: _QK_NORMS if config.use_qk_norm else {}),
    "dots1": Family(replace(_DEEPSEEK_MOE, **_QK_NORMS), deepseek_moe_shape),
    "exaone_moe": Family(replace(_DEEPSEEK_MOE, **_QK_NORMS), exaone_moe_shape),
    "solar_open": Family(_DEEPSEEK_MOE, deepseek_moe_shape),
    "minimax_m2": Family(replace(_LLAMA, correction="mlp.e_score_correction_bias", **_QK_NORMS), minimax_m2_shape),
    "gpt_oss": Family(replace(_LLAMA, router="mlp.router", sinks="self_attn.sinks"), gpt_oss_shape),
}
FAMILIES = {
    **FAMILIES,
    "olmo3": FAMILIES["olmo2"],
    "moss": FAMILIES["codegen"],
    "mellum": FAMILIES["qwen3_moe"],
}
"""Families by transformers' `model_type`. A family without a row runs on the generic runner."""
