"""Repairs that must be made before jina is imported: in every process `import run_gpt.process._jina` comes first.

Jina 3.34 is the last release: on Python 3.12 and later its import fails on one annotation, and it imports the
deprecated pkg_resources. On those Pythons, importing this module takes time, since the repaired module needs docarray.
"""

# ruff: noqa: UP006, UP035, UP045  (the repaired class keeps the annotations that Jina wrote)

import os
import sys
import warnings
from types import ModuleType
from typing import Any, List, Optional

warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
# By default Jina reports each start to its makers: our users must choose that themselves.
os.environ.setdefault("JINA_OPTOUT_TELEMETRY", "1")


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
