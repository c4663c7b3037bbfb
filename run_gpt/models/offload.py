"""Offloaded weights: the folder for parts of a model on disk, and the forward pass that loads them layer by layer."""

import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any


@contextmanager
def offload_folder(root: Path) -> Iterator[Path]:
    """Create a folder in `root` for offloaded weights, and delete it if the block fails.

    Only weights that must be written anew go there; safetensors are read from their own files.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="offload-", dir=root))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def removal(model: Any, folder: Path) -> tuple[Callable[[], object], ...]:
    """Return the clean-up that deletes the folder, which also runs when the model is freed.

    An empty folder is deleted at once, so there is no clean-up.
    """
    if any(folder.iterdir()):
        return (weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True),)
    folder.rmdir()
    return ()


def one_at_a_time(model: Any) -> None:
    """Let only one thread at a time run a split model's forward pass, so that beam search may run beside the batch.

    accelerate loads the weights of an offloaded layer and removes them again, even while another thread uses them.
    `base_model` is locked too, since embeddings run only the part below the output layer.
    """
    lock = threading.RLock()
    for module in (model, model.base_model):
        module.forward = _locked(module.forward, lock)


def _locked(forward: Any, lock: Any) -> Any:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return forward(*args, **kwargs)

    return run
