"""Owns the division of one machine among the replicas of all models: the cores, the memory and the GPUs of each.

A replica gets its share through its environment, before it starts; variables that the user has set stay.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

from run_gpt.config import ServeConfig, ServedModel
from run_gpt.process.devices import GPU_SHARERS_VARIABLE, MEMORY_VARIABLE, free_bytes, schedulable_cores, usable_cores

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def thread_environment() -> dict[str, str]:
    """Return the variables for the threads of one worker that has all usable cores for itself.

    By default torch starts a thread for each core that it may run on, but a container may have only part of their time.
    Also, a waiting thread of the GNU runtime spins for milliseconds on the core that another thread needs: beside one
    busy process (2 cores, fp32) decoding ran at 5.4 tokens/s that way, and at 9.6 with a short spin; on a quiet machine
    it makes no difference.
    """
    limited = {"OMP_NUM_THREADS": str(usable_cores())} if usable_cores() < schedulable_cores() else {}
    return {"GOMP_SPINCOUNT": "5000"} | limited


def replica_environments(config: ServeConfig) -> list[dict[str, str]]:
    """Return the variables of each replica, those of the first model first; none for a replica that shares nothing.

    Cores are shared among the replicas of one model only: other models are mostly idle, and when several are busy the
    system's scheduler shares the cores. Memory is shared among all: each replica has the `memory` of its model, else an
    equal part of the rest of the budget, which is the free memory or `memory_budget`. GPUs are shared among all, too.
    """
    workers = [model for model in config.served for _ in range(model.replicas)]
    cores = [own for model in config.served for own in _core_shares(model)]
    gpus = _share_gpus(workers, gpus_here()) if len(workers) > 1 else [{}]
    own = [more | memory | gpu for more, memory, gpu in zip(cores, _memory_shares(config, workers), gpus, strict=True)]
    return [_without_the_users(env, model) for env, model in zip(own, workers, strict=True)]


def with_memory(config: ServeConfig) -> ServeConfig:
    """Return the configuration; if it has `models`, add the memory of each that is on the CPU, and the budget."""
    if not config.models:
        return config
    budget = _budget(config)
    share = _memory_share(budget, [model for model in config.models for _ in range(model.replicas)])
    models = [
        model if model.memory is not None or _is_on_gpu(model) else replace(model, memory=share)
        for model in config.models
    ]
    return replace(config, models=tuple(models), memory_budget=None if any(map(_is_on_gpu, models)) else budget)


def share_cores(cores: int, replicas: int) -> list[int]:
    """Return the number of cores of each replica, at least 1; of 5 cores the first of two replicas has 3."""
    most, extra = divmod(cores, replicas)
    return [max(1, most + (index < extra)) for index in range(replicas)]


def crowding(config: ServeConfig) -> list[str]:
    """Return a warning for each model on the CPU that has more replicas than the machine has cores."""
    cores = usable_cores()
    here = "1 core" if cores == 1 else f"{cores} cores"
    return [
        f"Warning: {model.replicas} replicas{_named(model, config)} take turns on {here}: each is slower than one of "
        f"{cores} would be, and has a copy of the model; --replicas {cores} or fewer serves more."
        for model in config.served
        if model.replicas > cores and not _is_on_gpu(model)
    ]


def gpus_here(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> list[str]:
    """Return the GPUs that CUDA would show a child process, by their names for CUDA_VISIBLE_DEVICES."""
    if (listed := environment.get(_VISIBLE)) is not None:
        names = [name.strip() for name in listed.split(",")]
        # CUDA reads the list up to the first invalid name.
        end = next((i for i, name in enumerate(names) if not name or name.startswith("-")), len(names))
        return names[:end]
    return [str(index) for index, _ in enumerate(devices.glob("nvidia[0-9]*"))]


def _without_the_users(env: dict[str, str], model: ServedModel) -> dict[str, str]:
    """Remove variables that the user has set, unless the configuration decides: this model's memory, and the GPUs."""
    kept = {_VISIBLE} if model.memory is None else {_VISIBLE, MEMORY_VARIABLE}
    return {name: value for name, value in env.items() if name in kept or name not in os.environ}


def _named(model: ServedModel, config: ServeConfig) -> str:
    return f" of {model.short_name}" if len(config.served) > 1 else ""


def _is_on_gpu(model: ServedModel) -> bool:
    return model.device.partition(":")[0] != "cpu" if model.device else bool(gpus_here())


def _core_shares(model: ServedModel) -> list[dict[str, str]]:
    if model.replicas == 1:
        return [{}]
    return [{"OMP_NUM_THREADS": str(count)} for count in share_cores(usable_cores(), model.replicas)]


def _memory_shares(config: ServeConfig, workers: list[ServedModel]) -> list[dict[str, str]]:
    if len(workers) == 1 and workers[0].memory is None and config.memory_budget is None:
        return [{}]
    share = _memory_share(_budget(config), workers)
    return [{MEMORY_VARIABLE: str(share if model.memory is None else model.memory)} for model in workers]


def _budget(config: ServeConfig) -> int:
    return free_bytes("cpu") if config.memory_budget is None else config.memory_budget


def _memory_share(budget: int, workers: list[ServedModel]) -> int:
    """Return the bytes of each worker whose model has no `memory`: an equal part of the rest of the budget."""
    silent = sum(model.memory is None for model in workers)
    left = budget - sum(model.memory or 0 for model in workers)
    return max(1, left // max(1, silent))


def _share_gpus(workers: list[ServedModel], gpus: list[str]) -> list[dict[str, str]]:
    """Return for each worker the GPUs that the fewest others have, and the number of workers, of any model, on them.

    GPUs are assigned in groups of `tensor_parallel`. If the user has chosen a device, or there is only one such group,
    a worker sees all GPUs, and counts as a sharer of each.
    """
    places: list[list[str]] = []
    for model in workers:
        places.append(_gpus_for(model, gpus, Counter(chain.from_iterable(places))))
    sharers = Counter(chain.from_iterable(places))
    return [
        ({_VISIBLE: ",".join(place)} if place != gpus else {})
        | {GPU_SHARERS_VARIABLE: str(max(sharers[gpu] for gpu in place))}
        if place
        else {}
        for place in places
    ]


def _gpus_for(model: ServedModel, gpus: list[str], taken: Counter[str]) -> list[str]:
    if model.device is not None and model.device.partition(":")[0] == "cpu":
        return []
    size = max(1, model.tensor_parallel)  # less than 1 is refused when it loads
    groups = [gpus[start : start + size] for start in range(0, len(gpus) - size + 1, size)]
    if model.device is not None or model.device_map is not None or len(groups) < 2:
        return gpus
    return min(groups, key=lambda group: max(taken[gpu] for gpu in group))
