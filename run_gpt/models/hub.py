"""Download of a repository of the Hugging Face hub into our cache, through huggingface_hub.

Our own cache folder is used, in the hub library's layout so that downloads resume, instead of the hub's cache. Thus
one folder, one variable and one volume hold every model, and `rungpt models rm` deletes nothing that another program
fetched.
"""

import io
import json
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from run_gpt.errors import DownloadError, ModelLoadError, ModelNotFound
from run_gpt.models.cache import ModelCache, folder_bytes, require_space
from run_gpt.models.paths import is_gguf
from run_gpt.models.progress import OnProgress

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMON = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py")  # code is fetched, but run only on request
_PICKLED = ("pytorch_model*.bin", "adapter_model.bin")
# These are second copies of the weights in other layouts.
_NOT_WANTED = ("consolidated*", "original/*", "onnx/*", "openvino/*", "runs/*")
_RECORD = "hub.json"


def is_hub_id(name: str) -> bool:
    """Return True if `name` has the form `organisation/model`."""
    return _HUB_ID.fullmatch(name) is not None and not is_gguf(name)


def hub_key(repo: str) -> str:
    """Return the cache key of a repository's record."""
    return f"files/{repo.replace('/', '--')}"


def cached_snapshot(cache: ModelCache, repo: str, *, allow_pickle: bool = False) -> Path | None:
    """Return the folder of a complete download, without network access; None if there is none."""
    record = cache.get(hub_key(repo))
    if record is None:
        return None
    data = json.loads((record / _RECORD).read_text())
    folder = cache.root / data["folder"]
    return folder if folder.is_dir() and (allow_pickle or not data["pickled"]) else None


def fetch_from_hub(
    cache: ModelCache, repo: str, *, allow_pickle: bool, again: bool, on_progress: OnProgress, why: str = "model"
) -> Path:
    """Return the local folder of `repo`, fetched if needed.

    Safetensors are fetched, or pickled weights if `allow_pickle` and there are no others. A complete earlier download
    is used as it is, unless `again`. Raises ModelNotFound, DownloadError, ModelLoadError.
    """
    found = cached_snapshot(cache, repo, allow_pickle=allow_pickle)
    if found is not None and not again:
        return found

    def fill(folder: Path) -> None:
        info = _info(repo, why)
        names = _wanted(info, allow_pickle=allow_pickle)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        total = sum(sizes[name] for name in names)
        cache.hub.mkdir(parents=True, exist_ok=True)
        require_space(cache.hub, total - _have(cache, repo), repo)
        snapshot = _download(cache, repo, info.sha, names, total, on_progress)
        record = {
            "name": repo,
            "folder": str(snapshot.relative_to(cache.root)),
            "pickled": any(_matches(name, _PICKLED) for name in names),
        }
        (folder / _RECORD).write_text(json.dumps(record))

    cache.ensure(hub_key(repo), fill, again=True, on_progress=on_progress)
    folder = cached_snapshot(cache, repo, allow_pickle=allow_pickle)
    if folder is None:
        raise ModelLoadError(f"{cache.hub} no longer holds {repo}: run `rungpt models pull {repo}`")
    return folder


def remove_from_hub_cache(cache: ModelCache, repo: str) -> int:
    """Delete all files of `repo` from the cache, unfinished downloads too; return the bytes freed."""
    folder = _storage(cache, repo)
    size = folder_bytes(folder) if folder.is_dir() else 0
    shutil.rmtree(folder, ignore_errors=True)
    return size + cache.remove(hub_key(repo))


def hub_bytes(cache: ModelCache, repo: str) -> int:
    """Return the bytes that the cache's files of `repo` take on disk."""
    return folder_bytes(_storage(cache, repo))


def _storage(cache: ModelCache, repo: str) -> Path:
    return cache.hub / f"models--{repo.replace('/', '--')}"


def _have(cache: ModelCache, repo: str) -> int:
    """Return the bytes of `repo` that an earlier attempt has already fetched."""
    folder = _storage(cache, repo) / "blobs"
    return folder_bytes(folder) if folder.is_dir() else 0


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _info(repo: str, why: str) -> "ModelInfo":
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return HfApi().model_info(repo, files_metadata=True)
    except GatedRepoError as error:
        raise DownloadError(
            f"{repo} asks for consent: accept its terms at https://huggingface.co/{repo}, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"the hub has no {why} {repo!r} (or it is private: set HF_TOKEN); see `rungpt models list`"
        ) from error
    except Exception as error:  # the hub library raises its own and its HTTP library's classes, which may change
        raise _network_error(repo, error) from error


def _wanted(info: "ModelInfo", *, allow_pickle: bool) -> list[str]:
    """Return the names of the files to fetch. Raises ModelLoadError if no weights of an allowed kind are there."""
    names = [file.rfilename for file in info.siblings or () if not _matches(file.rfilename, _NOT_WANTED)]
    weights = [name for name in names if name.endswith(".safetensors")]
    pickled = [name for name in names if _matches(name, _PICKLED)]
    if not weights and pickled and not allow_pickle:
        raise ModelLoadError(
            f"{info.id} has only pickled weights, which can run any code when loaded: if you trust it, set "
            "allow_pickle=True (--allow-pickle)"
        )
    if not weights and not pickled:
        raise ModelLoadError(
            f"{info.id} has no safetensors weights; of a GGUF repository, download one file and give its path"
        )
    return [name for name in names if _matches(name, _COMMON)] + (weights or pickled)


def _download(
    cache: ModelCache, repo: str, revision: str | None, names: list[str], total: int, on_progress: OnProgress
) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            cache_dir=cache.hub,
            allow_patterns=names,
            tqdm_class=_bar_class(f"Downloading {repo}", total, on_progress),
        )
    except Exception as error:
        raise _network_error(repo, error) from error
    on_progress(f"Downloading {repo}", total, total)
    return Path(folder)


def _network_error(repo: str, error: Exception) -> DownloadError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return DownloadError(
        f"cannot fetch {repo} from the hub ({reason}): check the network (HF_ENDPOINT, HTTPS_PROXY), or use a model "
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
