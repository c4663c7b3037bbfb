"""Servers that are killed for their memory, or hold one request where there is room for many, if these failed."""

from run_gpt.engine import memory


def test_half_of_the_free_memory_is_for_the_cache(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    assert memory.fitting_tokens(10, "cpu", context_length=20) == 50
    assert memory.fitting_tokens(10, "cpu", context_length=80) == 80  # one context there must be
    assert memory.fitting_tokens(0, "cpu", context_length=80) is None
