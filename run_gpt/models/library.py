"""The command line's operations on models: list, pull, show, remove."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from run_gpt.errors import ModelNotFound
from run_gpt.models.cache import ModelCache, folder_bytes
from run_gpt.models.catalogue import CATALOGUE, CatalogueEntry, HubSource, find
from run_gpt.models.convert import catalogue_key, converted_key, converted_record, file_identity
from run_gpt.models.files import ModelFiles, entry_of, fetch_hub, fetch_wheel, hub_name, path_of, unknown_model
from run_gpt.models.gguf.parts import model_stem
from run_gpt.models.hub_cache import cached_snapshot, hub_bytes, hub_cache, hub_models, remove_from_hub_cache, storage
from run_gpt.models.hub_names import HubName
from run_gpt.models.packed_files import packed_sources
from run_gpt.models.paths import gguf_files, is_gguf, local_path, path_name
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
    """Bytes that the model takes on this disk, unfinished downloads and packed weights included."""
    folder: Path | None
    """Folder of the files that are ready to load, a GGUF file that is not converted yet, or None."""


def list_models(cache_dir: Path | None = None) -> list[ModelInfo]:
    """List the catalogue's models, then the other models in the cache (hub ids, converted GGUF files)."""
    cache = ModelCache(cache_dir)
    return list(_with_packed(cache, [*(_entry_info(cache, entry) for entry in CATALOGUE), *_others(cache)]))


def show(name: str, cache_dir: Path | None = None) -> ModelInfo:
    """Return all that is known about one model, or about a folder or GGUF file. Raises ModelNotFound."""
    cache = ModelCache(cache_dir)
    return next(_with_packed(cache, [_show(cache, name)]))


def _show(cache: ModelCache, name: str) -> ModelInfo:
    if path_of(name) is not None:
        return _local_info(cache, local_path(name))
    hub = HubName.parse(name)
    name = str(hub or name)
    entry = find(name)
    if entry is not None:
        return _entry_info(cache, entry)
    for info in _others(cache):
        if info.name == name:
            return info
    if hub is not None:
        if (found := cached_snapshot(cache, hub, allow_pickle=True)) is not None:
            return _hub_info(cache, hub, found)
        raise ModelNotFound(f"{name} is not in the cache: `rungpt models pull {name}` fetches it from the hub")
    raise unknown_model(name)


def pull(
    name: str,
    cache_dir: Path | None = None,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    on_progress: OnProgress = no_progress,
) -> ModelFiles:
    """Fetch a model of the catalogue or the hub. For a hub model that is already here, fetch its newest version.

    `revision`: branch, tag or commit; default: the newest, or the one that the catalogue pins. Raises ModelNotFound,
    DownloadError, ModelLoadError, ChecksumMismatch.
    """
    if path_of(name) is not None:
        raise ModelNotFound(
            f"{name} is a path, and only models of the catalogue and the hub are fetched: serve it as it is"
        )
    cache = ModelCache(cache_dir)
    hub, entry = hub_name(cache, name, revision), entry_of(name)
    if hub is not None:
        folder = fetch_hub(cache, hub, allow_pickle=allow_pickle, again=True, on_progress=on_progress)
        return ModelFiles(entry.name if entry is not None else str(hub), folder)
    if entry is not None:
        return ModelFiles(entry.name, fetch_wheel(cache, entry, on_progress=on_progress))
    raise unknown_model(name)


def remove(name: str, cache_dir: Path | None = None) -> int:
    """Delete a model's files from the cache, unfinished downloads too; return the bytes freed, 0 if there were none.

    Of a model of the hub one revision is deleted, from the cache that other programs use too; other revisions stay. A
    model's own folder or GGUF file outside the cache is kept; its conversion and its packed weights are deleted. Raises
    ModelNotFound.
    """
    cache = ModelCache(cache_dir)
    own = str(local_path(name).absolute()) if path_of(name) is not None else None
    packed = [key for key, source in packed_sources(cache).items() if str(source) == own]
    freed = sum(cache.remove(key) for key in packed)
    try:
        freed += _remove_files(cache, name)
    except ModelNotFound:
        if not packed:
            raise
    gone = [key for key, source in packed_sources(cache).items() if not source.exists()]
    return freed + sum(cache.remove(key) for key in gone)


def _remove_files(cache: ModelCache, name: str) -> int:
    """Delete a model's files, but not its packed weights; see `remove`."""
    hub, entry = hub_name(cache, name), entry_of(name)
    if hub is not None:
        return remove_from_hub_cache(cache, hub) + _remove_conversions(cache, storage(hub_cache(), hub.repo))
    if entry is not None:
        return sum(cache.remove(key) for key in _entry_keys(cache, entry))
    wanted = {name, str(local_path(name))}
    keys = [key for key in cache.keys("converted") if wanted & {*_names_of(cache, key)}]
    if not keys:
        raise unknown_model(name)
    return sum(cache.remove(key) for key in keys)


def _with_packed(cache: ModelCache, models: list[ModelInfo]) -> Iterator[ModelInfo]:
    """Add the bytes of the models' packed weights to what they take on this disk."""
    sources = packed_sources(cache)
    for model in models:
        keys = [key for key, source in sources.items() if source == model.folder]
        packed = sum(folder_bytes(cache.root / key) for key in keys)
        yield replace(model, disk_bytes=model.disk_bytes + packed)


def _remove_conversions(cache: ModelCache, folder: Path) -> int:
    """Delete the conversions of GGUF files that were in `folder`; return the bytes freed."""
    sources = {key: Path(_names_of(cache, key)[1]) for key in cache.keys("converted")}
    gone = [key for key, source in sources.items() if folder in source.parents and not source.exists()]
    return sum(cache.remove(key) for key in gone)


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
    folder = cache.get(converted_key(model_stem(file), file_identity(file))) or file
    return _other(path_name(local), "a GGUF file on this disk", str(file), file.stat().st_size, folder)


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
        name = hub_name(cache, entry.name) or HubName(entry.source.repo)
        source = str(name)
        folder = cached_snapshot(cache, name, allow_pickle=True)
        disk = hub_bytes(cache, name)
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
    found = [(name, path) for name, path in hub_models(cache) if find(str(name)) is None]
    hub = sorted(found, key=lambda one: str(one[0]))
    others = [_hub_info(cache, name, path) for name, path in hub]
    fetched = {str(path) for _, path in hub}
    for key in cache.keys("converted"):
        name, source = _names_of(cache, key)
        if find(name) is None and source not in fetched:
            folder = cache.root / key
            others.append(_other(name, "converted from a GGUF file", source, folder_bytes(folder), folder))
    return others


def _hub_info(cache: ModelCache, name: HubName, path: Path) -> ModelInfo:
    """Return the information on a model in the hub's cache; `path`: its folder or GGUF file."""
    conversions = [cache.root / key for key in cache.keys("converted") if _names_of(cache, key)[1] == str(path)]
    folder = path if path.is_dir() else next(iter(conversions), path)
    disk = hub_bytes(cache, name) + sum(folder_bytes(conversion) for conversion in conversions)
    return _other(str(name), "from the hub", str(name), disk, folder)


def _other(name: str, description: str, source: str, disk: int, folder: Path) -> ModelInfo:
    return ModelInfo(
        name=name,
        description=description,
        licence=None,
        parameters=None,
        download_bytes=None,
        source=source,
        aliases=(),
        cached=True,
        disk_bytes=disk,
        folder=folder,
    )
