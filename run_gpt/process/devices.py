"""What is asked of a device: which one a model's inputs go to, its cores, how much memory is free there, and for whom.

Importing this does not import torch, and asking after the CPU does not need it.
"""

import os
from pathlib import Path
from typing import Any

# Limit, use and statistics of a container's memory, and what can be had back of it: cgroups version 2, then 1.
_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
# A container's limit of CPU time: microseconds in each period, and the period.
_QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))

MEMORY_VARIABLE = "RUNGPT_MEMORY_BYTES"
"""Set by the supervisor for replicas that share this machine's memory: the bytes of it that are for each."""
GPU_SHARERS_VARIABLE = "RUNGPT_GPU_SHARERS"
"""Set by the supervisor for replicas that share a GPU: how many they are."""


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


def left_bytes(device: str, processes: int = 1) -> int:
    """`free_bytes`, and where replicas share the device no more than this one's share leaves.

    However many of them have loaded already, each comes to the same. `processes`: as many as this one's model is in,
    each of which holds as much of the CPU's memory.
    """
    free, kind = free_bytes(device), device.partition(":")[0]
    if kind == "cpu" and (share := os.environ.get(MEMORY_VARIABLE)):
        return min(free, int(share) - processes * _own_bytes())
    if kind == "cuda" and (sharers := int(os.environ.get(GPU_SHARERS_VARIABLE, "1"))) > 1:
        import torch

        return min(free, torch.cuda.mem_get_info(device)[1] // sharers - torch.cuda.memory_reserved(device))
    return free


def usable_cores() -> int:
    """Cores that this process may use at once: those it may run on, within the CPU time of a container; at least 1."""
    return max(1, min([schedulable_cores(), *_cores_of_container(Path("/sys/fs/cgroup"))]))


def schedulable_cores() -> int:
    """Cores that this process may run on, for which libraries start threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cores_of_container(root: Path) -> list[int]:
    """Whole cores that each kind of limit leaves; empty outside of containers."""
    cores = []
    for files in _QUOTAS:
        if all((root / file).exists() for file in files):
            quota, period = " ".join((root / file).read_text() for file in files).split()
            if quota not in ("max", "-1"):
                cores.append(int(quota) // int(period))
    return cores


def _own_bytes() -> int:
    """Memory of this process that it does not share; 0 on a system that does not tell."""
    statistics = Path("/proc/self/statm")
    if not statistics.exists():
        return 0
    _, resident, shared, *_ = map(int, statistics.read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


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
