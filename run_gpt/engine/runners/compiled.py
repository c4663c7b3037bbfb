"""torch.compile of a transformers model's own forward pass, which the generic runner calls."""

import os
from pathlib import Path
from typing import Any

import torch

from run_gpt.engine.runners.native.build import unsupported
from run_gpt.errors import SetupError


def prepare_compiler(folder: Path) -> None:
    """Keep what is compiled in `folder`, so that the next start finds it; a folder of the user's choice stays.

    Raises SetupError if there is no compiler for a CPU without a GPU beside it.
    """
    if not torch.cuda.is_available() and "compiler" in (reason := unsupported() or ""):
        raise SetupError(f"--compile: {reason}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def compile_forward(model: Any) -> None:
    """Compile the layers between two uses of the cache, for steps of any shape.

    The cache itself stays outside: it grows in place, and its views of one buffer are nothing that inductor compiles.
    What a step's shape is (one token or several, one row or several) is a compilation of its own, when it first comes.
    """
    from run_gpt.engine.runners import generic

    generic._Layer.update = torch._dynamo.disable(generic._Layer.update)  # type: ignore
    model.forward = torch.compile(model.forward, dynamic=True)
