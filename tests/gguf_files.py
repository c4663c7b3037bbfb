"""GGUF files of tiny random models, written as llama.cpp's converter writes them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

CONTEXT = 128
LLAMA = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
Metadata = dict[str, Any]


def llama(scale: float = 4, **config: Any) -> LlamaForCausalLM:
    """Return a random Llama in fp32 whose answers vary."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**LLAMA, **config})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model


def vocabulary(size: int) -> Metadata:
    """Return the metadata of a byte-level tokenizer with one merge and `size` tokens."""
    tokens = ["<unk>", "<s>", "</s>", "ab", *sorted(bytes_to_unicode().values())]
    kinds = [3, 3, 3, *[1] * (len(tokens) - 3)]
    tokens += [f"<extra{i}>" for i in range(size - len(tokens))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds + [4] * (size - len(kinds)),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def llama_metadata(config: Any) -> Metadata:
    """Return the metadata of a Llama of this configuration, with a tokenizer."""
    head = config.head_dim or config.hidden_size // config.num_attention_heads
    return {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.dimension_count": head,
        "llama.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "llama.vocab_size": config.vocab_size,
        **vocabulary(config.vocab_size),
    }


def pairs(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Return rows of queries or keys as a file has them: the halves of each head in pairs."""
    return values.view(heads, 2, -1, *values.shape[1:]).transpose(1, 2).reshape(values.shape)


def unpaired(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the rows again that `pairs` changed."""
    return values.view(heads, -1, 2, *values.shape[1:]).transpose(1, 2).reshape(values.shape)


def llama_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Return a Llama's weights as a file has them."""
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    found = {}
    for name, parameter in model.named_parameters():
        stem, _, leaf = name.rpartition(".")
        values = parameter.detach()
        if "q_proj" in name or "k_proj" in name:
            values = pairs(values, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        found[f"{names.get_name(stem)}.{leaf}"] = values.contiguous()
    return found


def write_file(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], kind: str = "F32") -> Path:
    """Write a file; matrices in `kind`. A kind that gguf cannot write gets random blocks, which `stored` reads."""
    writer = GGUFWriter(path, str(metadata.get("general.architecture", "llama")))
    for key, value in metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    for seed, (name, values) in enumerate(tensors.items()):
        used = _kind(name, values, kind)
        writer.add_tensor(name, _blocks(values, used, seed), raw_dtype=GGMLQuantizationType[used])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored(tensors: Mapping[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """Return the values that `write_file` stores for these tensors."""
    found = {}
    for seed, (name, values) in enumerate(tensors.items()):
        used = _kind(name, values, kind)
        data = _blocks(values, used, seed)
        found[name] = torch.from_numpy(dequantize(data, GGMLQuantizationType[used]).reshape(values.shape).copy())
    return found


def write_llama(
    path: Path,
    model: Any,
    *,
    change: Callable[[Metadata, dict[str, torch.Tensor]], object] = lambda metadata, tensors: None,
    kind: str = "F32",
) -> Path:
    """Write a Llama, after `change` of its metadata and tensors."""
    metadata, tensors = llama_metadata(model.config), llama_tensors(model)
    change(metadata, tensors)
    return write_file(path, metadata, tensors, kind)


def write_parts(folder: Path, model: Any, count: int, stem: str = "tiny") -> list[Path]:
    """Write a Llama in parts, as llama.cpp's `gguf-split` does; return their paths."""
    metadata, tensors = llama_metadata(model.config), llama_tensors(model)
    names = list(tensors)
    paths = []
    for number in range(count):
        split = {"split.no": number, "split.count": count, "split.tensors.count": len(names)}
        path = folder / f"{stem}-{number + 1:05}-of-{count:05}.gguf"
        own = {name: tensors[name] for name in names[number::count]}
        paths.append(write_file(path, {**(metadata if number == 0 else {}), **split}, own))
    return paths


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        (writer.add_uint16 if key in ("split.no", "split.count") else writer.add_uint32)(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if value:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, GGUFValueType.ARRAY, GGUFValueType.INT32)
    else:
        writer.add_string(key, value)


def _kind(name: str, values: torch.Tensor, kind: str) -> str:
    """Return the kind of a tensor in a file of this kind: embeddings are in Q8_0 beside K-quants, vectors in F32."""
    if values.dim() == 1:
        return "F32"
    return "Q8_0" if kind.endswith("_K") and name in ("token_embd.weight", "output.weight") else kind


def _blocks(values: torch.Tensor, kind: str, seed: int) -> np.ndarray:
    array = values.numpy().astype(np.float32)
    return random_blocks(kind, array.shape, seed) if kind in _RANDOM else quantize(array, GGMLQuantizationType[kind])


# Places of a block's factors in fp16, and their size. A second one scales what is taken off: it makes the mean 0.
_RANDOM = {
    "Q2_K": {80: 27, 82: 40},
    "Q3_K": {108: 3},
    "Q4_K": {0: 1, 2: 7.5},
    "Q5_K": {0: 1, 2: 15.5},
    "Q6_K": {208: 0.3},
    "IQ4_NL": {0: 3},
    "IQ4_XS": {0: 0.1},
}


def random_blocks(kind: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """Return the bytes of a weight of a kind that gguf cannot write: random but for factors that make it small."""
    generator = np.random.default_rng(seed)
    elements, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    data = generator.integers(0, 256, (*shape[:-1], shape[-1] // elements, size), dtype=np.uint8)
    for at, value in _RANDOM[kind].items():
        data[..., at : at + 2] = np.frombuffer(np.float16(value * 0.06 / 400).tobytes(), dtype=np.uint8)
    return data.reshape(*shape[:-1], -1)
