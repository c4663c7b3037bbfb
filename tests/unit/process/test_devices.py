"""Without these tests, servers could be killed for their memory use, or inputs could go to the wrong device."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from run_gpt.process import devices


def test_free_memory_is_no_more_than_the_machine_has():
    assert 2**20 < devices.free_bytes("cpu") < 2**50


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, []),
        ({"memory.max": "max\n"}, []),
        (
            {"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 500\ninactive_file 150\n"},
            [450],
        ),
        (
            {
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "900",
                "memory/memory.stat": "cache 5\ntotal_inactive_file 50",
            },
            [150],
        ),
    ],
)
def test_a_containers_limit_counts(tmp_path, files, free):
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert devices._free_of_container(tmp_path) == free


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, []),
        ({"cpu.max": "max 100000\n"}, []),
        ({"cpu.max": "250000 100000\n"}, [2]),
        ({"cpu.max": "50000 100000\n"}, [0]),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, []),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, [4]),
    ],
)
def test_a_containers_cpu_time_is_whole_cores(tmp_path, files, cores):
    """With a thread for each core of a large machine, threads in a container of two cores would mostly stand still."""
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert devices._cores_of_container(tmp_path) == cores


def test_there_is_always_a_core(monkeypatch):
    monkeypatch.setattr(devices, "_cores_of_container", lambda root: [0])
    assert devices.usable_cores() == 1


def test_a_process_knows_what_it_holds():
    """Measure in a separate process, since other threads of this one free memory meanwhile."""
    code = (
        "from run_gpt.process.devices import _own_bytes as own; "
        "before = own(); held = b'x' * 50_000_000; print(own() - before)"
    )
    grown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert 0.9 < int(grown.stdout) / 50_000_000 < 2


@pytest.mark.parametrize(
    ("parts", "device"),
    [({"": "disk"}, "cpu"), ({"a": "cpu", "b": "disk"}, "cpu"), ({"a": "cpu", "b": "cuda:1", "c": "disk"}, "cuda:1")],
)
def test_inputs_of_an_offloaded_model_go_where_it_is_computed(parts, device):
    model = SimpleNamespace(device=torch.device("meta"), hf_device_map=parts)
    assert devices.input_device(model) == torch.device(device)
    assert devices.is_split(model)


def test_a_model_on_one_device_is_not_split():
    assert not devices.is_split(SimpleNamespace())
    assert not devices.is_split(SimpleNamespace(hf_device_map={"": "cuda:0"}))
