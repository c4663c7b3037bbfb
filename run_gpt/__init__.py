"""RunGPT serves large language models over gRPC and HTTP, and gives the same calls in Python.

The names are loaded on first use, so importing this package takes almost no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from run_gpt.client import Client
    from run_gpt.local.create import create_model
    from run_gpt.local.model import Model

__all__ = ["Client", "Model", "__version__", "create_model"]

_HOME = {"Client": "run_gpt.client", "Model": "run_gpt.local.model", "create_model": "run_gpt.local.create"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("rungpt")
    if name in _HOME:
        from run_gpt.process.imports import large_imports

        with large_imports():
            return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
