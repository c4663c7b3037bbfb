"""`Footprint`: the memory that a model takes, as far as its files show it before it is loaded."""

from dataclasses import dataclass, replace
from typing import Self

from run_gpt.config import EngineConfig, ModelConfig
from run_gpt.engine.runners.native.build import unsupported
from run_gpt.models import fetch
from run_gpt.models.estimate import estimate_folder
from run_gpt.models.stored import held_precision
from run_gpt.process.devices import has_gpu


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Memory of one replica."""

    weights: int = 0
    """Bytes of its weights; 0: unknown."""
    token: int = 0
    """Bytes of a token in the KV cache; 0: unknown."""
    context: int = 0
    """Tokens whose memory the longest prompt and answer take together; 0: unknown. They are fewer than it has where
    sliding windows bound the cache."""

    @classmethod
    def of(cls, model_config: ModelConfig, engine_config: EngineConfig) -> Self:
        """Return the footprint of the model that these name; fetch it if need be. Raises SetupError, ModelNotFound."""
        folder = fetch(model_config).folder
        if (estimate := estimate_folder(folder)) is None:
            return cls()
        precision = held_precision(folder, model_config.precision) or "bf16"
        context = min(estimate.context, engine_config.max_context or estimate.context)
        token = estimate.cache(precision, 1)
        whole = estimate.cache(precision, context, native=_is_native(model_config, engine_config))
        context = -(-whole // token) if token else context
        return cls(weights=estimate.weights(precision), token=token, context=context)

    def bytes_of(self, config: EngineConfig, memory: int | None) -> int | None:
        """Return the bytes that it takes at most, given `memory` bytes meant for it; None if unknown.

        The result is more than `memory` where weights and one context need more.
        """
        if not self.weights:
            return memory
        return max(memory or 0, self.weights + self.token * (config.max_cache_tokens or self.context))

    def within(self, config: EngineConfig, memory: int | None) -> EngineConfig:
        """Return the configuration with the cache that `memory` leaves beside the weights, at least one context."""
        if memory is None or config.max_cache_tokens is not None or not (self.weights and self.token):
            return config
        return replace(config, max_cache_tokens=max(self.context, (memory - self.weights) // self.token, 1))


def _is_native(model_config: ModelConfig, engine_config: EngineConfig) -> bool:
    """Return True if the native runner will serve a model of its families, as far as the settings show it."""
    other = engine_config.compile or model_config.tensor_parallel != 1 or engine_config.runner not in ("auto", "native")
    on_gpu = model_config.device != "cpu" if model_config.device else has_gpu()
    return not (other or on_gpu or unsupported())
