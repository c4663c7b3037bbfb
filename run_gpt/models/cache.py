"""Cache of models on disk: complete folders, each put in place at once, by one process at a time."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from run_gpt.errors import DownloadError
from run_gpt.models.progress import OnProgress, no_progress
from run_gpt.models.sizes import size_text


def cache_root(cache_dir: Path | None = None) -> Path:
    """Return the cache folder: `cache_dir`, else $RUNGPT_CACHE, else `~/.cache/rungpt`.

    Raises DownloadError for a user without a home folder.
    """
    chosen = cache_dir or os.environ.get("RUNGPT_CACHE") or Path("~/.cache/rungpt")
    try:
        return Path(chosen).expanduser().absolute()
    except RuntimeError as error:
        raise DownloadError(f"{chosen}: this user has no home folder: set RUNGPT_CACHE to a whole path") from error


def folder_bytes(folder: Path) -> int:
    """Return the bytes that the files under `folder` take on disk; links are not counted, so each file counts once."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                info = os.lstat(os.path.join(parent, name))
            except FileNotFoundError:  # a download moves its files about
                continue
            total += 0 if os.path.islink(os.path.join(parent, name)) else info.st_size
    return total


def require_space(folder: Path, needed: int, what: str, variable: str = "RUNGPT_CACHE") -> None:
    """Raise DownloadError, with the bytes needed and free, if `needed` bytes do not fit where `folder` lies.

    `variable`: environment variable that names another folder.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"no space for {what}: {needed} bytes ({size_text(needed)}) are needed and {free} ({size_text(free)}) are "
            f"free in {folder}; make room (`rungpt models rm NAME`) or set {variable} to a folder on a larger disk"
        )


def is_disk_full(error: BaseException | None) -> bool:
    """Return True if this error, or one that caused it, says that the disk is full."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:  # errors may name each other as their causes
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "os error 28" in str(error):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


class ModelCache:
    """Cache folder `root`, with `files/` (as fetched), `converted/` (ready to load), `hub/` (see `hub`)."""

    def __init__(self, cache_dir: Path | None = None):
        self.root = cache_root(cache_dir)

    @property
    def hub(self) -> Path:
        """Folder of models that earlier versions fetched from the hub; new ones lie in the hub's own cache."""
        return self.root / "hub"

    def get(self, key: str) -> Path | None:
        """Return the complete folder of `key`, such as `files/smollm2`, or None."""
        folder = self.root / key
        return folder if folder.is_dir() else None

    def ensure(
        self,
        key: str,
        fill: Callable[[Path], None],
        *,
        needed: int = 0,
        again: bool = False,
        on_progress: OnProgress = no_progress,
    ) -> Path:
        """Return the folder of `key`; if it is missing (or `again`), `fill` writes it into an empty folder beside it.

        The folder gets its name only when it is complete; a half-written one, after an error or a kill, never does.
        A second process waits for the result of the first. `needed` is the space in bytes that `fill` takes, if known.
        Raises DownloadError if the folder cannot be written or the disk is too small, and any error of `fill`.
        """
        target = self.root / key
        if target.is_dir() and not again:
            return target
        with self.locked(key, on_progress):
            if target.is_dir() and not again:
                return target
            partial = target.with_name(f".{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # left by a killed process: no other one holds the lock
            try:
                partial.mkdir(parents=True)
                require_space(partial, needed, target.name)
                fill(partial)
                shutil.rmtree(target, ignore_errors=True)
                partial.rename(target)
            except Exception as error:
                if is_disk_full(error):
                    shutil.rmtree(partial, ignore_errors=True)
                    raise self._full(target.name, needed) from error
                raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return target

    def remove(self, key: str) -> int:
        """Delete the folder of `key`; return the bytes freed, 0 if there was none."""
        folder = self.root / key
        if not folder.is_dir():
            return 0
        with self.locked(key, no_progress):
            size = folder_bytes(folder)
            shutil.rmtree(folder, ignore_errors=False)
        return size

    def keys(self, kind: str) -> list[str]:
        """Return the keys of the folders under `kind` (`files` or `converted`), sorted."""
        folder = self.root / kind
        if not folder.is_dir():
            return []
        return sorted(f"{kind}/{path.name}" for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")

    @contextmanager
    def locked(self, key: str, on_progress: OnProgress) -> Iterator[None]:
        """Let one process at a time run the block for `key`; others wait, and report so.

        Raises DownloadError if the cache cannot be written.
        """
        from filelock import FileLock, Timeout

        folder = self.root / "locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{key.replace('/', '--')}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                on_progress(f"Waiting for another process that prepares {key.rpartition('/')[2]}", 0, None)
                lock.acquire()
        except OSError as error:
            if is_disk_full(error):
                raise self._full(key, 0) from error
            raise DownloadError(
                f"cannot write to the model cache {self.root} ({error.strerror}): set RUNGPT_CACHE to another folder"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _full(self, what: str, needed: int) -> DownloadError:
        free = shutil.disk_usage(self.root).free
        need = f"{needed} bytes ({size_text(needed)}) are needed and " if needed else ""
        return DownloadError(
            f"the disk is full: {what} did not fit; {need}{free} bytes ({size_text(free)}) are free in {self.root}; "
            "make room (`rungpt models rm NAME`) or set RUNGPT_CACHE to a folder on a larger disk"
        )
