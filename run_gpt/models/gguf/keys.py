"""Metadata of GGUF files: each key is read, or has no effect on answers, or the file is refused."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from run_gpt.errors import ModelLoadError
from run_gpt.models.gguf.architectures import ARCHITECTURES, Architecture
from run_gpt.models.gguf.parts import GgufModel
from run_gpt.models.gguf.rotary import ROTARY_KEYS
from run_gpt.models.gguf.tokenizer import ORIGINAL
from run_gpt.models.gguf.values import shortest

READ: Mapping[str, str] = {
    "general.architecture": "the family",
    "general.alignment": "place of the weights",
    "general.sampling.temp, general.sampling.top_k, general.sampling.top_p": "sampling defaults",
    "general.sampling.min_p, general.sampling.penalty_repeat": "sampling defaults",
    "split.no, split.count, split.tensors.count": "the parts of a split file, which are read as one",
    "tokenizer.ggml.model": "kind of tokenizer: gpt2 (bytes) or llama (SentencePiece)",
    "tokenizer.ggml.pre": "splitting of text before the merges",
    "tokenizer.ggml.tokens, tokenizer.ggml.merges": "the vocabulary and its merges",
    "tokenizer.ggml.scores": "merges of SentencePiece",
    "tokenizer.ggml.token_type": "tokens that are taken whole, and those that are special",
    "tokenizer.ggml.bos_token_id, tokenizer.ggml.add_bos_token": "beginning of a prompt",
    "tokenizer.ggml.eos_token_id, tokenizer.ggml.add_eos_token": "end of an answer, and of a prompt",
    "tokenizer.ggml.eot_token_id, tokenizer.ggml.eom_token_id": "further ends of an answer",
    "tokenizer.ggml.unknown_token_id, tokenizer.ggml.padding_token_id": "these tokens",
    "tokenizer.ggml.add_space_prefix": "space before a text (SentencePiece)",
    "tokenizer.ggml.add_sep_token": "must be false",
    "tokenizer.chat_template, tokenizer.chat_template.NAME": "chat templates",
}
"""Use of each key that is read for every family."""

NO_EFFECT: Mapping[str, str] = {
    r"general\.(name|basename|finetune|version|size_label|description|author|organization|quantized_by|uuid|doi|url)"
    r"|general\.(repo_url|tags|languages|parameter_count|license(\..+)?)": "description",
    r"general\.(source|base_model|dataset)\..+": "description of where the model comes from",
    r"general\.(file_type|quantization_version)": "each tensor says its own kind",
    r"general\.sampling\.(?!(temp|top_k|top_p|min_p|penalty_repeat)$).+": "settings that RunGPT does not apply",
    r"quantize\.imatrix\..+": "record of the quantisation",
    r"mradermacher\..+": "record of the quantisation",
    r"tokenizer\.chat_templates": "names of the templates",
    r"tokenizer\.ggml\.(mask|cls|seperator)_token_id": "tokens of models that are no decoders",
    r"tokenizer\.ggml\.(fim_(pre|suf|mid|pad|rep|sep)|prefix|suffix|middle|fsep)_token_id": "tokens for gaps in code",
    r"tokenizer\.ggml\.token_type_count": "token types of models that are no decoders",
    r"tokenizer\.huggingface\.json": "second copy of the tokenizer",
}
"""Reason by pattern of a key."""

ONLY: Mapping[str, tuple[Any, ...]] = {
    "general.type": ("model",),
    "tokenizer.ggml.remove_extra_whitespaces": (False,),
    "tokenizer.ggml.suppress_tokens": ([],),
}
"""Values that a key may have."""

ONLY_OF_FAMILY: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0.0,),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "rope.scaling.finetuned": (True, False),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "ssm.dt_b_c_rms": (False,),
    "tensor_data_layout": ("Meta AI original pth",),
    "use_parallel_residual": (False,),
}
"""Values that a key of a family, without its name, may have where the family does not read it."""
_OF_ARCHITECTURE: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "bloom": {"attention.max_alibi_bias": (8.0,)},
    "falcon": {"attention.head_count_kv": (1,), "tensor_data_layout": ("jploski",)},
    "gpt2": {},
}
DERIVED = ("vocab_size", "attention.key_length", "attention.value_length", "attention.head_count_kv")
"""Keys that must agree with the shapes of the tensors, which are checked."""


def architecture_of(model: GgufModel) -> Architecture:
    """Return the model's family. Raises ModelLoadError for one that is not read from GGUF."""
    found = ARCHITECTURES.get(model.architecture)
    if found is None:
        raise ModelLoadError(
            f"{model.path} is of the architecture {model.architecture!r}, and RunGPT reads from GGUF only "
            f"{', '.join(sorted(ARCHITECTURES))}: {ORIGINAL}"
        )
    return found


def check_keys(model: GgufModel) -> None:
    """Raise ModelLoadError for the first key that is neither read nor without effect."""
    architecture = architecture_of(model)
    for key, value in model.metadata.items():
        if (allowed := _allowed(model.architecture, architecture, key)) is None:
            continue
        if not any(shortest(value) == one for one in allowed):
            raise ModelLoadError(
                f"{model.path} has {key} = {_short(value)}, which changes answers in a way that RunGPT does not apply"
                f"{f' (only {allowed[0]})' if allowed else ''}: {ORIGINAL}"
            )


def uses_of(model: GgufModel) -> Iterator[tuple[str, Any, bool, str]]:
    """Yield the keys of a file that `check_keys` takes: name, value, True if it is read, and its use or why not."""
    architecture = architecture_of(model)
    for key, value in model.metadata.items():
        reason = next((reason for pattern, reason in NO_EFFECT.items() if re.fullmatch(pattern, key)), None)
        if reason is None and _allowed(model.architecture, architecture, key) is not None:
            reason = "the value at which it has none"
        use = next((use for names, use in READ.items() if key in names.split(", ")), "")
        yield key, value, reason is None, use if reason is None else reason


def family_keys(architecture: Architecture) -> list[str]:
    """Return the keys of a family that are read, without its name."""
    keys = [*architecture.fields, *architecture.also, *(ROTARY_KEYS if architecture.rotary else ()), *DERIVED]
    return list(dict.fromkeys(keys))


def _allowed(name: str, architecture: Architecture, key: str) -> tuple[Any, ...] | None:
    """Return the values that a key may have: None for a key with any value, and none for an unknown key."""
    if key in ONLY:
        return ONLY[key]
    if key.startswith("tokenizer.chat_template.") or any(re.fullmatch(pattern, key) for pattern in NO_EFFECT):
        return None
    if any(key in names.split(", ") for names in READ):
        return None
    own = key.removeprefix(f"{name}.")
    if own == key:
        return ()
    if own in (special := _OF_ARCHITECTURE.get(name, {})):
        return special[own]
    return None if own in family_keys(architecture) else ONLY_OF_FAMILY.get(own, ())


def _short(value: Any) -> str:
    text = str(shortest(value))
    return text if len(text) <= 60 else f"{text[:60]}..."
