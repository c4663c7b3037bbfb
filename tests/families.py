"""Tiny checkpoints of every family, as the hub holds them: a configuration, safetensors in shards, a tokenizer."""

import copy
import functools
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import sentencepiece
import tokenizers
import torch
import transformers

VOCABULARY = 320
CONTEXT = 1024
END = "</s>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = """In a village by the sea lived a miller who spoke with nobody but his cat. Every morning the cat asked for
news, and every morning the miller said that the wind was good. What is the capital of France? User: Assistant: 0123
def add(a, b): return a + b  # the sum of two numbers, "quoted" or not; Instruct: Output: USER: ASSISTANT: system"""
_SPECIAL = ["<pad>", "<s>", END, "<|im_start|>", "<|im_end|>", "<|USER|>", "<|ASSISTANT|>", "<|SYSTEM|>", "<eoh>"]
_IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
_NEOX = {name: value for name, value in _LLAMA.items() if name != "num_key_value_heads"}
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
_FALCON = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bias": False,
    "alibi": False,
}
WINDOW = 8
"""Number of tokens in the sliding windows here: fewer than a prompt and its answer have."""


@dataclass(frozen=True)
class Family:
    """A kind of model: transformers' class, and the values of its configuration that are no defaults."""

    architecture: str
    config: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    """Chat template; None: the hub's tokenizers of this family have none."""
    runner: str = "generic"
    """Runner that `--runner auto` takes on a CPU that the native kernels support."""
    scale: float = 8
    """Factor for the initial matrices, so that answers vary."""
    precisions: tuple[str, ...] = ("bf16", "fp16", "bit8", "bit4")
    """Precisions that it is tested in besides fp32."""


FAMILIES = {
    "llama": Family("Llama", _LLAMA, CHATML, runner="native"),
    "llama-3": Family(
        "Llama",
        {
            **_LLAMA,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        CHATML,
        runner="native",
    ),
    "vicuna": Family("Llama", _LLAMA, runner="native"),
    "stablelm-tuned": Family("GPTNeoX", {**_NEOX, "use_parallel_residual": False}, runner="native"),
    "stablelm-2": Family(
        "StableLm", {**_LLAMA, "use_qkv_bias": True, "num_key_value_heads": 4}, CHATML, runner="native"
    ),
    "pythia": Family("GPTNeoX", _NEOX, runner="native"),
    "mpt-7b-chat": Family("Mpt", {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": CONTEXT}, runner="native"),
    "gpt-j": Family("GPTJ", {**_GPT2, "rotary_dim": 8}, runner="native"),
    "moss": Family("CodeGen", {**_GPT2, "rotary_dim": 8, "n_ctx": CONTEXT}, runner="native"),
    "rwkv-raven": Family(
        "Rwkv",
        {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "context_length": CONTEXT},
        runner="alone",
        scale=2,
    ),
    # transformers' class multiplies with the raw numbers of its layers' weights, which packed weights do not have.
    "mamba": Family(
        "Mamba",
        {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
        runner="alone",
        scale=2,
        precisions=("bf16", "fp16"),
    ),
    "lfm2": Family("Lfm2", {**_LLAMA, "layer_types": ["conv", "full_attention"]}, CHATML, runner="alone"),
    "falcon-7b-instruct": Family("Falcon", {**_FALCON, "multi_query": True, "parallel_attn": True}, runner="native"),
    "falcon-40b": Family("Falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}, runner="native"),
    "falcon-rw": Family(
        "Falcon", {**_FALCON, "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False}
    ),
    "bloom": Family("Bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "seq_length": CONTEXT}, runner="native"),
    "opt": Family(
        "OPT",
        {
            "hidden_size": 64,
            "word_embed_proj_dim": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
        },
        runner="native",
    ),
    "gpt2": Family("GPT2", _GPT2, runner="native"),
    "phi-2": Family("Phi", {**_LLAMA, "num_key_value_heads": 4, "partial_rotary_factor": 0.5}, runner="native"),
    "phi-3": Family("Phi3", _LLAMA, CHATML, runner="native"),
    "qwen2": Family("Qwen2", _LLAMA, CHATML, runner="native"),
    "qwen3": Family("Qwen3", {**_LLAMA, "head_dim": 32}, CHATML, runner="native"),
    "gemma-2": Family("Gemma2", {**_LLAMA, "head_dim": 16, "sliding_window": WINDOW}, CHATML, runner="native"),
    "gemma-3": Family(
        "Gemma3Text",
        {
            **_LLAMA,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        CHATML,
        runner="native",
    ),
    "mistral": Family("Mistral", {**_LLAMA, "sliding_window": None}, CHATML, runner="native"),
    "mistral-v0.1": Family("Mistral", {**_LLAMA, "sliding_window": WINDOW}, CHATML, runner="native"),
    "gemma": Family("Gemma", {**_LLAMA, "head_dim": 16}, CHATML, runner="native"),
    "granite": Family(
        "Granite",
        {
            **_LLAMA,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "logits_scaling": 4.0,
        },
        CHATML,
        runner="native",
    ),
    "olmo-2": Family("Olmo2", _LLAMA, CHATML, runner="native"),
    "command-r": Family("Cohere", {**_LLAMA, "logit_scale": 0.5}, CHATML, runner="native"),
    "starcoder-2": Family("Starcoder2", {**_LLAMA, "sliding_window": WINDOW}, runner="native"),
    "mixtral": Family("Mixtral", {**_LLAMA, "num_local_experts": 4, "sliding_window": None}, CHATML, runner="native"),
    "qwen2-moe": Family(
        "Qwen2Moe",
        {
            **_LLAMA,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
            "mlp_only_layers": [0],
        },
        CHATML,
        runner="native",
    ),
    "qwen3-moe": Family(
        "Qwen3Moe",
        {**_LLAMA, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        CHATML,
        runner="native",
    ),
    "qwen3.5": Family(
        "Qwen3_5Text",
        {
            **_LLAMA,
            "head_dim": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
        CHATML,
        runner="alone",
        scale=4,
    ),
    "llama-4": Family(
        "Llama4Text", {**_LLAMA, "head_dim": 16, "num_local_experts": 2, "intermediate_size_mlp": 128}, CHATML
    ),
    "smollm3": Family("SmolLM3", {**_LLAMA, "no_rope_layers": [1, 0]}, CHATML, scale=4, runner="native"),
    "granite-4": Family(
        "GraniteMoeHybrid",
        {
            **_LLAMA,
            "layer_types": ["attention", "attention"],
            "num_local_experts": 0,
            "shared_intermediate_size": 128,
            "position_embedding_type": "rope",
        },
        CHATML,
        runner="alone",
    ),
    "gpt-oss": Family(
        "GptOss",
        {
            **_LLAMA,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        CHATML,
        runner="native",
    ),
    "olmo-3": Family(
        "Olmo3",
        {**_LLAMA, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
        CHATML,
        runner="native",
    ),
}


def write_checkpoint(name: str, folder: Path) -> Path:
    """Write the family's checkpoint, the same at each call; returns `folder`."""
    family = FAMILIES[name]
    build(family).save_pretrained(folder, max_shard_size="150kB")
    tokenizer = copied_tokenizer()
    tokenizer.chat_template = family.chat_template
    tokenizer.save_pretrained(folder)
    if family.architecture in ("Mpt", "Falcon", "CodeGen"):
        _with_code(folder, family.architecture)
    if name == "moss":
        _as_moss_names_it(folder)
        _as_gpt2_files(folder)
    return folder


def build(family: Family) -> Any:
    """Return a model with random weights, large enough that its answers vary."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family.architecture}Config")(**{**_IDS, **copy.deepcopy(family.config)})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
            elif parameter is not embeddings:
                parameter.mul_(family.scale)
    return model


def copied_tokenizer() -> Any:
    """Return a new copy of a byte-level BPE tokenizer."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(_trained()),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token=END,
        additional_special_tokens=_SPECIAL[3:],
        model_max_length=CONTEXT,
    )


@functools.cache
def _trained() -> str:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=_SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT.splitlines(), trainer)
    return tokenizer.to_str()


def as_sentencepiece_files(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """Write the tokenizer as a SentencePiece file, without tokenizer.json, as Vicuna and the first LLaMA have it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXT.splitlines() * 3),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    tokens = {"bos_token": "<s>", "eos_token": END, "unk_token": "<unk>"}
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "legacy": False,
        "model_max_length": CONTEXT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **tokens, "model_max_length": CONTEXT}))
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _with_code(folder: Path, architecture: str) -> None:
    """Add code as the hub's checkpoints have it from before transformers had these families; it must not run here."""
    file = folder / "config.json"
    classes = {"AutoConfig": f"configuration.{architecture}Config", "AutoModelForCausalLM": "modeling.ForCausalLM"}
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": classes}))
    for name in ("configuration", "modeling", "tokenization_moss"):
        (folder / f"{name}.py").write_text("raise SystemExit('the code of the checkpoint ran')")


def _as_moss_names_it(folder: Path) -> None:
    """Change the names as in `fnlp/moss-moon-003-sft`, and add each layer's causal mask to the weights."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "model_type": "moss", "architectures": ["MossForCausalLM"]}))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard = next(iter(index["weight_map"].values()))
    weights = safetensors.torch.load_file(folder / shard)
    for layer in range(config["n_layer"]):
        name = f"transformer.h.{layer}.attn.causal_mask"
        weights[name] = torch.ones(1, 1, CONTEXT, CONTEXT, dtype=torch.bool).tril()
        index["weight_map"][name] = shard
    safetensors.torch.save_file(weights, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _as_gpt2_files(folder: Path) -> None:
    """Write the tokenizer as files like GPT-2's, without tokenizer.json, under the class name of MOSS."""
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in whole["model"]["merges"]]
    tokens = {"bos_token": "<s>", "eos_token": END, "unk_token": "<s>", "pad_token": "<pad>"}
    special = {**tokens, "additional_special_tokens": _SPECIAL[3:]}
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_moss.MossTokenizer", None]}, "model_max_length": CONTEXT}
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    for name, content in {
        "vocab.json": whole["model"]["vocab"],
        "added_tokens.json": {token["content"]: token["id"] for token in whole["added_tokens"]},
        "special_tokens_map.json": special,
        "tokenizer_config.json": {"tokenizer_class": "MossTokenizer", **settings, **special},
    }.items():
        (folder / name).write_text(json.dumps(content))
