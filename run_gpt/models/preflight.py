"""Checks before a model is loaded: if it fits, which options would make it fit, and the folder for offloaded parts."""

import shutil
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

from run_gpt.config import ModelConfig
from run_gpt.errors import ModelLoadError
from run_gpt.models.convert import converted_record, is_converted
from run_gpt.models.estimate import Estimate, estimate_folder, refusal
from run_gpt.models.placement import QUANTISED, Placement
from run_gpt.process.devices import free_bytes


def settled(placement: Placement, config: ModelConfig, folder: Path) -> Placement:
    """Return the final placement, once the files are here: on the CPU, a model that fits as a whole is not split.

    Raises ModelLoadError, with the options that would help, for a model that cannot fit. Nothing is refused if the
    files do not tell the size, or if a map offloads the excess.
    """
    estimate = estimate_folder(folder)
    precision = placement.precision
    if config.precision == "auto" and is_converted(folder):
        precision = converted_record(folder).get("precision") or precision
    if estimate is not None and placement.device.type == "cpu" and isinstance(placement.device_map, str):
        limit = (placement.max_memory or {}).get("cpu", 0)
        if estimate.weights(precision) <= limit:
            note = f"device map {placement.device_map!r}: the whole model fits the CPU's memory and is there"
            return replace(placement, device_map=None, max_memory=None, notes=(*placement.notes, note))
    if placement.precision in QUANTISED and _uses_disk(placement):
        raise ModelLoadError(
            f"{placement.precision} cannot be offloaded to disk, which this device map does: use --precision bf16, or "
            "leave --device-map out"
        )
    if estimate is not None and _is_single(placement):
        _require_room(estimate, precision, placement)
    return placement


def offload_folder(root: Path) -> Path:
    """Create a folder for offloaded weights that must be written anew; safetensors are read where they lie."""
    root.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="offload-", dir=root))


def remove_with(model: Any, folder: Path) -> None:
    """Delete the folder now if it is empty, else together with the model or by the model's `remove_offloaded()`."""
    if any(folder.iterdir()):
        model.remove_offloaded = weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    else:
        folder.rmdir()


def _uses_disk(placement: Placement) -> bool:
    if isinstance(placement.device_map, dict):
        return "disk" in placement.device_map.values()
    return placement.device_map is not None and placement.device.type == "cpu"


def _is_single(placement: Placement) -> bool:
    """Return True if all of the model must fit one device."""
    return placement.device_map is None or placement.device_map == {"": str(placement.device)}


def _require_room(estimate: Estimate, precision: str, placement: Placement) -> None:
    where = str(placement.device)
    needed, free = estimate.least(precision), free_bytes(where)
    if needed <= free:
        return
    smaller = [name for name in ("bf16", "bit8", "bit4") if estimate.weights(name) < estimate.weights(precision)]
    if placement.device.type == "mps":
        smaller = [name for name in smaller if name not in QUANTISED]
    ways = [f"--precision {name}" for name in smaller if estimate.least(name) <= free][:1]
    if placement.device.type != "mps":
        ways.append("--device-map auto" if precision not in QUANTISED else "--device-map auto --precision bf16")
    raise ModelLoadError(refusal(needed, free, where, ways))
