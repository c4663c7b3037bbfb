"""Checks of a checkpoint: its files before they are loaded, and its weights afterwards. The errors name the fault."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from run_gpt.errors import ModelLoadError
from run_gpt.models.adapter_config import refuse_adapter
from run_gpt.models.context import rotary_kind, rotary_parameters
from run_gpt.models.convert import converted_record, is_converted
from run_gpt.models.files import ModelFiles
from run_gpt.models.gguf_weights import gguf_weights
from run_gpt.models.headers import INDEX, WHOLE, stored_tensors, weight_files

# transformers goes on without the second file if it cannot read it, and then other tokens end the model's answers.
_SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")
_PART = re.compile(r"(.*)-\d{5}-of-\d{5}")


def check_files(files: ModelFiles, *, allow_pickle: bool) -> dict[str, Any]:
    """Return the content of config.json. Raises ModelLoadError if a file is damaged or missing, or weights are pickled.

    Only the headers of the weights are read: they give the files' lengths and tensors.
    """
    refuse_adapter(files.folder)
    found = {name: _json(files, files.folder / name) for name in _SETTINGS if (files.folder / name).exists()}
    if gguf_weights(files.folder) is None:
        _check_weights(files, allow_pickle)
    return found.get("config.json", {})


def damaged(files: ModelFiles, file: Path, reason: str) -> ModelLoadError:
    """Return the error for a file that is damaged or incomplete."""
    return ModelLoadError(
        f"cannot read {file} ({reason}): fetch it again; what the cache holds goes with `rungpt models rm {files.name}`"
    )


def load_error(files: ModelFiles, what: str, error: Exception) -> ModelLoadError:
    """Return our error for a library's error about a model's files."""
    reason = first_line(error)
    if "trust_remote_code" in str(error):
        reason = "it comes with its own Python code, which runs only with trust_remote_code=True (--trust-remote-code)"
    elif "out of memory" in str(error).lower():
        reason += "; a smaller precision (bf16, bit8, bit4) or device_map='auto' needs less memory there"
    return ModelLoadError(f"cannot load the {what} from {files.folder}: {reason}")


def first_line(error: Exception) -> str:
    """Return the message of an error in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def check_report(files: ModelFiles, report: Mapping[str, Any]) -> None:
    """Raise ModelLoadError for weights that are missing or have another shape. `report`: transformers' loading info."""
    if missing := sorted(report["missing_keys"]):
        if (
            len(missing) == 1
            and "head" in missing[0]
            and not _json(files, files.folder / "config.json").get("architectures")
        ):
            raise ModelLoadError(
                f"{files.folder} has no output layer ({missing[0]}), and its config.json names no class: it is a "
                "classifier or an embedding model, which the class of its training in transformers runs"
            )
        raise damaged(files, files.folder, f"no weights for {missing[0]}, of {len(missing)} missing")
    for name, found, expected in report["mismatched_keys"]:
        why = f"{name} has the shape {list(found)}, and the configuration says {list(expected)}"
        raise damaged(files, files.folder, why)


def check_types(files: ModelFiles) -> None:
    """Raise ModelLoadError if weights are integers. It is for a model whose config.json names no quantisation."""
    for name, tensor in stored_tensors(files.folder).items():
        if name.endswith("weight") and tensor.dtype[0] in "IUB" and tensor.dtype != "BF16":
            raise ModelLoadError(
                f"{files.folder}: {name} has the type {tensor.dtype}, as quantised weights have, and config.json does "
                "not say how: serve the model that it was made of"
            )


def check_unused(files: ModelFiles, report: Mapping[str, Any], model: Any) -> None:
    """Raise ModelLoadError for a tensor of a layer that the model's code does not apply, so that answers would differ.

    Such are scales of quantised weights that config.json does not mention, and biases. `report`: see `check_report`.
    """
    layers = {
        path for path, module in model.named_modules() if "weight" in dict(module.named_parameters(recurse=False))
    }
    for name in sorted(report["unexpected_keys"]):
        if name.rpartition(".")[0] in layers and not _is_zero(files, name):
            raise ModelLoadError(
                f"{files.folder} holds {name}, which {type(model).__name__} does not apply with this config.json: "
                "correct it, or serve the model that this one was made of"
            )


def _is_zero(files: ModelFiles, name: str) -> bool:
    """Return True if a tensor of the files has no effect where it is added."""
    from safetensors import safe_open

    stored = stored_tensors(files.folder).get(name)
    if stored is None:
        return False
    with safe_open(stored.file, framework="pt") as opened:
        return not bool(opened.get_tensor(name).any())


def check_rotary(files: ModelFiles, model: Any) -> None:
    """Raise ModelLoadError for a scaling of the rotary embedding that transformers' class of the model ignores."""
    kinds = {rotary_kind(one) for one in rotary_parameters(model.config.get_text_config().to_dict())} - {"default"}
    own_code = not type(model).__module__.startswith(("transformers.", "run_gpt."))
    if kinds and not own_code and not any(hasattr(module, "rope_type") for module in model.modules()):
        raise ModelLoadError(
            f"{files.folder}: its config.json scales the rotary embedding ({', '.join(sorted(kinds))}), which "
            f"{type(model).__name__} does not do: remove rope_scaling there if the model was trained without it"
        )


def check_tokenizer(files: ModelFiles) -> None:
    """Raise ModelLoadError if a tokenizer cannot load because of its files. Slow: call it only after a failure."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    own_code = any(files.folder.glob("tokenization_*.py"))  # such code may use files of any name
    if not own_code and not any((files.folder / name).exists() for name in _TOKENIZERS):
        raise ModelLoadError(f"{files.folder} holds no tokenizer: there is no {', '.join(_TOKENIZERS)}")
    if (file := files.folder / "tokenizer.json").exists():
        try:
            Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises Exception itself
            raise damaged(files, file, first_line(error)) from error
    elif (file := files.folder / "tokenizer.model").exists():
        try:
            SentencePieceProcessor(model_file=str(file))
        except (OSError, RuntimeError) as error:
            raise damaged(files, file, "it is not a SentencePiece model") from error


def _check_weights(files: ModelFiles, allow_pickle: bool) -> None:
    weights, others = _safetensors(files)
    pickled = sorted(files.folder.glob("*.bin"))
    if not weights and pickled and not allow_pickle:
        raise ModelLoadError(
            f"{files.folder} has only pickled weights ({pickled[0].name}), which can run any code when loaded: if you "
            "trust them, set allow_pickle=True (--allow-pickle)"
        )
    if not weights and not pickled and others:
        raise ModelLoadError(
            f"{files.folder} has its weights in {others[0].name} only, another layout than transformers': fetch "
            f"{WHOLE}, or the parts and {INDEX}"
        )
    if not weights and not pickled:
        raise ModelLoadError(f"{files.folder} holds no weights: there is no .safetensors file")
    if is_converted(files.folder):
        for name, size in converted_record(files.folder)["sizes"].items():
            if not (files.folder / name).is_file() or (files.folder / name).stat().st_size != size:
                raise damaged(files, files.folder / name, "it is cut short or gone")
    held = {file.name: _tensors(files, file) for file in weights}
    for index in _indices(files, weights or pickled):
        _check_index(files, index, held if weights else {file.name: None for file in pickled})


def _safetensors(files: ModelFiles) -> tuple[list[Path], list[Path]]:
    """Return the files that are loaded, or parts without an index, and all others, such as second copies."""
    found = sorted(files.folder.glob("*.safetensors"))
    try:
        named = set(weight_files(files.folder))
    except (OSError, ValueError, LookupError, AttributeError, TypeError):  # an index, which _check_index reports
        named = set(found)
    weights = [file for file in found if file in named or (not named and _PART.fullmatch(file.stem))]
    return weights, [file for file in found if file not in weights]


def _tensors(files: ModelFiles, file: Path) -> set[str]:
    """Return the names of the tensors in a file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return set(opened.keys())
    except (SafetensorError, OSError) as error:
        raise damaged(files, file, first_line(error)) from error


def _indices(files: ModelFiles, weights: list[Path]) -> list[Path]:
    """Return the index files, which say which file holds each part of the weights."""
    parts = {match[1] + file.suffix for file in weights if (match := _PART.fullmatch(file.stem))}
    whole = {file.name for file in weights}
    names = {f"{name}.index.json" for name in parts - whole}
    if WHOLE not in whole and (files.folder / INDEX).is_file():  # then its files may have any names
        names.add(INDEX)
    indices = [files.folder / name for name in sorted(names)]
    for index in indices:
        if not index.exists():
            raise damaged(files, index, "it is missing, though the weights are in parts")
    return indices


def _check_index(files: ModelFiles, index: Path, held: Mapping[str, set[str] | None]) -> None:
    """Raise ModelLoadError if the index does not fit the files. `held`: tensors by file; None: not known."""
    weight_map = _json(files, index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise damaged(files, index, "it does not say which file holds which weight")
    for tensor, name in weight_map.items():
        if name not in held:
            raise damaged(files, files.folder / name, f"it is missing, and {index.name} names it")
        tensors = held[name]
        if tensors is not None and tensor not in tensors:
            raise damaged(files, files.folder / name, f"it lacks {tensor}, which {index.name} says that it holds")


def _json(files: ModelFiles, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(files, file, first_line(error)) from error
    if not isinstance(found, dict):
        raise damaged(files, file, "it is not a JSON object")
    return found
