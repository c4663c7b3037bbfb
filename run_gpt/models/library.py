"""The command line's operations on models: list, pull, show, remove."""

import json
from dataclasses import dataclass
from pathlib import Path

from run_gpt.errors import ModelNotFound
from run_gpt.models.cache import ModelCache, folder_bytes
from run_gpt.models.catalogue import CATALOGUE, CatalogueEntry, HubSource, find
from run_gpt.models.convert import catalogue_key, converted_key, converted_record, file_identity
from run_gpt.models.files import ModelFiles, fetch_entry, path_of, unknown_model
from run_gpt.models.gguf.parts import model_stem
from run_gpt.models.hub import cached_snapshot, fetch_from_hub, hub_bytes, hub_key, is_hub_id, remove_from_hub_cache
from run_gpt.models.paths import gguf_files, is_explicit_path, is_gguf, local_path, path_name
from run_gpt.models.progress import OnProgress, no_progress


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """One row of `rungpt models list`."""

    name: str
    description: str
    licence: str | None
    """Licence of the model; None if it is not known, as for a model that is not in the catalogue."""
    parameters: int | None
    download_bytes: int | None
    source: str
    """Origin of the files: a wheel, a hub id or a file."""
    aliases: tuple[str, ...]
    cached: bool
    """True when the model can be loaded without a download."""
    disk_bytes: int
    """Bytes that the model takes on this disk, unfinished downloads included."""
    folder: Path | None
    """Folder of the files that are ready to load, or None."""


def list_models(cache_dir: Path | None = None) -> list[ModelInfo]:
    """List the catalogue's models, then the other models in the cache (hub ids, converted GGUF files)."""
    cache = ModelCache(cache_dir)
    return [_entry_info(cache, entry) for entry in CATALOGUE] + _others(cache)


def show(name: str, cache_dir: Path | None = None) -> ModelInfo:
    """Return all that is known about one model, or about a folder or GGUF file. Raises ModelNotFound."""
    cache = ModelCache(cache_dir)
    if (path := path_of(name)) is not None:
        return _local_info(cache, local_path(path))
    entry = find(name)
    if entry is not None:
        return _entry_info(cache, entry)
    for info in _others(cache):
        if name in (info.name, info.source):
            return info
    if is_hub_id(name):
        raise ModelNotFound(f"{name} is not in the cache: `rungpt models pull {name}` fetches it from the hub")
    raise unknown_model(name)


def pull(
    name: str, cache_dir: Path | None = None, *, allow_pickle: bool = False, on_progress: OnProgress = no_progress
) -> ModelFiles:
    """Fetch a model of the catalogue or the hub. For a hub model that is already here, fetch its newest version.

    Raises ModelNotFound, DownloadError, ModelLoadError, ChecksumMismatch.
    """
    if path_of(name) is not None:
        raise ModelNotFound(
            f"{name} is a path, and only models of the catalogue and the hub are fetched: serve it as it is"
        )
    cache = ModelCache(cache_dir)
    entry = find(name)
    if entry is not None:
        folder = fetch_entry(cache, entry, allow_pickle=allow_pickle, again=True, on_progress=on_progress)
        return ModelFiles(entry.name, folder)
    if not is_hub_id(name):
        raise unknown_model(name)
    folder = fetch_from_hub(cache, name, allow_pickle=allow_pickle, again=True, on_progress=on_progress)
    return ModelFiles(name, folder)


def remove(name: str, cache_dir: Path | None = None) -> int:
    """Delete a model's files from the cache, unfinished downloads too; return the bytes freed, 0 if there were none.

    A model's own folder or GGUF file outside the cache is kept. Raises ModelNotFound.
    """
    cache = ModelCache(cache_dir)
    entry = None if is_explicit_path(name) else find(name)
    if entry is not None and isinstance(entry.source, HubSource):
        return remove_from_hub_cache(cache, entry.source.repo)
    if entry is not None:
        return sum(cache.remove(key) for key in _entry_keys(cache, entry))
    if is_hub_id(name):
        return remove_from_hub_cache(cache, name)
    wanted = {name, str(local_path(name))}
    keys = [key for key in cache.keys("converted") if wanted & {*_names_of(cache, key)}]
    if not keys:
        raise unknown_model(name)
    return sum(cache.remove(key) for key in keys)


def _local_info(cache: ModelCache, local: Path) -> ModelInfo:
    """Return what is known of a folder, or of a GGUF file, which has a folder in the cache once it was served."""
    if not local.exists():
        raise ModelNotFound(f"there is no file or folder {local}", param="model")
    file = (
        gguf_files(local)[0] if local.is_dir() and not (local / "config.json").exists() and gguf_files(local) else local
    )
    if not is_gguf(file):
        if not (local / "config.json").is_file():
            raise ModelNotFound(f"{local} is no model: give a folder with a config.json, or a GGUF file", param="model")
        disk = sum(one.stat().st_size for one in local.iterdir() if one.is_file())
        return _other(path_name(local), "a folder on this disk", str(local), disk, local)
    converted = cache.get(converted_key(model_stem(file), file_identity(file)))
    return _other(path_name(local), "a GGUF file on this disk", str(file), file.stat().st_size, converted, cached=True)


def _names_of(cache: ModelCache, key: str) -> tuple[str, str]:
    record = converted_record(cache.root / key)
    return record["name"], record["source"]


def _entry_keys(cache: ModelCache, entry: CatalogueEntry) -> list[str]:
    """Return the cache keys of a wheel's entry: its GGUF file, and its conversions by this and earlier versions."""
    prefix = f"converted/{entry.name}-"
    own = [key for key in cache.keys("converted") if key.startswith(prefix) and _names_of(cache, key)[0] == entry.name]
    return [f"files/{entry.name}", *own]


def _entry_info(cache: ModelCache, entry: CatalogueEntry) -> ModelInfo:
    if isinstance(entry.source, HubSource):
        source = entry.source.repo
        folder = cached_snapshot(cache, source, allow_pickle=True)
        disk = hub_bytes(cache, source)
    else:
        source = entry.source.requirement
        folder = cache.get(catalogue_key(entry.name, entry.source.sha256))
        disk = sum(folder_bytes(cache.root / key) for key in _entry_keys(cache, entry))
    return ModelInfo(
        name=entry.name,
        description=entry.description,
        licence=entry.licence,
        parameters=entry.parameters,
        download_bytes=entry.bytes,
        source=source,
        aliases=entry.names[1:],
        cached=folder is not None,
        disk_bytes=disk,
        folder=folder,
    )


def _others(cache: ModelCache) -> list[ModelInfo]:
    """List the models in the cache that are not in the catalogue."""
    repos = [
        json.loads(record.read_text())["name"]
        for key in cache.keys("files")
        if (record := cache.root / key / "hub.json").is_file()
    ]
    others = [
        _other(repo, "from the hub", repo, hub_bytes(cache, repo), cached_snapshot(cache, repo, allow_pickle=True))
        for repo in repos
        if find(repo) is None and cache.get(hub_key(repo)) is not None
    ]
    for key in cache.keys("converted"):
        name, source = _names_of(cache, key)
        if find(name) is None:
            folder = cache.root / key
            others.append(_other(name, "converted from a GGUF file", source, folder_bytes(folder), folder))
    return others


def _other(
    name: str, description: str, source: str, disk: int, folder: Path | None, *, cached: bool = False
) -> ModelInfo:
    return ModelInfo(
        name=name,
        description=description,
        licence=None,
        parameters=None,
        download_bytes=None,
        source=source,
        aliases=(),
        cached=cached or folder is not None,
        disk_bytes=disk,
        folder=folder,
    )
