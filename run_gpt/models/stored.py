"""Precision of a model's weights: the one that they have in its files, and the one that they will have in memory."""

import json
import struct
from collections import Counter
from pathlib import Path

from run_gpt.errors import ModelLoadError
from run_gpt.models.convert import converted_record, is_converted
from run_gpt.models.estimate import BYTES
from run_gpt.models.gguf_weights import gguf_types
from run_gpt.models.headers import stored_tensors
from run_gpt.models.quantised import quantisation_of

_TYPES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64"}


def held_precision(folder: Path, wanted: str) -> str | None:
    """Return the precision that most weights of a folder will have in memory, if `wanted` or the files decide it.

    `wanted`: the setting. None: it is `auto`, and the device decides; also for files that cannot be read.
    """
    try:
        found = quantisation_of(folder, json.loads((folder / "config.json").read_text()))
        if found is not None and found.keeps is not None:
            return found.keeps
        if wanted == "auto" and is_converted(folder):
            return converted_record(folder).get("precision")
    except (OSError, ValueError, AttributeError, ModelLoadError):  # the loader reports it
        return None
    return None if wanted == "auto" else wanted


def possible_precisions(folder: Path) -> tuple[str, ...]:
    """Return the precisions in which the weights of a folder can be held: fewer for a quantised checkpoint."""
    try:
        found = quantisation_of(folder, json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, AttributeError, ModelLoadError):  # the loader reports it
        return ()
    if found is None:
        return tuple(BYTES)
    return ("fp32", "fp16", "bf16") if found.keeps is None else (found.keeps,)


def stored_text(folder: Path) -> str | None:
    """Return the types of the weights in a folder's files, such as `bf16` or `Q4_K 84 %, Q6_K 16 %`.

    The shares are those of the numbers. A quantised checkpoint has its kind. None: they cannot be read.
    """
    try:
        found = quantisation_of(folder, json.loads((folder / "config.json").read_text()))
        counts = gguf_types(folder)
        for tensor in stored_tensors(folder).values() if not counts else ():
            counts[_TYPES.get(tensor.dtype, tensor.dtype)] += tensor.numbers
    except ModelLoadError as error:
        return f"not served: {error.message}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error):
        return None
    return _shares(counts) if found is None else found.text


def _shares(counts: Counter[str]) -> str | None:
    """Return names with their shares, the largest first; a single one, or one above 99.95 %, without a share."""
    total = sum(counts.values())
    shares = [(name, 100 * count / total) for name, count in counts.most_common() if count]
    if not shares:
        return None
    if shares[0][1] >= 99.95:
        return shares[0][0]
    return ", ".join(f"{name} {share:.1f} %" for name, share in shares)
