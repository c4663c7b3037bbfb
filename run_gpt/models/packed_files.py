"""Packed weights on disk: written once for a model, and mapped at each later start by all processes that serve it."""

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from run_gpt.errors import DownloadError
from run_gpt.models.cache import ModelCache
from run_gpt.models.gguf_weights import gguf_sources
from run_gpt.models.headers import weight_files
from run_gpt.process.devices import usable_cores

LEAST_BYTES = 2**25
"""Size from which weights are kept; smaller ones are packed in a moment."""
_PART = 2**26
"""Number of bytes that are written at once, and have one sum. Whole huge pages: the system caches a file as written."""
_HEADER = 2**20
"""Number of first bytes of a file that count as its header."""
_WEIGHTS, _RECORD = "weights", "packed.json"

_log = logging.getLogger("run_gpt")


class Memory(Protocol):
    """Memory of the packed weights: see `native.binding.Memory`."""

    @property
    def size(self) -> int:
        """Number of bytes."""

    def view(self) -> memoryview:
        """Return the bytes."""

    def map(self, file: int) -> None:
        """Take the content from an open file. Raises OSError."""

    def clear(self) -> None:
        """Make all bytes zero. Raises OSError."""


class PackedFile:
    """Packed weights of one model in one form."""

    def __init__(self, cache: ModelCache, folder: Path, kind: str, form: str):
        """`folder`: the model's files. `kind`: name of the form; one version of each is kept. `form`: text that
        differs wherever the same files would be packed to other bytes. Raises OSError or ValueError for files that
        cannot be read.
        """
        self._cache, self._folder = cache, folder.absolute()
        identity = "\n".join((*_identity(folder), form))
        self._name = f"packed/{hashlib.sha256(bytes(self._folder)).hexdigest()[:16]}-{kind}"
        self._key = f"{self._name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"

    def restore(self, memory: Memory) -> bool:
        """Put the kept weights into `memory`, and return True; False if there are none, or damaged ones."""
        if (folder := self._cache.get(self._key)) is None:
            return False
        try:
            sums = json.loads((folder / _RECORD).read_text())["sums"]
            with (folder / _WEIGHTS).open("rb") as file:
                if (size := os.fstat(file.fileno()).st_size) != memory.size:
                    raise ValueError(f"has {size} bytes and not {memory.size}")
                memory.map(file.fileno())
            if _sums(memory.view()) == sums:
                return True
            reason = "has other bytes than were written"
        except (OSError, ValueError, LookupError, TypeError) as error:
            reason = str(error)
        _log.warning("the weights are packed anew, since %s %s", folder / _WEIGHTS, reason)
        memory.clear()
        self._cache.remove(self._key)
        return False

    def keep(self, memory: Memory) -> None:
        """Write the weights, and share their memory with other processes. If they cannot be written, log it."""
        if memory.size < LEAST_BYTES:
            return
        try:
            folder = self._cache.ensure(self._key, lambda partial: self._write(memory, partial), needed=memory.size)
        except (DownloadError, OSError) as error:
            _log.warning("the next start packs the weights again: %s", error)
            return
        with (folder / _WEIGHTS).open("rb") as file:
            memory.map(file.fileno())
        for key in self._cache.keys("packed"):
            if key.startswith(f"{self._name}-") and key != self._key:  # of the files before they changed
                self._cache.remove(key)

    def _write(self, memory: Memory, folder: Path) -> None:
        with (folder / _WEIGHTS).open("wb", buffering=0) as file:
            for part in _parts(memory.view()):
                while part:
                    part = part[file.write(part) :]
        record = {"source": str(self._folder), "sums": _sums(memory.view())}
        (folder / _RECORD).write_text(json.dumps(record))


def packed_sources(cache: ModelCache) -> dict[str, Path]:
    """Return the model's folder of each entry of packed weights, by cache key."""
    return {key: Path(json.loads((cache.root / key / _RECORD).read_text())["source"]) for key in cache.keys("packed")}


def _identity(folder: Path) -> Iterator[str]:
    """Yield what changes with the weights of a folder: the configuration; sizes, times and headers of the files."""
    yield (folder / "config.json").read_text(encoding="utf-8")
    for file in (*weight_files(folder), *gguf_sources(folder)):
        info = file.stat()
        with file.open("rb") as opened:
            header = hashlib.sha256(opened.read(_HEADER)).hexdigest()
        yield f"{file.resolve()} {info.st_size} {info.st_mtime_ns} {header}"


def _parts(view: memoryview) -> list[memoryview]:
    return [view[start : start + _PART] for start in range(0, len(view), _PART)]


def _sums(view: memoryview) -> list[int]:
    """Return the CRC-32 of each part: it finds a damaged disk or a file that was cut, not an attack."""
    with ThreadPoolExecutor(usable_cores()) as threads:
        return list(threads.map(zlib.crc32, _parts(view)))
