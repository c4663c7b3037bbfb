"""Download of a repository of the Hugging Face hub into the hub's own cache, through huggingface_hub.

So a model that another program fetched is not fetched again, and the variables of the hub's library hold: HF_HOME,
HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from run_gpt.errors import DownloadError, ModelNotFound
from run_gpt.models.cache import ModelCache, is_disk_full, require_space
from run_gpt.models.hub_cache import cached_snapshot, hub_cache, hub_key, located, missing_files, storage
from run_gpt.models.hub_files import wanted
from run_gpt.models.hub_names import HubName
from run_gpt.models.progress import OnProgress

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_VARIABLE = "HF_HUB_CACHE"


def fetch_from_hub(
    cache: ModelCache, name: HubName, *, allow_pickle: bool, again: bool, on_progress: OnProgress, why: str = "model"
) -> Path:
    """Return the local folder of a repository, or its GGUF file (the first part), fetched if needed.

    Safetensors are fetched, or pickled weights if `allow_pickle` and there are no others. A complete earlier download
    is used as it is, also one of another program, unless `again` and HF_HUB_OFFLINE is not set. Raises ModelNotFound,
    DownloadError, ModelLoadError.
    """
    again = again and not _is_offline()
    found = cached_snapshot(cache, name, allow_pickle=allow_pickle)
    if found is not None and not again:
        return found
    with cache.locked(hub_key(name.repo), on_progress):
        found = cached_snapshot(cache, name, allow_pickle=allow_pickle)
        if found is not None and not again:
            return found
        return _fetch(name, allow_pickle, on_progress, why)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _fetch(name: HubName, allow_pickle: bool, on_progress: OnProgress, why: str) -> Path:
    info = _info(name, why, allow_pickle)
    names = wanted([file.rfilename for file in info.siblings or ()], name, allow_pickle=allow_pickle)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    total = sum(sizes[file] for file in names)
    root = hub_cache()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(
            f"cannot write to the hub's cache {root} ({error.strerror}): set {_VARIABLE} to another folder"
        ) from error
    require_space(root, total - _have(root, name, info, names), str(name), _VARIABLE)
    return located(_download(root, name, names, total, on_progress), names)


def _have(root: Path, name: HubName, info: "ModelInfo", names: list[str]) -> int:
    """Return the bytes of the wanted files that are on this disk, and of unfinished ones."""
    folder = storage(root, name.repo)
    there = [folder / "snapshots" / (info.sha or "") / file for file in names]
    files = [*there, *folder.glob("blobs/*.incomplete")]
    return sum(file.stat().st_size for file in files if file.is_file())


def _info(name: HubName, why: str, allow_pickle: bool) -> "ModelInfo":
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo = name.repo
    try:
        return HfApi().model_info(repo, revision=name.revision, files_metadata=True)
    except GatedRepoError as error:
        raise _gated(repo) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(f"{repo} has no revision {name.revision!r}: {_revisions(repo)}") from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"the hub has no {why} {repo!r} (or it is private: set HF_TOKEN); see `rungpt models list`"
        ) from error
    except OfflineModeIsEnabled as error:
        raise DownloadError(_offline(name, allow_pickle)) from error
    except Exception as error:  # the hub library raises its own and its HTTP library's classes, which may change
        raise _network_error(name, error) from error


def _gated(repo: str) -> DownloadError:
    return DownloadError(
        f"{repo} asks for consent: accept its terms at https://huggingface.co/{repo}, then set HF_TOKEN"
    )


def _revisions(repo: str) -> str:
    """Return the branches and tags of a repository, for an error."""
    from huggingface_hub import HfApi

    try:
        refs = HfApi().list_repo_refs(repo)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
    except Exception:  # the list is only a help, and a network that fails now is no other error
        names = []
    return f"it has {', '.join(names)}" if names else "give a branch, a tag or a commit of it"


def _offline(name: HubName, allow_pickle: bool) -> str:
    lacking = missing_files(name, allow_pickle=allow_pickle)
    state = f"lacks {lacking[0]} in the hub's cache" if lacking else "is not in the hub's cache"
    return (
        f"{name} {state} {hub_cache()}, and HF_HUB_OFFLINE forbids to fetch it: unset it and run "
        f"`rungpt models pull {name}`, or set HF_HOME to the folder that has it"
    )


def _download(root: Path, name: HubName, names: list[str], total: int, on_progress: OnProgress) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    try:
        folder = snapshot_download(
            name.repo,
            revision=name.revision,
            cache_dir=root,
            allow_patterns=names,
            tqdm_class=_bar_class(f"Downloading {name}", total, on_progress),
        )
    except GatedRepoError as error:  # its list of files is public
        raise _gated(name.repo) from error
    except Exception as error:
        if is_disk_full(error):
            require_space(root, total, str(name), _VARIABLE)
        raise _network_error(name, error) from error
    on_progress(f"Downloading {name}", total, total)
    return Path(folder)


def _network_error(name: HubName, error: Exception) -> DownloadError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return DownloadError(
        f"cannot fetch {name} from the hub ({reason}): check the network (HF_ENDPOINT, HTTPS_PROXY), or use a model "
        "that is in the cache (`rungpt models list`); what is already here is kept"
    )


def _bar_class(step: str, total: int, on_progress: OnProgress) -> type[Any]:
    """Return a tqdm class that draws nothing and reports the bytes written; the hub library creates several bars."""
    from tqdm.std import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any):
            self._written = kwargs.get("unit") == "B" and str(kwargs.get("desc")).startswith("Reconstructing")
            super().__init__(*args, **{**kwargs, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            answer: bool | None = super().update(n)
            if self._written:
                on_progress(step, min(int(self.n), total), total)
            return answer

    return Bar
