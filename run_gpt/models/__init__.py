"""Finding, fetching and loading models and tokenizers. Each name is imported when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from run_gpt.models.catalogue import CATALOGUE, CatalogueEntry, find, near_matches
    from run_gpt.models.chat_template import render_chat
    from run_gpt.models.files import ModelFiles, fetch, own_name, served_name, served_names
    from run_gpt.models.library import ModelInfo, list_models, pull, remove, show
    from run_gpt.models.loading import LoadedModel, load
    from run_gpt.models.progress import OnProgress, no_progress

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

_HOME = {
    "catalogue": ("CATALOGUE", "CatalogueEntry", "find", "near_matches"),
    "chat_template": ("render_chat",),
    "files": ("ModelFiles", "fetch", "own_name", "served_name", "served_names"),
    "library": ("ModelInfo", "list_models", "pull", "remove", "show"),
    "loading": ("LoadedModel", "load"),
    "progress": ("OnProgress", "no_progress"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"run_gpt.models.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
