"""Facts about devices: the device of a model's inputs, usable cores, free memory, and this process's share of it.

Importing this does not import torch, and the functions do not need torch for the CPU.
"""

import os
from pathlib import Path
from typing import Any

# Limit, use and statistics of a container's memory, and the part that can be reclaimed: cgroups version 2, then 1.
_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
# A container's limit of CPU time: microseconds in each period, and the period.
_QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))

MEMORY_VARIABLE = "RUNGPT_MEMORY_BYTES"
"""Variable that the supervisor sets for replicas that share this machine's memory: the bytes for each replica."""
GPU_SHARERS_VARIABLE = "RUNGPT_GPU_SHARERS"
"""Variable that the supervisor sets for replicas that share a GPU: the number of these replicas."""


def input_device(model: Any) -> Any:
    """Return the torch device for a transformers model's inputs.

    It is `model.device`, unless accelerate keeps the weights elsewhere until they are needed (on the CPU beside a GPU,
    or on disk). Such weights are on `meta`, and accelerate computes on the first GPU of the map, or else on the CPU.
    """
    import torch

    if model.device.type != "meta":
        return model.device
    parts = getattr(model, "hf_device_map", {}).values()
    return torch.device(next((part for part in parts if str(part) not in ("cpu", "disk")), "cpu"))


def is_split(model: Any) -> bool:
    """Return True if a transformers model's weights are on several devices, or on disk."""
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    return len(places) > 1 or "disk" in places


def free_bytes(device: str) -> int:
    """Return the bytes that are free on a torch device, such as `cpu` or `cuda:0`, within the limit of a container."""
    kind = device.partition(":")[0]
    if kind == "cpu":
        return min([_free_of_machine(), *_free_of_container(Path("/sys/fs/cgroup"))])
    import torch

    if kind == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return torch.cuda.mem_get_info(device)[0]


def left_bytes(device: str, processes: int = 1) -> int:
    """Return `free_bytes`, limited to the rest of this replica's share if replicas share the device.

    The result does not depend on the number of replicas that have already loaded. `processes` is the number of
    processes with this replica's model; each is taken to hold as much of the CPU's memory as this one.
    """
    free, kind = free_bytes(device), device.partition(":")[0]
    if kind == "cpu" and (share := os.environ.get(MEMORY_VARIABLE)):
        return min(free, int(share) - processes * _own_bytes())
    if kind == "cuda" and (sharers := int(os.environ.get(GPU_SHARERS_VARIABLE, "1"))) > 1:
        import torch

        return min(free, torch.cuda.mem_get_info(device)[1] // sharers - torch.cuda.memory_reserved(device))
    return free


def has_gpu() -> bool:
    """Return True when this machine has a GPU of NVIDIA or AMD that programs can use; torch may still not find it."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def usable_cores() -> int:
    """Return the number of cores that this process may use at once, within a container's CPU time; at least 1."""
    return max(1, min([schedulable_cores(), *_cores_of_container(Path("/sys/fs/cgroup"))]))


def schedulable_cores() -> int:
    """Return the number of cores on which this process may run; libraries start one thread for each."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cores_of_container(root: Path) -> list[int]:
    """Return the number of whole cores that each kind of limit allows; empty outside of containers."""
    cores = []
    for files in _QUOTAS:
        if all((root / file).exists() for file in files):
            quota, period = " ".join((root / file).read_text() for file in files).split()
            if quota not in ("max", "-1"):
                cores.append(int(quota) // int(period))
    return cores


def _own_bytes() -> int:
    """Return the bytes of memory that this process does not share; 0 if the system does not report them."""
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
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # this system reports none: half is a guess


def _free_of_container(root: Path) -> list[int]:
    """Return the bytes that each kind of limit leaves; empty outside of containers."""
    free = []
    for limit, used, statistics, reclaimable in _CGROUPS:
        if (root / limit).exists() and (text := (root / limit).read_text().strip()) != "max":
            stat = dict(line.split() for line in (root / statistics).read_text().splitlines())
            free.append(int(text) - int((root / used).read_text()) + int(stat.get(reclaimable, 0)))
    return free
