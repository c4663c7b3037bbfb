"""The hub's own cache on this disk, which every program that uses the hub shares: what it holds, and its removal.

Nothing here imports huggingface_hub but the removal, so that a list of models needs no such import.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from run_gpt.errors import ModelLoadError
from run_gpt.models.cache import ModelCache, folder_bytes
from run_gpt.models.hub_files import gguf_models, is_needed, is_weights, is_whole, wanted
from run_gpt.models.hub_names import HubName
from run_gpt.models.paths import is_gguf, local_path

_RECORD = "hub.json"
_MAIN = "main"


def hub_cache() -> Path:
    """Return the hub's cache folder: $HF_HUB_CACHE, else `hub` in $HF_HOME, else `~/.cache/huggingface/hub`.

    Raises ModelLoadError for a user without a home folder.
    """
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    try:
        return local_path(os.path.expandvars(given or os.path.join(home, "hub")))
    except ModelLoadError as error:
        raise ModelLoadError(f"{home}: this user has no home folder: set HF_HOME to a whole path") from error


def hub_key(repo: str) -> str:
    """Return the cache key of a repository: of its lock, and of the record of an earlier version's download."""
    return f"files/{repo.replace('/', '--')}"


def storage(root: Path, repo: str) -> Path:
    """Return the folder of a repository in a cache of the hub's layout."""
    return root / f"models--{repo.replace('/', '--')}"


def cached_snapshot(cache: ModelCache, name: HubName, *, allow_pickle: bool = False) -> Path | None:
    """Return the folder of a complete download, or its GGUF file, without network access; None if there is none.

    It may be another program's download. An earlier version's download into our own cache is found as well.
    """
    folder = snapshot_folder(name)
    chosen = None if folder is None else _chosen(folder, name, allow_pickle)
    if folder is not None and chosen is not None:
        return located(folder, chosen)
    return _earlier(cache, name, allow_pickle)


def located(folder: Path, chosen: list[str]) -> Path:
    """Return the path to load of a snapshot with the `chosen` files: the folder, or a GGUF file (its first part)."""
    return folder / chosen[0] if is_gguf(chosen[0]) else folder


def snapshot_folder(name: HubName) -> Path | None:
    """Return the folder of a revision in the hub's cache, complete or not; None if there is none."""
    root = storage(hub_cache(), name.repo)
    reference = root / "refs" / (name.revision or _MAIN)
    commit = reference.read_text().strip() if reference.is_file() else name.revision
    folder = root / "snapshots" / commit if commit else None
    return folder if folder is not None and folder.is_dir() else None


def missing_files(name: HubName, *, allow_pickle: bool) -> list[str]:
    """Return the files that the copy on this disk is known to lack; empty for no copy, or one that lacks none."""
    folder = snapshot_folder(name)
    names = None if folder is None else _listed(folder)
    if folder is None or names is None:
        return []
    return [file for file in wanted(names, name, allow_pickle=allow_pickle) if not (folder / file).is_file()]


def hub_models(cache: ModelCache) -> Iterator[tuple[HubName, Path]]:
    """Yield the models in the hub's cache, and those that an earlier version fetched into ours.

    Each comes with its folder or its GGUF file (the first part).
    """
    for record in sorted(cache.root.glob(f"files/*/{_RECORD}")):
        name = HubName(json.loads(record.read_text())["name"])
        if snapshot_folder(name) is None and (folder := _earlier(cache, name, True)) is not None:
            yield name, folder
    for snapshot in sorted(hub_cache().glob("models--*--*/snapshots/*")):
        repo = snapshot.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        for name in _names_in(snapshot, repo):
            found = cached_snapshot(cache, name, allow_pickle=True)
            if found is not None and (found.is_file() or (found / "config.json").is_file()):
                yield name, found


def _names_in(snapshot: Path, repo: str) -> list[HubName]:
    """Return the names of the models in a snapshot: its own, and one for each GGUF file."""
    revision = _revision(snapshot)
    files = [str(file.relative_to(snapshot)) for file in snapshot.rglob("*") if file.is_file()]
    named = [HubName(repo, revision, model.label) for model in gguf_models(files)]
    return (
        named
        if named and not any(file.endswith(".safetensors") for file in files)
        else [HubName(repo, revision), *named]
    )


def hub_bytes(cache: ModelCache, name: HubName) -> int:
    """Return the bytes that a revision's files take on disk, unfinished downloads included."""
    folder, unfinished = snapshot_folder(name), storage(hub_cache(), name.repo).glob("blobs/*.incomplete")
    files = [] if folder is None else [file for file in folder.rglob("*") if file.is_file()]
    if folder is not None and name.gguf:
        files = [folder / file for file in _chosen(folder, name, False) or []]
    held = {file.resolve(): file.stat().st_size for file in files}
    return sum(held.values()) + sum(file.stat().st_size for file in unfinished) + _earlier_bytes(cache, name)


def remove_from_hub_cache(cache: ModelCache, name: HubName) -> int:
    """Delete a revision of a repository, or one of its GGUF files; return the bytes freed.

    Files that another revision shares stay, and so does every other revision. With the last one goes the whole
    repository, unfinished downloads too.
    """
    root = storage(hub_cache(), name.repo)
    before = folder_bytes(root) if root.is_dir() else 0
    if root.is_dir() and not (name.gguf and _removed_file(root, name)):
        _remove_revision(root, name)
    freed = before - (folder_bytes(root) if root.is_dir() else 0)
    if name.revision is None and name.gguf is None:
        earlier = storage(cache.hub, name.repo)
        freed += _earlier_bytes(cache, name)
        shutil.rmtree(earlier, ignore_errors=True)
        freed += cache.remove(hub_key(name.repo))
    return freed


def _chosen(folder: Path, name: HubName, allow_pickle: bool) -> list[str] | None:
    """Return the files of a model in a snapshot; None if it lacks some that change answers."""
    here = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]
    listed = _listed(folder)
    try:
        chosen = wanted(listed or here, name, allow_pickle=allow_pickle)
    except ModelLoadError:
        return None
    required = {file for file in chosen if is_weights(file) or is_needed(file)}
    return chosen if required <= set(here) and is_whole(here, chosen) else None


def _listed(folder: Path) -> list[str] | None:
    """Return all files of a snapshot's revision, which newer versions of the hub's library note; None if not noted."""
    try:
        listed = json.loads((folder.parent.parent / "trees" / f"{folder.name}.json").read_text(encoding="utf-8"))
        return list(listed["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _revision(snapshot: Path) -> str | None:
    """Return the branch or tag of a snapshot, else its commit; None for `main`."""
    refs = snapshot.parent.parent / "refs"
    names = [str(file.relative_to(refs)) for file in sorted(refs.rglob("*")) if file.is_file()]
    known = [name for name in names if (refs / name).read_text().strip() == snapshot.name]
    return None if _MAIN in known else next(iter(known), snapshot.name)


def _removed_file(root: Path, name: HubName) -> bool:
    """Delete a GGUF file and its blobs; return False, and delete nothing, if the snapshot has no other weights."""
    folder = snapshot_folder(name)
    chosen = None if folder is None else _chosen(folder, name, False)
    if folder is None or chosen is None:
        return True
    others = [
        file for file in folder.rglob("*") if is_weights(file.name) and str(file.relative_to(folder)) not in chosen
    ]
    if not others:
        return False
    for file in (folder / part for part in chosen):
        blob = file.resolve()
        file.unlink()
        if not any(other.resolve() == blob for other in root.glob("snapshots/**/*") if other.is_file()):
            blob.unlink(missing_ok=True)
    return True


def _remove_revision(root: Path, name: HubName) -> None:
    from huggingface_hub import scan_cache_dir

    if not any(root.glob("snapshots/*/*")):  # only parts of a first download
        shutil.rmtree(root, ignore_errors=True)
    elif (folder := snapshot_folder(name)) is not None:
        scan_cache_dir(root.parent).delete_revisions(folder.name).execute()


def _earlier(cache: ModelCache, name: HubName, allow_pickle: bool) -> Path | None:
    """Return the folder that an earlier version of RunGPT fetched into its own cache, or None."""
    record = cache.get(hub_key(name.repo))
    if record is None or name.revision or name.gguf or not (record / _RECORD).is_file():
        return None
    data = json.loads((record / _RECORD).read_text())
    folder = cache.root / data["folder"]
    return folder if folder.is_dir() and (allow_pickle or not data["pickled"]) else None


def _earlier_bytes(cache: ModelCache, name: HubName) -> int:
    folder = storage(cache.hub, name.repo)
    return folder_bytes(folder) if folder.is_dir() and name.revision is None else 0
