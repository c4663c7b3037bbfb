"""Owns how the replicas of one machine share it: the cores, the memory and the GPUs of each.

What each may have reaches it through its environment, before it starts; what the user has set there stays.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from run_gpt.config import ServeConfig
from run_gpt.devices import GPU_SHARERS_VARIABLE, MEMORY_VARIABLE, free_bytes, schedulable_cores, usable_cores

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def thread_environment() -> dict[str, str]:
    """How the threads of one worker use the cores that it has for itself.

    By itself torch starts one for each core that it may run on, and a container may use but some of their time. And a
    thread of the GNU runtime that waits for its neighbour spins for milliseconds, on the core that the neighbour needs:
    beside one busy process (2 cores, fp32) decoding ran at 5.4 tokens/s so, and at 9.6 with a short spin; on a quiet
    machine it makes no difference.
    """
    limited = {"OMP_NUM_THREADS": str(usable_cores())} if usable_cores() < schedulable_cores() else {}
    return {"GOMP_SPINCOUNT": "5000"} | limited


def replica_environments(config: ServeConfig) -> list[dict[str, str]]:
    """What each replica gets in its environment, which is nothing for one that has the machine for itself."""
    if config.replicas == 1:
        return [{}]
    cores, memory = share_cores(usable_cores(), config.replicas), free_bytes("cpu") // config.replicas
    own = [
        {"OMP_NUM_THREADS": str(count)} | {MEMORY_VARIABLE: str(memory)} | gpus
        for count, gpus in zip(cores, _share_gpus(config, gpus_here()), strict=True)
    ]
    return [{n: value for n, value in env.items() if n == _VISIBLE or n not in os.environ} for env in own]


def share_cores(cores: int, replicas: int) -> list[int]:
    """Cores of each replica, at least 1; of 5 cores the first of two replicas has 3."""
    most, extra = divmod(cores, replicas)
    return [max(1, most + (index < extra)) for index in range(replicas)]


def crowding(config: ServeConfig) -> str | None:
    """A line for whoever asks for more replicas than the machine has cores, where they compute on cores."""
    cores = usable_cores()
    on_gpu = config.device.partition(":")[0] != "cpu" if config.device else bool(gpus_here())
    if config.replicas <= cores or on_gpu:
        return None
    here = "1 core" if cores == 1 else f"{cores} cores"
    return (
        f"Warning: {config.replicas} replicas take turns on {here}: each is slower than one of {cores} would be, and "
        f"holds the whole model; --replicas {cores} or fewer serves more."
    )


def gpus_here(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> list[str]:
    """The GPUs that CUDA would show a child, by the names that CUDA_VISIBLE_DEVICES takes."""
    if (listed := environment.get(_VISIBLE)) is not None:
        names = [name.strip() for name in listed.split(",")]
        # CUDA takes the list up to the first name that is none.
        end = next((i for i, name in enumerate(names) if not name or name.startswith("-")), len(names))
        return names[:end]
    return [str(index) for index, _ in enumerate(devices.glob("nvidia[0-9]*"))]


def _share_gpus(config: ServeConfig, gpus: list[str]) -> list[dict[str, str]]:
    """GPUs in turn, `tensor_parallel` at a time; where the user has chosen a device, or there is one, all share it."""
    size = config.tensor_parallel
    groups = [gpus[start : start + size] for start in range(0, len(gpus) - size + 1, size)]
    chosen = config.device is not None or config.device_map is not None
    if chosen or len(groups) < 2:
        return [{GPU_SHARERS_VARIABLE: str(config.replicas)} if gpus else {}] * config.replicas
    turns = [index % len(groups) for index in range(config.replicas)]
    return [{_VISIBLE: ",".join(groups[turn]), GPU_SHARERS_VARIABLE: str(turns.count(turn))} for turn in turns]
