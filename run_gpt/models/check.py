"""Exactness report of a model's files: each key of its metadata, and the tokens of a text beside tokenizer.json's."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from run_gpt.models.convert import converted_record, is_converted
from run_gpt.models.gguf.keys import uses_of
from run_gpt.models.gguf.parts import read_parts
from run_gpt.models.sampling import read_defaults

Verdict = Literal["honoured", "no effect", "same", "differs", "not compared"]

SAMPLE = (
    "It's 12,345.678 o'clock -- naïve café, ÄÖÜ, 你好世界!  Привет, مرحبا 😀\n\n"
    "\tdef add(a, b):  return a + b   # the sum\r\n1  2   3 WE'LL see_it; x != y <s>"
)
"""Text with what tokenizers treat differently: digits, contractions, spaces, scripts, line ends, code, markers."""

_CONFIG, _GENERATION, _TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
_NO_EFFECT = {
    **dict.fromkeys(("transformers_version", "_name_or_path", "_from_model_config"), "a note of the writing program"),
    **dict.fromkeys(("use_cache", "output_attentions", "output_hidden_states", "return_dict"), "the engine decides it"),
    **dict.fromkeys(("initializer_range", "initializer_factor"), "for the training"),
    **dict.fromkeys(("torch_dtype", "dtype"), "the precision is chosen by --precision"),
}
_TRAINING = ("dropout", "pdrop", "aux_loss_coef", "z_loss_coef")
_OF_CONFIG = {"architectures": "names the class", "model_type": "names the family", "auto_map": "names the own code"}
_OF_TOKENIZER = {
    **dict.fromkeys(("backend", "is_local", "local_files_only"), "a note of the writing program"),
    "tokenizer_class": "the tokens are compared with tokenizer.json's",
    "model_max_length": "the context is the model's, where the model has one",
    "clean_up_tokenization_spaces": "texts are decoded as they are",
    "padding_side": "prompts are not padded",
    "truncation_side": "prompts are not cut",
}
_DEFAULT, _NOT_APPLIED = "a default of requests", "RunGPT does not apply it"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    value: str
    verdict: Verdict
    note: str = ""
    """Reason of the verdict, or the other value."""


def keys_of(folder: Path, config: Any, tokenizer: Any, end_ids: tuple[int, ...]) -> dict[str, list[Finding]]:
    """Return the keys of each file of a model's metadata: honoured, or without effect.

    `config` and `tokenizer`: those of transformers, as loaded; `end_ids`: tokens that end an answer.
    """
    readers: dict[str, Callable[[str, Any], Finding]] = {
        _CONFIG: lambda key, value: _config_key(key, value, config),
        _GENERATION: lambda key, value: _generation_key(key, value, end_ids, read_defaults(folder)),
        _TOKENIZER: lambda key, value: _tokenizer_key(key, value, tokenizer),
    }
    found = {
        name: [read(key, value) for key, value in _json(folder / name).items()]
        for name, read in readers.items()
        if (folder / name).is_file()
    }
    if is_converted(folder):
        found["GGUF"] = list(_gguf_keys(Path(converted_record(folder)["source"])))
    return found


def compare_tokens(folder: Path, tokenizer: Any, text: str = SAMPLE) -> Finding:
    """Compare the tokens of a text, without special tokens, with those that tokenizer.json gives by itself."""
    from tokenizers import Tokenizer

    served = tokenizer(text, add_special_tokens=False)["input_ids"]
    file = folder / "tokenizer.json"
    if not file.is_file():
        return Finding("tokens", f"{len(served)} tokens", "not compared", "there is no tokenizer.json")
    expected = Tokenizer.from_file(str(file)).encode(text, add_special_tokens=False).ids
    return compared("tokens", served, expected, "tokenizer.json")


def compared(name: str, served: list[int], expected: list[int], other: str) -> Finding:
    """Return the finding for two lists of token ids. `other`: origin of the expected ones."""
    if served == expected:
        return Finding(name, f"{len(served)} tokens", "same", f"as {other}")
    place = next(i for i, (one, two) in enumerate(zip_longest(served, expected)) if one != two)
    these, those = served[place : place + 5], expected[place : place + 5]
    return Finding(name, f"{len(served)} tokens", "differs", f"from token {place}: {these}, and {other} has {those}")


def _config_key(key: str, value: Any, config: Any) -> Finding:
    text = _short(value)
    if key in _NO_EFFECT:
        return Finding(key, text, "no effect", _NO_EFFECT[key])
    if key.endswith(_TRAINING):
        return Finding(key, text, "no effect", "for the training")
    if key in _OF_CONFIG:
        return Finding(key, text, "honoured", _OF_CONFIG[key])
    declared = _declared(config) | (_declared(config.get_text_config()))
    if key in declared or key in getattr(config, "attribute_map", {}) or key == "rope_scaling":
        served = getattr(config, key, value)
        plain = isinstance(served, str | int | float | bool) and not isinstance(value, dict | list)
        return Finding(key, text, "honoured", f"served as {served}" if plain and served != value else "")
    return Finding(key, text, "no effect", f"{type(config).__name__} does not read it")


def _declared(config: Any) -> set[str]:
    """Return the fields that the class of a configuration declares, by which unknown keys are found."""
    return {name for cls in type(config).__mro__ for name in vars(cls).get("__annotations__", {})} | {
        name for cls in type(config).__mro__ for name in vars(cls) if not name.startswith("_")
    }


def _generation_key(
    key: str, value: Any, end_ids: tuple[int, ...], defaults: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> Finding:
    applied, left = defaults
    if {"stop_strings": "stop"}.get(key, key) in applied:
        return Finding(key, _short(value), "honoured", _DEFAULT)
    if key != "eos_token_id":
        why = _NOT_APPLIED if key in left else "it changes no answer"
        return Finding(key, _short(value), "no effect", _NO_EFFECT.get(key, why))
    ends = value if isinstance(value, list) else [value]
    missing = [end for end in ends if end is not None and end not in end_ids]
    return Finding(key, _short(value), "differs" if missing else "honoured", f"{missing} do not end" if missing else "")


def _tokenizer_key(key: str, value: Any, tokenizer: Any) -> Finding:
    if key in _OF_TOKENIZER:
        return Finding(key, _short(value), "no effect", _OF_TOKENIZER[key])
    known = key in getattr(tokenizer, "init_kwargs", {}) or hasattr(tokenizer, key)
    note = "" if known else f"{type(tokenizer).__name__} does not read it"
    return Finding(key, _short(value), "honoured" if known else "no effect", note)


def _gguf_keys(file: Path) -> Iterator[Finding]:
    """Yield the keys of a GGUF file's metadata, by the tables with which it was loaded."""
    for key, value, is_read, note in uses_of(read_parts(file)):
        yield Finding(key, _short(value), "honoured" if is_read else "no effect", note)


def _json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
