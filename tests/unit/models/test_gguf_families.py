"""Families of models in GGUF: each must answer as transformers' own model of the same weights."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import Metadata, pairs, vocabulary, write_file
from transformers import AutoConfig, AutoModelForCausalLM

from run_gpt.config import ModelConfig
from run_gpt.models import load
from run_gpt.models.gguf.architectures import ARCHITECTURES
from run_gpt.models.gguf.parts import GgufModel, read_parts
from run_gpt.models.gguf.tensors import tensor_names
from run_gpt.models.gguf.tokenizer import read_tokens

IDS = torch.arange(5, 45)[None]
SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
EXPERTS = {**SIZES, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WIDE = {**SIZES, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
GPT = {"vocab_size": 300, "n_layer": 2, "n_head": 4}


def positions(**values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, **values}}


HALF = positions(partial_rotary_factor=0.5)
LONG = positions(
    rope_type="longrope",
    short_factor=[1.0 + 0.1 * i for i in range(8)],
    long_factor=[1.5 + 0.7 * i for i in range(8)],
    original_max_position_embeddings=32,
    attention_factor=1.25,
)
GLOBAL_AND_LOCAL = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
    }
}
# By name: family in GGUF, family in transformers, configuration, and metadata that no field of the family gives.
CASES: dict[str, tuple[str, str, dict[str, Any], Metadata]] = {
    "mixtral": (
        "llama",
        "mixtral",
        {**SIZES, **positions(), "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        {"expert_count": 4, "expert_used_count": 2},
    ),
    "granite": (
        "granite",
        "granite",
        {
            **{**SIZES, **positions(), "attention_multiplier": 0.1, "embedding_multiplier": 3.0},
            **{"residual_multiplier": 0.22, "logits_scaling": 2.5},
        },
        {},
    ),
    "smollm3": ("smollm3", "smollm3", {**SIZES, **positions()}, {}),
    "qwen2": ("qwen2", "qwen2", {**SIZES, **positions()}, {}),
    "qwen3": ("qwen3", "qwen3", {**SIZES, **positions(), "head_dim": 32, "tie_word_embeddings": True}, {}),
    "qwen2moe": ("qwen2moe", "qwen2_moe", {**EXPERTS, **positions(), "shared_expert_intermediate_size": 48}, {}),
    "qwen3moe": ("qwen3moe", "qwen3_moe", {**EXPERTS, **positions(), "head_dim": 32, "norm_topk_prob": True}, {}),
    "olmo2": ("olmo2", "olmo2", {**SIZES, **positions()}, {}),
    "phi3": ("phi3", "phi3", {**SIZES, **HALF, "sliding_window": 8}, {"attention.sliding_window": 8}),
    "phi3 long": (
        "phi3",
        "phi3",
        {**SIZES, **LONG, "original_max_position_embeddings": 32},
        {
            "rope.scaling.type": "longrope",
            "rope.scaling.attn_factor": 1.25,
            "rope.scaling.original_context_length": 32,
            "attention.sliding_window": 0,
        },
    ),
    "gemma": ("gemma", "gemma", {**SIZES, **positions(), "head_dim": 32}, {}),
    "gemma2": (
        "gemma2",
        "gemma2",
        {**WIDE, **positions(), "attn_logit_softcapping": 20.0, "final_logit_softcapping": 11.0},
        {},
    ),
    "gemma3": (
        "gemma3",
        "gemma3_text",
        {**WIDE, **GLOBAL_AND_LOCAL, "num_hidden_layers": 7},
        {"rope.freq_base_swa": 20000.0, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "command-r": ("command-r", "cohere", {**SIZES, **positions(), "logit_scale": 0.3}, {"rope.scaling.type": "none"}),
    "starcoder2": ("starcoder2", "starcoder2", {**SIZES, **positions()}, {}),
    "stablelm": ("stablelm", "stablelm", {**SIZES, **HALF, "use_qkv_bias": True}, {"use_parallel_residual": True}),
    "stablelm parallel": ("stablelm", "stablelm", {**SIZES, **HALF, "use_parallel_residual": True}, {}),
    "nemotron": ("nemotron", "nemotron", {**SIZES, **HALF}, {}),
    "falcon": (
        "falcon",
        "falcon",
        {
            **{"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
            **{"bias": False, "alibi": False, **positions()},
        },
        {"attention.head_count_kv": 1, "tensor_data_layout": "jploski"},
    ),
    "gpt2": ("gpt2", "gpt2", {**GPT, "n_embd": 64, "n_positions": 128, "n_inner": 96}, {}),
    "bloom": ("bloom", "bloom", {**GPT, "hidden_size": 64}, {"context_length": 128}),
    "mamba": (
        "mamba",
        "mamba",
        {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
        {"context_length": 128, "ssm.dt_b_c_rms": False},
    ),
    "lfm2": (
        "lfm2",
        "lfm2",
        {**SIZES, **positions(), "layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
        {"attention.head_count_kv": [0, 2, 0, 2]},
    ),
}
UNDO: dict[str, Callable[[torch.Tensor, Any], list[torch.Tensor]]] = {
    "": lambda values, config: [values],
    "pairs_q": lambda values, config: [pairs(values, config.num_attention_heads)],
    "pairs_k": lambda values, config: [pairs(values, config.num_key_value_heads)],
    "by_head": lambda values, config: [values.view(config.n_head, 3, -1).transpose(0, 1).reshape(values.shape)],
    "minus_one": lambda values, config: [values + 1],
    "turned": lambda values, config: [values.T],
    "middle": lambda values, config: [values.squeeze(1)],
    "one_row": lambda values, config: [values.reshape(-1)],
    "log_negative": lambda values, config: [-values.exp()],
    "joined": lambda values, config: list(values.chunk(2, dim=1)),
}


def written(path: Path, case: str) -> Any:
    """Write the file of a case; return transformers' model."""
    name, model_type, values, further = CASES[case]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **values, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "A_log" not in parameter_name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    architecture = ARCHITECTURES[name]
    metadata: Metadata = {"general.architecture": name, **vocabulary(300), f"{name}.vocab_size": 300}
    for key, field in architecture.fields.items():
        if (value := getattr(config, field, None)) is not None:
            metadata[f"{name}.{key}"] = value
    rope = values.get("rope_parameters", {})
    rope = rope.get("full_attention", rope)
    if rope:
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        metadata[f"{name}.rope.freq_base"] = float(rope["rope_theta"])
        metadata[f"{name}.rope.dimension_count"] = int(head * rope.get("partial_rotary_factor", 1))
    metadata.update({f"{name}.{key}": value for key, value in further.items()})
    write_file(path, metadata, tensors(name, model, rope))
    return model


def tensors(name: str, model: Any, rope: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file with the model's weights."""
    found = {}
    tied = set(model.all_tied_weights_keys)
    state = model.state_dict()
    for parameter, parts in tensor_names(GgufModel(Path(), {"general.architecture": name}, {}), model).items():
        changes = ARCHITECTURES[name].changes.items()
        change = "joined" if len(parts) > 1 else next((c for p, c in changes if re.search(p, parts[0])), "")
        if parameter not in tied:
            found.update(zip(parts, UNDO[change](state[parameter].detach(), model.config), strict=True))
    for key in ("long", "short"):
        if f"{key}_factor" in rope:
            found[f"rope_factors_{key}.weight"] = torch.tensor(rope[f"{key}_factor"])
    return {key: values.contiguous() for key, values in found.items()}


def test_every_family_is_tested() -> None:
    assert {name for name, *_ in CASES.values()} == set(ARCHITECTURES)  # more of Llama: test_gguf.py


@pytest.mark.parametrize("case", CASES)
def test_a_family_answers_as_in_transformers(tmp_path: Path, case: str) -> None:
    theirs = written(tmp_path / "a.gguf", case)
    config = ModelConfig(model_path=str(tmp_path / "a.gguf"), precision="fp32", device="cpu", cache_dir=tmp_path / "c")
    ours = load(config)
    with torch.inference_mode():
        found, expected = ours.model(IDS).logits, theirs(IDS).logits
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    options = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(IDS), "eos_token_id": 2}
    assert ours.model.generate(IDS, **options).tolist() == theirs.generate(IDS, **options).tolist()
    # The tokenizer is the file's, whatever class the family has.
    direct = read_tokens(read_parts(tmp_path / "a.gguf"))
    text = "ab  12 Don't<extra1> été\n\n"
    assert ours.tokenizer(text)["input_ids"] == direct(text)["input_ids"]
