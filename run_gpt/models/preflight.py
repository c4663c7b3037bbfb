"""Check before a model is loaded: if it fits the memory, and which options would make it fit."""

from dataclasses import replace
from pathlib import Path

from run_gpt.config import ModelConfig
from run_gpt.errors import ModelLoadError
from run_gpt.models.estimate import Estimate, estimate_folder, refusal
from run_gpt.models.stored import held_precision
from run_gpt.models.target import QUANTISED, Target
from run_gpt.process.devices import free_bytes


def fit_target(target: Target, config: ModelConfig, folder: Path) -> Target:
    """Return the final target, once the files are here: on the CPU, a model that fits as a whole is not split.

    Raises ModelLoadError, with the options that would help, for a model that cannot fit. Nothing is refused if the
    files do not tell the size, or if a map offloads the excess.
    """
    estimate = estimate_folder(folder)
    precision = held_precision(folder, config.precision) or target.precision
    if estimate is not None and target.device.type == "cpu" and isinstance(target.device_map, str):
        limit = (target.max_memory or {}).get("cpu", 0)
        if estimate.weights(precision) <= limit:
            note = f"device map {target.device_map!r}: the whole model fits the CPU's memory and is there"
            return replace(target, device_map=None, max_memory=None, notes=(*target.notes, note))
    if target.precision in QUANTISED and _uses_disk(target):
        raise ModelLoadError(
            f"{target.precision} cannot be offloaded to disk, which this device map does: use --precision bf16, or "
            "leave --device-map out"
        )
    if estimate is not None and _is_single(target):
        _require_room(estimate, precision, target)
    return target


def _uses_disk(target: Target) -> bool:
    if isinstance(target.device_map, dict):
        return "disk" in target.device_map.values()
    return target.device_map is not None and target.device.type == "cpu"


def _is_single(target: Target) -> bool:
    """Return True if all of the model must fit one device."""
    return target.device_map is None or target.device_map == {"": str(target.device)}


def _require_room(estimate: Estimate, precision: str, target: Target) -> None:
    where = str(target.device)
    needed, free = estimate.least(precision), free_bytes(where)
    if needed <= free:
        return
    smaller = [name for name in ("bf16", "bit8", "bit4") if estimate.weights(name) < estimate.weights(precision)]
    if target.device.type == "mps":
        smaller = [name for name in smaller if name not in QUANTISED]
    ways = [f"--precision {name}" for name in smaller if estimate.least(name) <= free][:1]
    if target.device.type != "mps":
        ways.append("--device-map auto" if precision not in QUANTISED else "--device-map auto --precision bf16")
    raise ModelLoadError(refusal(needed, free, where, ways))
