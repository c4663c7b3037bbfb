"""Imports of large libraries: torch, transformers and jina take seconds."""

import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

DEFERRED = ("aiohttp", "boto3", "jose.jwt", "transformers.models")
"""Modules that jina, accelerate and transformers import at their beginning, and that RunGPT does not use.

`transformers.models` reads the 1,600 files of all families to list their classes; its submodules need no list."""


@contextmanager
def large_imports() -> Iterator[None]:
    """Run the block, which imports large libraries, without Python's garbage collector and without DEFERRED.

    Imports make hundreds of thousands of objects that stay. The collector looks through them again and again: that is a
    quarter of the time that the imports take.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        with deferred(DEFERRED):
            yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def deferred(names: Sequence[str]) -> Iterator[None]:
    """Run the block; modules of these names that it imports run only when something of theirs is first used.

    Submodules are imported as always, and do not make the package itself run.
    """
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    """Finder of modules that are to be deferred."""

    def __init__(self, names: Sequence[str]):
        self._names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See MetaPathFinder. `target` is a module that runs now, since something of it is used."""
        if fullname not in self._names or target is not None:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _DeferringLoader()
        return spec


class _DeferringLoader(Loader):
    """Loader that does not run the module yet."""

    def exec_module(self, module: ModuleType) -> None:
        """See Loader."""
        module.__class__ = _Deferred


class _Deferred(ModuleType):
    """Module that runs when an attribute is used that only its code can give it."""

    def __getattr__(self, name: str) -> object:
        module: ModuleType | None = sys.modules[self.__name__]
        if module is self:
            self.__class__ = ModuleType  # type: ignore[assignment]  # its own code may look something up in it
            module = None
            try:
                module = importlib.reload(self)
            finally:
                if module is not self:  # it has failed, or put another module in its place, as transformers does
                    self.__class__ = _Deferred
        return getattr(module, name)
