"""Compiled libraries on disk: each ends with the sum of its bytes, and is loaded only if it is whole and ours.

A library is code: a user who can write its file, or put another one in its place, runs programs in our process. And a
truncated one kills the process that loads it, with SIGBUS. So its bytes are read once, checked, and loaded from memory.
"""

import ctypes
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from run_gpt.engine.runners.native.targets import SUM_BYTES, with_sum
from run_gpt.errors import SetupError

_log = logging.getLogger("run_gpt")
_MFD_EXEC = 0x10  # systems from Linux 6.3 on may ask for it; older ones do not know it


def home(folder: Path) -> Path | None:
    """Return `folder`, or one of this user's own if others may write to it or we may not; None if there is none."""
    own = Path(tempfile.gettempdir(), f"rungpt-{os.geteuid()}", "kernels")
    reasons = []
    for candidate in (folder, own):
        if (reason := _unfit(candidate)) is None:
            break
        reasons.append(f"{candidate} {reason}")
    else:
        candidate = None
    if reasons:
        place = f"are kept in {candidate}" if candidate else "are compiled at each start"
        _log.warning(
            "compiled kernels %s: %s; RUNGPT_CACHE names another folder for them", place, " and ".join(reasons)
        )
    return candidate


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Let one process at a time run the block for this file. Where no lock can be written, all run it."""
    lock = FileLock(f"{file}.lock")
    try:
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def read(file: Path, beside: Path | None = None) -> bytes | None:
    """Return the library in a file; None if there is none, or if it is not ours or not whole, which is logged.

    `beside`: a file of code that is installed with it; who may write that may write the library, too.
    """
    try:
        return _sound(file, beside)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = f"cannot be read ({error.strerror})" if error.strerror else error
        _log.warning("these kernels are not used: %s %s", file, reason)
        return None


def _sound(file: Path, beside: Path | None) -> bytes:
    """Return the library in a file. Raises OSError, also for one that is not ours or not whole."""
    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as opened:
        info = os.fstat(fd)
        code = beside.stat() if beside else None
        group = code.st_gid if code and code.st_mode & stat.S_IWGRP else None
        if not stat.S_ISREG(info.st_mode) or not _is_ours(info, group, code.st_uid if code else 0):
            raise PermissionError(f"may be written by others ({_ownership(info)})")
        data = opened.read()
    if len(data) <= SUM_BYTES or with_sum(data[:-SUM_BYTES]) != data:
        raise OSError(f"is damaged ({len(data)} bytes, without the right sum at their end)")
    return data[:-SUM_BYTES]


def write(file: Path, library: bytes) -> None:
    """Keep a library in a file, complete or not at all. A failure is logged: it will be compiled again."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with suppress(FileNotFoundError):
            partial.unlink()
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(with_sum(library))
            opened.flush()
            os.fsync(opened.fileno())
        partial.replace(file)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        _log.warning("the compiled kernels cannot be kept in %s (%s): the next start compiles them again", file, error)


def in_memory(library: bytes, name: str) -> Path:
    """Return a path, for this process only, from which a library can be loaded. Nobody can change it, nor truncate it.

    Raises SetupError if it does not load.
    """
    try:
        fd = _memory_file(name)
        with os.fdopen(os.dup(fd), "wb") as opened:
            opened.write(library)
        path = Path(f"/proc/self/fd/{fd}")  # stays open: a path that is used again would name the older library
        ctypes.CDLL(str(path))
    except OSError as error:
        raise SetupError(f"the native kernels cannot be loaded: {error}") from error
    return path


def _memory_file(name: str) -> int:
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | _MFD_EXEC)
    except OSError:
        return os.memfd_create(name, os.MFD_CLOEXEC)


def _unfit(folder: Path) -> str | None:
    """Return the reason why libraries cannot lie in a folder, or None; make it if it is missing."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        info = folder.stat()
    except OSError as error:
        return f"cannot be made ({error.strerror})"
    if not stat.S_ISDIR(info.st_mode):
        return "is no folder"
    if not _is_ours(info, group=os.getegid()):
        return f"may be written by others ({_ownership(info)})"
    return None if os.access(folder, os.W_OK | os.X_OK) else "cannot be written"


def _is_ours(info: os.stat_result, group: int | None = None, owner: int = 0) -> bool:
    """Return True if only this user, root, `owner`, or a member of `group` may write."""
    shared = info.st_mode & stat.S_IWOTH or (info.st_mode & stat.S_IWGRP and info.st_gid != group)
    return info.st_uid in (os.geteuid(), 0, owner) and not shared


def _ownership(info: os.stat_result) -> str:
    return f"owner {info.st_uid}, group {info.st_gid}, mode {stat.S_IMODE(info.st_mode):o}"
