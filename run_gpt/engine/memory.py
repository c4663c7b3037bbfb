"""How large a token of cache is, and how many the free memory holds."""

import os
from pathlib import Path
from typing import Any

import torch

SHARE = 0.5
"""Of the free memory; the rest is for a step's own tensors, and for what else runs."""

# Limit, use and statistics of a container's memory, and what can be had back of it: cgroups version 2, then 1.
_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def cache_bytes_per_token(model: Any) -> int:
    """Bytes of the keys and values of one token, as the model's configuration tells; 0 when it does not."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 0)
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        heads = 1  # Falcon 7B; its newer architecture caches the keys of all heads
    if not heads:
        return 0
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)


def fitting_tokens(bytes_per_token: int, device: str, context_length: int) -> int | None:
    """Tokens that fit the share of the device's free memory, at least one context; None when a token's size is not
    known."""
    if not bytes_per_token:
        return None
    return max(context_length, int(SHARE * free_bytes(torch.device(device)) / bytes_per_token))


def free_bytes(device: torch.device) -> int:
    """Memory that may still be taken on a device, within the limit of a container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min([_free_of_machine(), *_free_of_container(Path("/sys/fs/cgroup"))])


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
