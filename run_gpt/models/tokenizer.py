"""Tokenizer of a model: it gives the ids of tokenizer.json for any class that tokenizer_config.json names.

transformers lets some classes build the tokenizer anew from the file's vocabulary, with the normaliser, the splitting
and the special tokens that the class had in its first model. Other ids than the file's are then served without a word.
"""

import json
from pathlib import Path
from typing import Any

from run_gpt.errors import InvalidRequest
from run_gpt.models.checks import check_tokenizer, first_line, load_error
from run_gpt.models.files import ModelFiles

_PARTS = ("normalizer", "pre_tokenizer", "model", "decoder")
_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized")


def read_tokenizer(files: ModelFiles, *, trust_remote_code: bool) -> Any:
    """Return transformers' tokenizer. Raises ModelLoadError.

    A tokenizer without a tokenizer.json, or with its own Python code, is as its class makes it.
    """
    from transformers import AutoTokenizer

    file = files.folder / "tokenizer.json"
    bound = file.is_file() and not _has_own_code(files.folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            files.folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:
        if "trust_remote_code" not in str(error):
            check_tokenizer(files)
            if bound:  # the class that is named cannot take this file
                return _from_file(files, None)
        raise load_error(files, "tokenizer", error) from error
    if not bound or type(tokenizer).__name__ == "MistralCommonBackend" or _is_as_in(file, tokenizer):
        return tokenizer
    return _from_file(files, tokenizer)


def encode(tokenizer: Any, text: str, param: str, *, special: bool = True) -> list[int]:
    """Return the token ids of a text, with the special tokens around a text if `special`.

    Raises InvalidRequest, which names the field `param`, for a text that the tokenizer refuses.
    """
    options: dict[str, Any] = {} if special else {"add_special_tokens": False}
    try:
        ids = tokenizer(text, return_attention_mask=False, **options)["input_ids"]
    except Exception as error:  # tokenizers raises Exception itself, such as for a word that is not in its vocabulary
        raise InvalidRequest(f"{param}: the tokenizer refuses it: {first_line(error)}", param=param) from error
    return [int(token_id) for token_id in ids]


def _has_own_code(folder: Path) -> bool:
    """Return True if the tokenizer's class comes with the checkpoint."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    named = settings.get("auto_map") or {}
    return bool(named if isinstance(named, list) else named.get("AutoTokenizer"))


def _is_as_in(file: Path, tokenizer: Any) -> bool:
    """Return True if a tokenizer gives the ids and texts of its tokenizer.json."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if type(tokenizer) is PreTrainedTokenizerFast:  # it reads the file itself
        return True
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    own, right = json.loads(backend.to_str()), json.loads(Tokenizer.from_file(str(file)).to_str())
    added = {token["id"]: token for token in own["added_tokens"]}
    return (
        all(own[part] == right[part] for part in _PARTS)
        and _surroundings(own) == _surroundings(right)
        and all(_flags(token) == _flags(added.get(token["id"], {})) for token in right["added_tokens"])
    )


def _flags(token: dict[str, Any]) -> list[Any]:
    return [token.get(name) for name in _FLAGS]


def _surroundings(settings: dict[str, Any]) -> Any:
    """Return the post-processor, None for one that adds no token."""
    last = settings["post_processor"]
    adds_none = not last or last["type"] == "ByteLevel" or last.get("special_tokens") == {}
    return None if adds_none else last


def _from_file(files: ModelFiles, replaced: Any) -> Any:
    """Return the tokenizer of tokenizer.json, with the special tokens that its settings or `replaced` name."""
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(files.folder, local_files_only=True)
    except Exception as error:
        raise load_error(files, "tokenizer", error) from error
    named = getattr(replaced, "special_tokens_map", {})
    known, vocabulary = tokenizer.special_tokens_map, tokenizer.get_vocab()
    more = {key: str(token) for key, token in named.items() if key not in known and str(token) in vocabulary}
    if more:
        tokenizer.add_special_tokens(more)
    return tokenizer
