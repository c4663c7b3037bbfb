"""`Adapters`: the LoRA adapters of a local model, with its default adapter."""

import time
import uuid

from run_gpt.api.adapters import AdapterList, LoadAdapterRequest, UnloadAdapterRequest
from run_gpt.api.schema import BASE
from run_gpt.config import ModelConfig
from run_gpt.engine.interface import Engine
from run_gpt.errors import InvalidRequest, ModelNotFound, SetupError
from run_gpt.models.adapter_base import AdapterBase
from run_gpt.models.adapters import read_adapter
from run_gpt.models.files import adapter_folder, default_adapter


class Adapters:
    """Adapters of one engine. Its methods may be called from any thread."""

    def __init__(self, engine: Engine, config: ModelConfig, base: AdapterBase | None = None):
        """`base`: the model that adapters must fit; see `read_adapter`."""
        self._engine, self._config, self._base = engine, config, base
        self._default = default_adapter(config)

    def named(self, name: str | None) -> str | None:
        """Return the engine's name of the adapter for a request: the named one, or the default. None: the model."""
        return self._default if name is None else None if name == BASE else name

    def change(self, request: LoadAdapterRequest | UnloadAdapterRequest | None, model: str) -> AdapterList:
        """Load or unload an adapter, if `request` asks for it, and list them all. Blocks.

        `model`: name of the served model. Raises InvalidRequest, ModelNotFound, Unavailable.
        """
        if isinstance(request, LoadAdapterRequest):
            self._load(request.name, request.path)
        elif isinstance(request, UnloadAdapterRequest):
            self._engine.unload_adapter(request.name)
            if request.name == self._default:
                self._default = None
        return AdapterList(
            id=f"adpt-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=model,
            adapters=list(self._engine.adapters),
            default=self._default,
        )

    def _load(self, name: str, path: str) -> None:
        if name == BASE:
            raise InvalidRequest(f"name = {name!r}: that is the model itself", param="name")
        try:
            folder = adapter_folder(path, self._config)
            weights = read_adapter(folder, base=self._base, allow_pickle=self._config.allow_pickle)
        except (SetupError, ModelNotFound) as error:
            raise InvalidRequest(f"path: {error.message}", param="path") from error
        self._engine.load_adapter(name, weights)
