"""Finding, fetching and loading models and tokenizers. Importing this imports neither torch nor transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from run_gpt.models.catalogue import CATALOGUE, CatalogueEntry, find, near_matches
from run_gpt.models.chat_template import render_chat
from run_gpt.models.files import ModelFiles, fetch, own_name, served_name, served_names
from run_gpt.models.library import ModelInfo, list_models, pull, remove, show
from run_gpt.models.progress import OnProgress, no_progress

if TYPE_CHECKING:
    from run_gpt.models.loading import LoadedModel, load

__all__ = [
    "CATALOGUE",
    "CatalogueEntry",
    "LoadedModel",
    "ModelFiles",
    "ModelInfo",
    "OnProgress",
    "fetch",
    "find",
    "list_models",
    "load",
    "near_matches",
    "no_progress",
    "own_name",
    "pull",
    "remove",
    "render_chat",
    "served_name",
    "served_names",
    "show",
]


def __getattr__(name: str) -> Any:
    if name in ("LoadedModel", "load"):
        return getattr(import_module("run_gpt.models.loading"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
