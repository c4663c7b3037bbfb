"""Checks of a tensor-parallel model: the settings go together, and transformers can split the model."""

from typing import Any

import torch

from run_gpt.config import ModelConfig
from run_gpt.errors import SetupError
from run_gpt.models.target import QUANTISED


def check_parallel(config: ModelConfig) -> None:
    """Raise SetupError if this machine, or another setting, rules out as many processes as `config` wants."""
    size = config.tensor_parallel
    if size < 1:
        raise SetupError(f"tensor_parallel = {size}: it is the number of processes, at least 1")
    if config.device_map is not None or config.adapter_name_or_path is not None or config.adapters:
        raise SetupError("tensor_parallel splits each layer: leave device_map and adapters out")
    if config.precision in QUANTISED:
        raise SetupError(f"tensor_parallel splits plain weights: use fp32, fp16 or bf16, not {config.precision}")
    gpus = torch.cuda.device_count()
    kind = config.device and config.device.partition(":")[0]
    if kind not in ((None, "cuda") if gpus else (None, "cpu")) or 0 < gpus < size:
        raise SetupError(f"tensor_parallel = {size}: it takes GPUs 0 to {size - 1}, or the CPU where there is no GPU")


def check_shares(model_config: Any, size: int) -> None:
    """Raise SetupError for a model that transformers cannot split into `size` shares. `model_config`: transformers'."""
    shape = model_config.get_text_config()
    if not getattr(shape, "base_model_tp_plan", None):
        raise SetupError(
            f"tensor_parallel: transformers has no plan to split {shape.model_type}; it has one for llama, mistral, "
            "mixtral, qwen2, qwen3, gemma, gpt_neox, phi and others"
        )
    heads = [shape.num_attention_heads, getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads]
    if any(count % size for count in heads):
        raise SetupError(
            f"tensor_parallel = {size}: this model has {heads[0]} attention heads and {heads[1]} of keys and values, "
            "and both must be multiples of it"
        )
