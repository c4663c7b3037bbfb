"""One-time conversion of a model in GGUF to a folder that loads fast.

The folder has the configuration, tokenizer, chat template and the places of the weights, which stay in the GGUF files.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from run_gpt.errors import ModelLoadError, RunGPTError
from run_gpt.models.cache import ModelCache, is_disk_full
from run_gpt.models.gguf.parts import GgufModel, part_paths, read_parts
from run_gpt.models.gguf.values import sampling_of
from run_gpt.models.gguf_weights import held_precisions, write_index
from run_gpt.models.progress import OnProgress
from run_gpt.models.quiet import quiet_transformers

_RECORD = "converted.json"
# A new number makes old conversions stale: raise it when the written files change.
_FORMAT = 6


def file_identity(file: Path) -> str:
    """Return a short text that changes when another file, or part, lies at this path.

    It is a hash of path, size and time of change of each part.
    """
    parts = [(path.resolve(), path.stat()) for path in part_paths(file) if path.is_file()]
    text = "|".join(f"{path}|{info.st_size}|{info.st_mtime_ns}" for path, info in parts)
    return hashlib.sha256(f"{text}|{_FORMAT}".encode()).hexdigest()[:16]


def converted_key(name: str, identity: str) -> str:
    """Return the cache key of a converted model."""
    return f"converted/{name}-{identity}"


def catalogue_key(name: str, sha256: str) -> str:
    """Return the cache key of a catalogue entry's converted model, whose GGUF file has this hash."""
    return converted_key(name, f"{sha256[:12]}-{_FORMAT}")


def convert_gguf(
    cache: ModelCache,
    gguf: Path,
    key: str,
    *,
    name: str,
    check: Callable[[], None] = lambda: None,
    on_progress: OnProgress,
) -> Path:
    """Return the folder of the model in `gguf`, converted if it is not yet; `check` runs before a conversion.

    A part of a split model stands for all. Raises ModelLoadError if a file is not whole, or if it says something about
    the model that cannot be honoured; DownloadError on a full disk.
    """

    def fill(folder: Path) -> None:
        check()
        on_progress(f"Converting {name}", 0, gguf.stat().st_size)
        record = {"name": name, "source": str(gguf), "sizes": {}, **_convert(gguf, folder)}
        (folder / _RECORD).write_text(json.dumps(record))

    return cache.ensure(key, fill, on_progress=on_progress)


def is_converted(folder: Path) -> bool:
    """Return True if a folder was made by `convert_gguf`."""
    return (folder / _RECORD).is_file()


def converted_record(folder: Path) -> dict[str, Any]:
    """Return the record that `convert_gguf` wrote for a folder.

    It has `name`, `source` (the GGUF file), `sizes` of its weight files, `precision` in which the engine holds most of
    the file best (or null), `precisions` of single parameters, and `sampling`, the file's sampling defaults.
    """
    record: dict[str, Any] = json.loads((folder / _RECORD).read_text())
    return record


def _convert(gguf: Path, folder: Path) -> dict[str, Any]:
    """Write the model's files into `folder`; return the fields of the record that depend on the file."""
    model = read_parts(gguf)
    try:
        with quiet_transformers():
            precision, precisions = _write(model, folder)
            return {"precision": precision, "precisions": precisions, "sampling": sampling_of(model.metadata)}
    except RunGPTError:
        raise
    except Exception as error:  # metadata that do not fit together can make the libraries raise any error
        if is_disk_full(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelLoadError(
            f"cannot read {gguf} ({reason}): it is damaged, or of a kind that transformers does not know; download it "
            "again"
        ) from error


def _write(model: GgufModel, folder: Path) -> tuple[str | None, dict[str, str]]:
    """Write the model's files; return the precisions: see `held_precisions`."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from run_gpt.models.gguf.configuration import read_configuration
    from run_gpt.models.gguf.tensors import place_tensors
    from run_gpt.models.gguf.tokenizer import read_tokens

    config = read_configuration(model)
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config)
    tensors = place_tensors(model, parameters)
    tokenizer = read_tokens(model)
    tokenizer.model_max_length = getattr(config, "max_position_embeddings", tokenizer.model_max_length)
    config.architectures = [type(parameters).__name__]
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_index(folder, tensors)
    return held_precisions(tensors)
