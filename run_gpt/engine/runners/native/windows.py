"""Rings: bounded caches of the layers with a sliding window."""

from run_gpt.config.windows import BLOCK, ring_size
from run_gpt.engine.runners.native.shapes import Shape
from run_gpt.engine.slots import Ring


def ring_of(shape: Shape, positions: int, step: int) -> Ring | None:
    """Return the ring for a shape; None if no layer has a window, or if it would be as long as the whole context.

    `positions`: of a slot in a layer without a window. `step`: see `ring_size`.
    """
    windows = [shape.windows[kind] for kind in shape.kinds if kind in shape.windows]
    if not windows or (size := ring_size(max(windows), step)) >= positions:
        return None
    return Ring(size, size - max(windows) - BLOCK, len(windows), len(shape.kinds))
