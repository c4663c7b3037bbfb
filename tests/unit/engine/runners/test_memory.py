"""Without these tests servers could be killed for their memory, or run one request where many would fit."""

import logging
from types import SimpleNamespace

import pytest
import torch
import transformers

from run_gpt.engine.runners import memory
from run_gpt.process import devices


def test_half_of_the_free_memory_is_for_the_cache(monkeypatch):
    monkeypatch.setattr(devices, "free_bytes", lambda device: 1000)
    assert memory.fitting_tokens(10, "cpu", context_length=20) == 50
    assert memory.fitting_tokens(10, "cpu", context_length=80) == 80  # at least one context
    assert memory.fitting_tokens(0, "cpu", context_length=80) is None


@pytest.mark.parametrize("loaded_before", [0, 1, 3])
def test_replicas_do_not_promise_the_same_memory_twice(monkeypatch, loaded_before):
    """Check 4 replicas: the supervisor saw 4000 bytes free, and each holds 200. 800 are left to each, in any order."""
    monkeypatch.setenv(devices.MEMORY_VARIABLE, str(4000 // 4))
    monkeypatch.setattr(devices, "free_bytes", lambda device: 4000 - 200 * (loaded_before + 1))
    monkeypatch.setattr(devices, "_own_bytes", lambda: 200)
    assert memory.fitting_tokens(10, "cpu", context_length=20) == 40
    assert memory.fitting_tokens(10, "cpu", context_length=1, processes=4) == 10, "of a model in 4 processes"


def test_what_others_have_taken_counts_beside_the_share(monkeypatch):
    monkeypatch.setenv(devices.MEMORY_VARIABLE, "1000")
    monkeypatch.setattr(devices, "free_bytes", lambda device: 300)
    monkeypatch.setattr(devices, "_own_bytes", lambda: 200)
    assert memory.fitting_tokens(1, "cpu", context_length=20) == 150


def test_a_replica_whose_model_leaves_no_room_says_so(monkeypatch, caplog):
    monkeypatch.setenv(devices.MEMORY_VARIABLE, "1")
    with caplog.at_level(logging.WARNING, "run_gpt"):
        assert memory.fitting_tokens(1, "cpu", context_length=20) == 20
    assert "leaves no memory of cpu for the cache, which holds one context, 20 tokens" in caplog.text


def test_replicas_on_one_gpu_share_it(monkeypatch):
    """Check a GPU of 1000 bytes: the first of two replicas finds 900 free, and takes no more than its own half."""
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (900, 1000))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: 100)
    assert memory.fitting_tokens(1, "cuda:0", context_length=20) == 450
    monkeypatch.setenv(devices.GPU_SHARERS_VARIABLE, "2")
    assert memory.fitting_tokens(1, "cuda:0", context_length=20) == 200


def test_layers_with_heads_of_different_sizes_are_counted_each():
    """Check Gemma 4, whose configuration has no head size for all layers: it could not be loaded."""
    config = transformers.Gemma4TextConfig(
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16, hidden_size=64
    )
    sizes = [config.per_layer_config[i].head_dim for i in range(4)]
    assert len(set(sizes)) > 1
    model = SimpleNamespace(config=config, dtype=torch.float32)
    assert memory.cache_bytes_per_token(model) == sum(2 * 2 * size * 4 for size in sizes)
