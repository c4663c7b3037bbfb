"""What is asked of a device: which one a model's inputs go to, and how much memory is free there.

Importing this does not import torch, and asking after the memory of the CPU does not need it.
"""

import os
from pathlib import Path
from typing import Any

# Limit, use and statistics of a container's memory, and what can be had back of it: cgroups version 2, then 1.
_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def input_device(model: Any) -> Any:
    """The torch device that a transformers model's inputs go to.

    That is `model.device`, but where accelerate holds the weights elsewhere until they are needed (on the CPU beside a
    GPU, on disk): these are on `meta`, and computed where accelerate computes, on the first GPU of the map or the CPU.
    """
    import torch

    if model.device.type != "meta":
        return model.device
    parts = getattr(model, "hf_device_map", {}).values()
    return torch.device(next((part for part in parts if str(part) not in ("cpu", "disk")), "cpu"))


def is_split(model: Any) -> bool:
    """Whether a transformers model's weights are on several devices, or on disk."""
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    return len(places) > 1 or "disk" in places


def free_bytes(device: str) -> int:
    """Memory that may still be taken on a torch device, such as `cpu` or `cuda:0`, within the limit of a container."""
    kind = device.partition(":")[0]
    if kind == "cpu":
        return min([_free_of_machine(), *_free_of_container(Path("/sys/fs/cgroup"))])
    import torch

    if kind == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return torch.cuda.mem_get_info(device)[0]


def _free_of_machine() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # not told on this system: half is a guess


def _free_of_container(root: Path) -> list[int]:
    """What each kind of limit leaves; empty outside of containers."""
    free = []
    for limit, used, statistics, reclaimable in _CGROUPS:
        if (root / limit).exists() and (text := (root / limit).read_text().strip()) != "max":
            stat = dict(line.split() for line in (root / statistics).read_text().splitlines())
            free.append(int(text) - int((root / used).read_text()) + int(stat.get(reclaimable, 0)))
    return free
