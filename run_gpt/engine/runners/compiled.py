"""Compilation by torch.compile of a transformers model's own forward pass, which the generic runner calls."""

import os
from pathlib import Path
from typing import Any

import torch

from run_gpt.engine.runners.native.build import NO_COMPILER
from run_gpt.engine.runners.native.targets import compiler
from run_gpt.errors import SetupError


def prepare_compiler(folder: Path) -> None:
    """Keep compiled code in `folder` for the next start, unless the user has set another folder.

    Raises SetupError on a machine without a GPU if there is no compiler for its CPU.
    """
    if not torch.cuda.is_available() and compiler() is None:
        raise SetupError(f"--compile: {NO_COMPILER}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def compile_forward(model: Any) -> None:
    """Compile the layers between two uses of the KV cache, for steps of any shape.

    The cache itself is not compiled: it grows in place, and inductor cannot compile its views of one buffer. Each kind
    of shape (one token or several, one sequence or several) is compiled when it first occurs.
    """
    from run_gpt.engine.runners.batches import CacheLayer

    CacheLayer.update = torch._dynamo.disable(CacheLayer.update)  # type: ignore
    model.forward = torch.compile(model.forward, dynamic=True)
