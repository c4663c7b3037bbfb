"""Imports of large libraries: torch, transformers and jina take seconds."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Run the block, which imports large libraries, without Python's garbage collector.

    Imports make hundreds of thousands of objects that stay. The collector looks through them again and again: that is a
    quarter of the time that the imports take.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
