"""Shapes of models with experts, from transformers' configurations."""

from typing import Any

from run_gpt.engine.runners.native.router import Router
from run_gpt.engine.runners.native.shapes import Shape, llama_shape, turns_of_halves


def mixtral_shape(config: Any) -> Shape | None:
    """Return the shape of Mixtral."""
    return llama_shape(config, router=Router(chosen=config.num_experts_per_tok, width=config.intermediate_size))


def qwen_moe_shape(config: Any) -> Shape | None:
    """Return the shape of Qwen 2 MoE, Qwen 3 MoE and Mellum."""
    shared = getattr(config, "shared_expert_intermediate_size", 0)
    router = Router(
        chosen=config.num_experts_per_tok,
        width=config.moe_intermediate_size,
        shared=shared,
        renormalised=bool(config.norm_topk_prob),
    )
    return llama_shape(config, router=router, intermediate=max(config.intermediate_size, shared))


def olmoe_shape(config: Any) -> Shape | None:
    """Return the shape of OLMoE and FlexOlmo; None if it clips queries and keys, which it does after their norms."""
    if getattr(config, "clip_qkv", None) is not None:
        return None
    return llama_shape(
        config,
        router=Router(
            chosen=config.num_experts_per_tok,
            width=config.intermediate_size,
            renormalised=bool(config.norm_topk_prob),
        ),
    )


def granite_shape(config: Any, **more: Any) -> Shape | None:
    """Return the shape of Granite, whose factors its models with experts have, too."""
    return llama_shape(
        config,
        attention_scale=config.attention_multiplier,
        embedding_scale=config.embedding_multiplier,
        residual_scale=config.residual_multiplier,
        logit_scale=1 / config.logits_scaling,
        **more,
    )


def granite_moe_shape(config: Any) -> Shape | None:
    """Return the shape of Granite's models with experts, with a shared MLP or without."""
    shared = getattr(config, "shared_intermediate_size", 0)
    router = Router(chosen=config.num_experts_per_tok, width=config.intermediate_size, shared=shared)
    if not shared:
        return granite_shape(config, router=router)
    return granite_shape(config, router=router, intermediate=shared, up_order=turns_of_halves(shared))


def deepseek_moe_shape(config: Any, **more: Any) -> Shape | None:
    """Return the shape of models with DeepSeek V3's experts and Llama's attention."""
    counts = (getattr(config, name, None) for name in ("n_shared_experts", "num_shared_experts"))
    shared = config.moe_intermediate_size * next(count for count in counts if count is not None)
    router = Router(
        chosen=config.num_experts_per_tok,
        width=config.moe_intermediate_size,
        shared=shared,
        sigmoid=True,
        renormalised=bool(config.norm_topk_prob),
        scale=config.routed_scaling_factor,
        groups=config.n_group,
        chosen_groups=config.topk_group,
    )
    dense = getattr(config, "intermediate_size", 0)
    return llama_shape(config, router=router, intermediate=max(dense, shared), **more)


def exaone_moe_shape(config: Any) -> Shape | None:
    """Return the shape of EXAONE MoE, whose layers without a window do not rotate if others have one."""
    without = enumerate(config.layer_types if config.sliding_window is not None else ())
    unrotated = frozenset(i for i, kind in without if kind == "full_attention")
    return deepseek_moe_shape(config, unrotated=unrotated)


def minimax_m2_shape(config: Any) -> Shape | None:
    """Return the shape of MiniMax M2."""
    router = Router(chosen=config.num_experts_per_tok, width=config.intermediate_size, sigmoid=True)
    return llama_shape(config, router=router)


def gpt_oss_shape(config: Any) -> Shape | None:
    """Return the shape of gpt-oss."""
    router = Router(
        chosen=config.num_experts_per_tok,
        width=config.intermediate_size,
        alpha=config.swiglu_alpha,
        limit=config.swiglu_limit,
    )
    return llama_shape(config, router=router)
