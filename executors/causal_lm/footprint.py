"""`Footprint`: what a model takes of memory, as far as its files tell before it is loaded."""

from dataclasses import dataclass, replace
from typing import Self

from run_gpt.config import EngineConfig, ModelConfig
from run_gpt.models import fetch
from run_gpt.models.convert import converted_record, is_converted
from run_gpt.models.estimate import BYTES, estimate_folder


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Of one replica."""

    weights: int = 0
    """Bytes of its weights; 0: not known."""
    token: int = 0
    """Bytes of a token in the cache; 0: not known."""
    context: int = 0
    """Tokens of the longest prompt and answer together; 0: not known."""

    @classmethod
    def of(cls, model_config: ModelConfig, engine_config: EngineConfig) -> Self:
        """Of the model that these name, which is fetched if need be. Raises SetupError or ModelNotFound."""
        folder = fetch(model_config).folder
        if (estimate := estimate_folder(folder)) is None:
            return cls()
        precision = model_config.precision
        if precision == "auto" and is_converted(folder):
            precision = converted_record(folder)["precision"] or precision
        precision = precision if precision in BYTES else "bf16"
        context = min(estimate.context, engine_config.max_context or estimate.context)
        return cls(weights=estimate.weights(precision), token=estimate.cache(precision, 1), context=context)

    def bytes_of(self, config: EngineConfig, memory: int | None) -> int | None:
        """What it takes at most, of `memory` bytes that are meant for it; None if nothing is known.

        That is more than `memory` where weights and one context need more.
        """
        if not self.weights:
            return memory
        return max(memory or 0, self.weights + self.token * (config.max_cache_tokens or self.context))

    def within(self, config: EngineConfig, memory: int | None) -> EngineConfig:
        """The configuration with as much cache as `memory` bytes leave beside the weights, at least one context."""
        if memory is None or config.max_cache_tokens is not None or not (self.weights and self.token):
            return config
        return replace(config, max_cache_tokens=max(self.context, (memory - self.weights) // self.token, 1))
