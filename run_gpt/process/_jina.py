"""Repairs that must be made before jina is imported: in every process `import run_gpt.process._jina` comes first.

Jina 3.34 is the last release: on Python 3.12 and later its import fails on one annotation, and it imports the
deprecated pkg_resources. On those Pythons, importing this module takes time, since the repaired module needs docarray.
Jina makes two folders in the home folder when it is imported, and fails where it may not.
"""

# ruff: noqa: UP006, UP035, UP045  (the repaired class keeps the annotations that Jina wrote)

import os
import shutil
import sys
import tempfile
import warnings
from types import ModuleType
from typing import Any, List, Optional

from run_gpt.errors import SetupError

warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
# By default Jina reports each start to its makers: our users must choose that themselves.
os.environ.setdefault("JINA_OPTOUT_TELEMETRY", "1")
# gRPC writes a line for each connection that sends junk: a stranger could fill the log. What fails is raised anyway.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def _mended_legacy_module() -> ModuleType:
    """Return `jina._docarray_legacy` with references to itself that pydantic can resolve on Python 3.12."""
    from docarray import BaseDoc
    from docarray.typing import ID, AnyEmbedding, AnyTensor
    from pydantic import Field

    class LegacyDocumentJina(BaseDoc):  # type: ignore[misc]
        """Document of docarray before 0.30, which Jina gives to executors without types."""

        id: Optional[ID] = Field(default_factory=lambda: ID(os.urandom(16).hex()))
        tensor: Optional[AnyTensor] = None
        chunks: Optional[List["LegacyDocumentJina"]] = None
        matches: Optional[List["LegacyDocumentJina"]] = None
        blob: Optional[bytes] = None
        text: Optional[str] = None
        url: Optional[str] = None
        embedding: Optional[AnyEmbedding] = None
        tags: dict[str, Any] = {}  # noqa: RUF012
        scores: Optional[dict[str, Any]] = None

    module = ModuleType("jina._docarray_legacy")
    LegacyDocumentJina.__module__ = module.__name__
    module.LegacyDocumentJina = LegacyDocumentJina  # type: ignore[attr-defined]
    module.docarray_v2 = True  # type: ignore[attr-defined]
    return module


if sys.version_info >= (3, 12) and "jina" not in sys.modules:
    sys.modules["jina._docarray_legacy"] = _mended_legacy_module()


def _home_is_writable() -> bool:
    """Return True if the folders that Jina wants are there, or can be made."""
    home = os.path.expanduser("~")
    if not os.path.isabs(home):  # a user that the system does not know
        return False
    try:
        for folder in (".cache/jina", ".jina"):
            os.makedirs(os.path.join(home, folder), exist_ok=True)
    except OSError:
        return False
    return True


def _import_with_other_home() -> None:
    """Import jina with its folders in $RUNGPT_CACHE, else in one for temporary files. Raises SetupError."""
    try:
        if cache := os.environ.get("RUNGPT_CACHE"):
            os.makedirs(folder := os.path.join(os.path.expanduser(cache), "jina"), exist_ok=True)
        else:
            folder = tempfile.mkdtemp(prefix="rungpt-jina-")
    except OSError as error:
        raise SetupError(
            f"neither the home folder nor {error.filename or 'a folder for temporary files'} can be written "
            f"({error.strerror}): set RUNGPT_CACHE to a folder that can be"
        ) from error
    os.environ.setdefault("JINA_HUB_ROOT", folder)
    before = os.environ.get("HOME")
    os.environ["HOME"] = folder
    try:
        import jina  # noqa: F401
    finally:
        if not cache:
            shutil.rmtree(folder, ignore_errors=True)  # jina makes it again when it needs it
        if before is None:
            del os.environ["HOME"]
        else:
            os.environ["HOME"] = before


if "jina" not in sys.modules and not _home_is_writable():
    _import_with_other_home()
