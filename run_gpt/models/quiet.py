"""Suppression of transformers' and accelerate's output to the user's terminal during a load."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress progress bars, log lines below errors and Python warnings in the block; afterwards restore them."""
    from transformers.utils import logging as transformers_logging

    accelerate = logging.getLogger("accelerate")
    levels, bars = (
        (transformers_logging.get_verbosity(), accelerate.level),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity_error()
    accelerate.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(levels[0])
        accelerate.setLevel(levels[1])
        if bars:
            transformers_logging.enable_progress_bar()
