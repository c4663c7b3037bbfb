"""Write random weights in bf16, with a known model's shape, into a folder, in the hub's file format.

They measure speed and memory of a size that cannot be fetched. The tokenizer is the default model's.

    python scripts/random_model.py llama-3.2-1b FOLDER
    python scripts/benchmark.py FOLDER --precision bf16,bit8,bit4 --generate bf16 --data none
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from run_gpt.config import DEFAULT_MODEL, ModelConfig

_SMALL = {"vocab_size": 50_304, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_GROUPED = {"num_key_value_heads": 4, "intermediate_size": 2048}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "gemma-3-270m": {
        "model_type": "gemma3_text",
        "vocab_size": 262_144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "sliding_window": 512,
        "max_position_embeddings": 32_768,
    },
    "pythia-160m": {
        "model_type": "gpt_neox",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "gpt-j-160m": {"model_type": "gptj", "n_embd": 768, "n_layer": 12, "n_head": 12, "rotary_dim": 64},
    "mpt-125m": {"model_type": "mpt", "d_model": 768, "n_layers": 12, "n_heads": 12},
    "mixtral-300m": {
        "model_type": "mixtral",
        "vocab_size": 49_152,
        "hidden_size": 768,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "num_local_experts": 8,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    "opt-125m": {"model_type": "opt"},
    "gpt2": {"model_type": "gpt2"},
    "bloom-125m": {"model_type": "bloom", "vocab_size": 50_304, "hidden_size": 768, "n_layer": 12, "n_head": 12},
    "falcon-125m": {"model_type": "falcon", **_SMALL},
    "falcon-rw-125m": {
        "model_type": "falcon",
        **_SMALL,
        "alibi": True,
        "bias": True,
        "multi_query": False,
        "parallel_attn": False,
    },
    "stablelm-2-160m": {"model_type": "stablelm", **_SMALL, "intermediate_size": 2048},
    "phi-3-160m": {"model_type": "phi3", **_SMALL, "intermediate_size": 2048, "pad_token_id": 0},
    "cohere-2-160m": {"model_type": "cohere2", **_SMALL, **_GROUPED},
    "glm-4-160m": {"model_type": "glm4", **_SMALL, **_GROUPED, "head_dim": 64, "pad_token_id": 0},
    "mamba-130m": {"model_type": "mamba", "vocab_size": 50_304, "hidden_size": 768, "num_hidden_layers": 24},
}


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path, help="must not be there yet")
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} is there already: name another")

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from run_gpt.models import fetch

    shape = {"model_type": "llama", **SHAPES[options.shape]}
    config = AutoConfig.for_model(**shape, bos_token_id=1, eos_token_id=2, dtype="bfloat16")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(options.folder, max_shard_size="600MB")
    for file in fetch(ModelConfig(model_name=DEFAULT_MODEL)).folder.glob("*token*"):
        shutil.copy(file, options.folder)


if __name__ == "__main__":
    main()
