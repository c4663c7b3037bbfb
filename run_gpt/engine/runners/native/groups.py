"""Groups of layers with the same input, which are packed together."""

from dataclasses import dataclass
from typing import Any

from run_gpt.engine.runners.native.inspection import linear_shape

PLAIN = ("fp32", "fp16", "bf16")
"""Precisions that are not quantised, the best first."""


@dataclass(frozen=True)
class Group:
    """Layers that are packed as one matrix: names, modules, and their outputs and inputs."""

    names: tuple[str, ...]
    modules: tuple[Any, ...]
    precisions: tuple[str, ...]
    """Precision of each layer."""
    interleaved: bool = False
    """Panels of two layers in turn, if their precisions are the same."""
    order: Any = None
    """Rows of the only layer in the order in which they are packed, as a tensor of indices; None: as they are."""

    @property
    def outputs(self) -> list[int]:
        return [linear_shape(module)[0] for module in self.modules]

    @property
    def inputs(self) -> int:
        return linear_shape(self.modules[0])[1]

    @property
    def pieces(self) -> list[tuple[str, int]]:
        """Precisions and outputs of its matrices: one of each layer if their precisions differ."""
        outputs = self.outputs
        same = len(set(self.precisions)) == 1
        return [(self.precisions[0], sum(outputs))] if same else list(zip(self.precisions, outputs, strict=True))
