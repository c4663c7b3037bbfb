"""Split of a model over devices: the user's device map and memory limits, in the form that accelerate takes."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from run_gpt.config import DEVICE_MAPS, ModelConfig
from run_gpt.errors import ModelLoadError
from run_gpt.models.sizes import parse_size
from run_gpt.process.devices import free_bytes

DeviceMap = dict[str, Any] | str | None
Memory = dict[int | str, int] | None

FREE_SHARE = 0.8
"""Share of the CPU's free memory for the weights that stay there when the rest goes to disk. The remaining memory is
for the KV cache and for the layers, which are read from disk one at a time to be computed."""


def choose_device_map(config: ModelConfig, device: torch.device) -> tuple[DeviceMap, Memory]:
    """Return accelerate's device map (None: the whole model on the CPU, without accelerate) and its memory limits.

    Raises ModelLoadError for an unknown map, for GPUs that this machine lacks, and for limits that the map does not
    use.
    """
    wish = config.device_map
    limits = parse_max_memory(config.max_memory)
    if limits is not None:
        require_gpus([part for part in limits if isinstance(part, int)], "max_memory")
        if isinstance(wish, dict) or wish in (None, "single"):
            raise ModelLoadError(
                "max_memory bounds the maps that are made by memory: add device_map='auto' (--device-map auto), "
                "balanced, sequential or a list of GPUs"
            )
    if isinstance(wish, list):
        require_gpus(wish, f"device_map {wish}")
        return "balanced", _of_gpus(wish, limits)
    if isinstance(wish, dict):
        return _checked(wish, device), None
    if wish is not None and wish not in DEVICE_MAPS:
        raise ModelLoadError(
            f"device_map {wish!r} is not one of {', '.join(DEVICE_MAPS)}; a list of GPU numbers or a dict works too"
        )
    if wish in (None, "single"):
        return _whole(device), None
    if device.type == "mps":
        raise ModelLoadError(f"device_map {wish!r} splits over GPUs, the CPU and disk, not mps: leave it out")
    if device.type == "cpu":  # the user does not want the GPUs, if there are any
        limit = (limits or {}).get("cpu", int(FREE_SHARE * free_bytes("cpu")))
        return wish, {"cpu": limit}
    return wish, limits


def parse_max_memory(limits: Mapping[Any, Any] | None) -> Memory:
    """Return bytes by GPU number or `cpu`. Raises ModelLoadError for another key, or a value that is not a size."""
    if limits is None:
        return None
    parsed: dict[int | str, int] = {}
    for key, value in limits.items():
        part = int(key) if str(key).isdecimal() else str(key)
        if isinstance(part, str) and part != "cpu":
            raise ModelLoadError(f"max_memory: {key!r} is neither cpu nor the number of a GPU, such as cpu=8GB,0=10GB")
        try:
            parsed[part] = parse_size(value)
        except ValueError as error:
            raise ModelLoadError(f"max_memory: {error}") from None
    return parsed


def _checked(parts: dict[str, Any], device: torch.device) -> DeviceMap:
    """Return the map, or None if it only puts the whole model on the CPU and the device is the CPU.

    Raises ModelLoadError for an unknown place or a GPU that this machine lacks.
    """
    gpus: set[int] = set()
    for name, part in parts.items():
        if isinstance(part, bool) or not (isinstance(part, int) or re.fullmatch(r"cpu|disk|cuda(:\d+)?", str(part))):
            raise ModelLoadError(f"device_map: {name!r} is on {part!r}, which is not cpu, disk or the number of a GPU")
        if isinstance(part, int):
            gpus.add(part)
        elif part.startswith("cuda"):
            gpus.add(torch.device(part).index or 0)
    require_gpus(sorted(gpus), "device_map")
    return None if set(parts.values()) == {"cpu"} and device.type == "cpu" else parts


def _whole(device: torch.device) -> DeviceMap:
    return None if device.type == "cpu" else {"": str(device)}


def _of_gpus(gpus: Iterable[int], limits: Memory) -> Memory:
    from accelerate.utils import get_max_memory

    known = get_max_memory(limits)
    return {part: size for part, size in known.items() if part in set(gpus) or part == "cpu"}


def require_gpus(wanted: Iterable[int], what: str) -> None:
    have = torch.cuda.device_count()
    missing = [str(index) for index in wanted if not 0 <= index < have]
    if missing:
        there = f"GPUs 0 to {have - 1}" if have else "no GPU"
        raise ModelLoadError(
            f"{what}: this machine has no GPU {', '.join(missing)} (torch sees {there}); leave this setting out"
        )
