"""Without these tests, replicas could take each other's cores, memory and GPUs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from run_gpt.config import ServeConfig, ServedModel
from run_gpt.flows import server, sharing
from run_gpt.flows.supervisor import Event

HERE = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "RUNGPT_MEMORY_BYTES", "RUNGPT_GPU_SHARERS")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return `machine(cores=5, gpus=["0"], free=1000)`, which sets the machine; default: 4 cores, 1 GB and no GPU."""
    for name in HERE:
        monkeypatch.delenv(name, raising=False)

    def build(cores: int = 4, gpus: list[str] | None = None, free: int = 10**9) -> None:
        monkeypatch.setattr(sharing, "usable_cores", lambda: cores)
        monkeypatch.setattr(sharing, "gpus_here", lambda: gpus or [])
        monkeypatch.setattr(sharing, "free_bytes", lambda device: free)

    build()
    return build


def each(name: str, **config: Any) -> list[str | None]:
    return [own.get(name) for own in sharing.replica_environments(ServeConfig(**config))]


@pytest.mark.parametrize(
    ("cores", "replicas", "shares"), [(2, 2, [1, 1]), (5, 2, [3, 2]), (8, 3, [3, 3, 2]), (2, 3, [1, 1, 1])]
)
def test_every_core_is_some_replicas(cores: int, replicas: int, shares: list[int], machine: Any) -> None:
    machine(cores=cores)
    assert sharing.share_cores(cores, replicas) == shares
    assert each("OMP_NUM_THREADS", replicas=replicas) == list(map(str, shares))


def test_one_replica_has_the_machine_for_itself(machine: Any) -> None:
    machine(gpus=["0", "1"])
    assert sharing.replica_environments(ServeConfig()) == [{}]


def test_threads_that_the_user_has_chosen_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert each("OMP_NUM_THREADS", replicas=2) == [None, None]


def test_the_memory_is_shared_out_as_it_was_before_the_first_replica(machine: Any) -> None:
    machine(free=9000)
    assert each("RUNGPT_MEMORY_BYTES", replicas=3) == ["3000"] * 3


def models(*settings: Any) -> tuple[ServedModel, ...]:
    return tuple(ServedModel(**each) for each in settings)


def test_another_model_takes_no_cores_away() -> None:
    """Other models are mostly idle: with only a share of the cores each model would be slower all the time."""
    assert each("OMP_NUM_THREADS", models=models({}, {"replicas": 2})) == [None, "2", "2"]


@pytest.mark.parametrize(
    ("config", "shares"),
    [
        ({"models": models({}, {"replicas": 2})}, ["3000"] * 3),
        ({"models": models({"memory": 500}, {"replicas": 2})}, ["500", "4250", "4250"]),
        ({"models": models({}, {}), "memory_budget": 1000}, ["500", "500"]),
        ({"models": models({})}, [None]),
        ({"memory": 700}, ["700"]),
        ({"memory_budget": 1000}, ["1000"]),
        ({"memory_budget": 1000, "replicas": 2}, ["500", "500"]),
    ],
)
def test_the_memory_is_shared_among_all_models(config: Any, shares: list[str | None], machine: Any) -> None:
    machine(free=9000)
    assert each("RUNGPT_MEMORY_BYTES", **config) == shares


def test_what_is_said_of_one_model_counts_more_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNGPT_MEMORY_BYTES", "7")
    assert each("RUNGPT_MEMORY_BYTES", models=models({"memory": 500}, {})) == ["500", None]


@pytest.mark.parametrize(
    ("gpus", "settings", "visible", "sharers"),
    [
        ([], [{}, {}], [None, None], [None, None]),
        (["0"], [{}, {}], [None, None], ["2", "2"]),
        (["0", "1"], [{}, {}], ["0", "1"], ["1", "1"]),
        (["0", "1"], [{"replicas": 2}, {}], ["0", "1", "0"], ["2", "1", "2"]),
        (["0", "1"], [{"device": "cpu"}, {}], [None, "0"], [None, "1"]),
        (["0", "1"], [{"device_map": "auto"}, {}], [None, "0"], ["2", "2"]),
        (["0", "1", "2", "3"], [{"tensor_parallel": 2}, {}, {}], ["0,1", "2", "3"], ["1", "1", "1"]),
        (["0", "1"], [{"tensor_parallel": 2}, {}], [None, "0"], ["2", "2"]),
    ],
)
def test_models_share_gpus_as_replicas_do(
    gpus: list[str], settings: Any, visible: list[str | None], sharers: list[str | None], machine: Any
) -> None:
    machine(gpus=gpus)
    assert each("CUDA_VISIBLE_DEVICES", models=models(*settings)) == visible
    assert each("RUNGPT_GPU_SHARERS", models=models(*settings)) == sharers


@pytest.mark.parametrize(
    ("gpus", "config", "visible", "sharers"),
    [
        ([], {"replicas": 2}, [None, None], [None, None]),
        (["0"], {"replicas": 2}, [None, None], ["2", "2"]),
        (["0", "1"], {"replicas": 2}, ["0", "1"], ["1", "1"]),
        (["4", "GPU-a"], {"replicas": 3}, ["4", "GPU-a", "4"], ["2", "1", "2"]),
        (["0", "1", "2"], {"replicas": 2}, ["0", "1"], ["1", "1"]),
        (["0", "1", "2", "3"], {"replicas": 2, "tensor_parallel": 2}, ["0,1", "2,3"], ["1", "1"]),
        (["0", "1", "2"], {"replicas": 2, "tensor_parallel": 2}, [None, None], ["2", "2"]),
        (["0", "1"], {"replicas": 2, "device": "cuda:1"}, [None, None], ["2", "2"]),
        (["0", "1"], {"replicas": 2, "device_map": "auto"}, [None, None], ["2", "2"]),
    ],
)
def test_replicas_get_gpus_in_turn(
    gpus: list[str], config: Any, visible: list[str | None], sharers: list[str | None], machine: Any
) -> None:
    machine(gpus=gpus)
    assert each("CUDA_VISIBLE_DEVICES", **config) == visible
    assert each("RUNGPT_GPU_SHARERS", **config) == sharers


def test_the_gpus_that_the_user_shows_are_those_that_are_shared(monkeypatch: pytest.MonkeyPatch, machine: Any) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    machine(gpus=["2", "3"])
    assert each("CUDA_VISIBLE_DEVICES", replicas=2) == ["2", "3"]


def test_gpus_are_found_as_cuda_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real function
    for name in ("nvidia2", "nvidia5", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert sharing.gpus_here({}, tmp_path) == ["0", "1"], "a container's devices are counted anew"
    assert sharing.gpus_here({"CUDA_VISIBLE_DEVICES": "3, GPU-b,-1,4"}, tmp_path) == ["3", "GPU-b"]
    assert sharing.gpus_here({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []


@pytest.mark.parametrize(
    ("cores", "gpus", "config", "warned"),
    [
        (2, [], {"replicas": 2}, False),
        (2, [], {"replicas": 3}, True),
        (2, ["0"], {"replicas": 3}, False),
        (2, ["0"], {"replicas": 3, "device": "cpu"}, True),
        (2, [], {"replicas": 3, "device": "cuda"}, False),
    ],
)
def test_more_replicas_than_cores_is_one_line_at_the_start(
    cores: int, gpus: list[str], config: Any, warned: bool, machine: Any
) -> None:
    machine(cores=cores, gpus=gpus)
    events: list[Event] = []
    server.new_supervisor(ServeConfig(**config), events.append).finish_reports(20)
    assert [event.kind for event in events] == ["warning"] * warned
    if warned:
        assert events[0].message.startswith("Warning: 3 replicas take turns on 2 cores")


def test_the_warning_names_the_model_that_it_is_about() -> None:
    several = models({"model_name": "a"}, {"model_name": "org/b", "replicas": 9})
    (line,) = sharing.crowding(ServeConfig(models=several))
    assert line.startswith("Warning: 9 replicas of b take turns on 4 cores")


def test_a_worker_in_a_small_container_on_a_large_machine_starts_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "schedulable_cores", lambda: 64)
    assert sharing.thread_environment() == {"GOMP_SPINCOUNT": "5000", "OMP_NUM_THREADS": "4"}
    monkeypatch.setattr(sharing, "schedulable_cores", lambda: 4)
    assert sharing.thread_environment() == {"GOMP_SPINCOUNT": "5000"}


def test_torch_starts_as_many_threads_as_the_environment_says_by_then() -> None:
    """A pod sets its number of threads in its own environment before it imports torch; that must be early enough."""
    code = "import os; os.environ['OMP_NUM_THREADS'] = '1'; import torch; print(torch.get_num_threads())"
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "1\n"
