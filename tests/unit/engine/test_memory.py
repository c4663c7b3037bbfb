"""Servers that are killed for their memory, or hold one request where there is room for many, if these failed."""

import pytest
import torch

from run_gpt.engine import memory


def test_half_of_the_free_memory_is_for_the_cache(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    assert memory.fitting_tokens(10, "cpu", context_length=20) == 50
    assert memory.fitting_tokens(10, "cpu", context_length=80) == 80  # one context there must be
    assert memory.fitting_tokens(0, "cpu", context_length=80) is None


def test_free_memory_is_no_more_than_the_machine_has():
    assert 2**20 < memory.free_bytes(torch.device("cpu")) < 2**50


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
    assert memory._free_of_container(tmp_path) == free
