"""Turns a GGUF file, once, into a folder that loads fast: configuration, tokenizer, chat template, place of weights.

transformers reads GGUF itself but takes 15 to 40 s, most of it for metadata and tokenizer; the folder takes under one.
The weights stay in the file, where that can be; else the folder has them as safetensors.
"""

import hashlib
import json
import mmap
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from run_gpt.errors import ModelLoadError, RunGPTError
from run_gpt.models.cache import ModelCache, is_disk_full, require_space
from run_gpt.models.gguf_weights import held_precisions, write_index
from run_gpt.models.progress import OnProgress
from run_gpt.models.quiet import quiet_transformers

_RECORD = "converted.json"
_MAGIC = b"GGUF"
# A new number makes old conversions stale: raise it when what is written changes.
_FORMAT = 3


def file_identity(file: Path) -> str:
    """A short text that changes when another file lies at this path: of path, size and time of change."""
    info = file.stat()
    text = f"{file.resolve()}|{info.st_size}|{info.st_mtime_ns}|{_FORMAT}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def converted_key(name: str, identity: str) -> str:
    """The cache's key of a converted model."""
    return f"converted/{name}-{identity}"


def catalogue_key(name: str, sha256: str) -> str:
    """The cache's key of the converted model of a catalogue entry, whose GGUF file has this hash."""
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
    """The folder of the model in `gguf`, converted unless that was done before; `check` runs before a conversion.

    Raises ModelLoadError if the file is not a whole GGUF file that transformers can read, DownloadError on a full disk.
    """

    def fill(folder: Path) -> None:
        check()
        _convert(gguf, folder, f"Converting {name}", on_progress)
        weights = {file.name: file.stat().st_size for file in folder.glob("*.safetensors")}
        precision, precisions = held_precisions(gguf, folder)
        record = {"name": name, "source": str(gguf), "sizes": weights, "precision": precision, "precisions": precisions}
        (folder / _RECORD).write_text(json.dumps(record))

    return cache.ensure(key, fill, on_progress=on_progress)


def is_converted(folder: Path) -> bool:
    """Whether a folder was made by `convert_gguf`."""
    return (folder / _RECORD).is_file()


def converted_record(folder: Path) -> dict[str, Any]:
    """What `convert_gguf` noted about a folder.

    `name`, `source` (the GGUF file), `sizes` of its weight files, `precision` in which the engine holds most of the
    file best (or null), and `precisions` of single parameters.
    """
    record: dict[str, Any] = json.loads((folder / _RECORD).read_text())
    return record


def _convert(gguf: Path, folder: Path, step: str, on_progress: OnProgress) -> None:
    try:
        with gguf.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise ModelLoadError(f"cannot read {gguf}: {error.strerror}") from error
    if magic != _MAGIC:
        raise ModelLoadError(f"{gguf} is not a GGUF file: it begins with {magic!r}")
    on_progress(step, 0, gguf.stat().st_size)
    try:
        with quiet_transformers(), _reporting(step, gguf.stat().st_size, on_progress):
            _write(gguf, folder)
    except RunGPTError:
        raise
    except Exception as error:  # gguf and transformers raise whatever the damage leads to
        if is_disk_full(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelLoadError(
            f"cannot read {gguf} ({reason}): it is damaged, cut short or of a kind that transformers does not know; "
            "download it again"
        ) from error


def _write(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    _split_digits(tokenizer, gguf)
    tokenizer.model_max_length = config.max_position_embeddings
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if write_index(gguf, folder, model):
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    else:
        # fp32, although the file holds less: a quantised weight times its scale does not fit 16 bits without a loss.
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
        require_space(folder, sum(p.numel() * p.element_size() for p in model.parameters()), gguf.name)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _split_digits(tokenizer: Any, gguf: Path) -> None:
    """Split text as SmolLM's own tokenizer does: each digit apart, before anything else.

    transformers falls back to GPT-2's splitting, and then `1  2` has other tokens than the model was trained on.
    """
    from tokenizers import pre_tokenizers

    if _metadata_text(gguf, "tokenizer.ggml.pre") == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def _metadata_text(gguf: Path, key: str) -> str | None:
    """A text of the file's metadata, None if it has none; found by its bytes, since gguf's reader takes seconds.

    In the file: the key's length (64 bits) and bytes, the kind (32 bits; 8 is text), the text's length and bytes.
    """
    wanted = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 8)
    with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(wanted)
        if start < 0:
            return None
        start += len(wanted)
        (length,) = struct.unpack_from("<Q", data, start)
        return data[start + 8 : start + 8 + length].decode(errors="replace")


@contextmanager
def _reporting(step: str, total: int, on_progress: OnProgress) -> Iterator[None]:
    """Let transformers' GGUF reader report to us instead of drawing a bar that no setting turns off."""
    from transformers import modeling_gguf_pytorch_utils as reader

    original = reader.tqdm

    def report(tensors: Iterable[Any], **_: Any) -> Iterator[Any]:
        done = 0
        for tensor in tensors:
            yield tensor
            done += int(tensor.n_bytes)
            on_progress(step, min(done, total), total)

    reader.tqdm = report
    try:
        yield
    finally:
        reader.tqdm = original
