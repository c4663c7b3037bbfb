"""Which runner runs a model."""

from typing import Any

from run_gpt.engine.runner import ModelRunner


def choose_runner(model: Any) -> ModelRunner:
    """The fastest runner that is right for a transformers model."""
    if getattr(model, "_is_stateful", False):
        from run_gpt.engine.alone import AloneRunner

        return AloneRunner(model)
    from run_gpt.engine.generic import GenericRunner

    return GenericRunner(model)
