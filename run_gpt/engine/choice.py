"""Which runner runs a model."""

from typing import Any

from run_gpt.config import EngineConfig
from run_gpt.engine.runner import ModelRunner
from run_gpt.errors import SetupError


def choose_runner(model: Any, config: EngineConfig) -> ModelRunner:
    """The fastest runner that is right for a transformers model, or the one that `config.runner` names.

    Raises SetupError for a runner that is not right for it.
    """
    from run_gpt.engine import llama
    from run_gpt.engine.alone import AloneRunner
    from run_gpt.engine.generic import GenericRunner

    stateful = getattr(model, "_is_stateful", False)
    wanted = config.runner
    if wanted == "auto":
        wanted = "alone" if stateful else "fast" if llama.fits(model) else "generic"
    if wanted == "fast" and not llama.fits(model):
        raise SetupError(
            f"--runner fast: it runs {', '.join(llama.FAMILIES)} in fp32, fp16 or bf16 on one device, and this is "
            f"{model.config.model_type}; leave the option out"
        )
    if wanted == "generic" and stateful:
        raise SetupError(f"--runner generic: {model.config.model_type} has no key-value cache; leave the option out")
    if wanted == "fast":
        return llama.LlamaRunner(model, config.max_running)
    return GenericRunner(model) if wanted == "generic" else AloneRunner(model)
