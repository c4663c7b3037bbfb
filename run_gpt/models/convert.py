"""One-time conversion of a GGUF file to a folder that loads fast.

The folder has the configuration, tokenizer, chat template and the places of the weights. transformers reads GGUF itself
but takes 15 to 40 s, most of it for metadata and tokenizer; the folder takes less than a second. The weights stay in
the GGUF file where possible; otherwise the folder has them as safetensors.
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
# A new number makes old conversions stale: raise it when the written files change.
_FORMAT = 3


def file_identity(file: Path) -> str:
    """Return a short text that changes when another file lies at this path: a hash of path, size and time of change."""
    info = file.stat()
    text = f"{file.resolve()}|{info.st_size}|{info.st_mtime_ns}|{_FORMAT}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    """Return True if a folder was made by `convert_gguf`."""
    return (folder / _RECORD).is_file()


def converted_record(folder: Path) -> dict[str, Any]:
    """Return the record that `convert_gguf` wrote for a folder.

    It has `name`, `source` (the GGUF file), `sizes` of its weight files, `precision` in which the engine holds most of
    the file best (or null), and `precisions` of single parameters.
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
    except Exception as error:  # damage can make gguf and transformers raise any error
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
        # fp32, although the file has fewer bits: a quantised weight times its scale does not fit 16 bits without loss.
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
    """Make the tokenizer split text as SmolLM's own one does: first, each digit becomes a piece of its own.

    transformers falls back to GPT-2's splitting, and then `1  2` has other tokens than those of the model's training.
    """
    from tokenizers import pre_tokenizers

    if _metadata_text(gguf, "tokenizer.ggml.pre") == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def _metadata_text(gguf: Path, key: str) -> str | None:
    """Return a text of the file's metadata, or None. It is found by its bytes, since gguf's reader takes seconds.

    The file has the key's length (64 bits) and bytes, the kind (32 bits; 8 is text), the text's length and bytes.
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
    """Make transformers' GGUF reader report progress to us instead of drawing a bar, which no setting turns off."""
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
