"""Names of models on the Hugging Face hub, as users write them."""

import os
import re
from dataclasses import dataclass
from typing import Self

from run_gpt.errors import ModelLoadError

_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"(?P<repo>{_PART}/{_PART})(?P<rest>([@:][^@:\s]+)*)")
_SITES = re.compile(r"(https?://)?(www\.)?(huggingface\.co|hf\.co)/|hf://")
_PAGE = re.compile(rf"(?P<repo>{_PART}/{_PART})/(?:tree|blob|resolve)/(?P<revision>[^/]+)(?:/(?P<file>.+\.(?i:gguf)))?")
_FILE = re.compile(rf"{_PART}/{_PART}(@[^@:\s]+)?:[^@:\s]+\.(?i:gguf)")
_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
_LATEST = "latest"


@dataclass(frozen=True)
class HubName:
    """Repository of the hub, and the part of it that is meant."""

    repo: str
    """Repository, `organisation/model`."""
    revision: str | None = None
    """Branch, tag or commit; None: `main`."""
    gguf: str | None = None
    """Quantisation (`Q4_K_M`) or name of a GGUF file of the repository; None: safetensors, or the default GGUF file."""

    def __str__(self) -> str:
        """Return the name as a user writes it: `organisation/model@revision:Q4_K_M`."""
        revision = f"@{self.revision}" if self.revision else ""
        return self.repo + revision + (f":{self.gguf}" if self.gguf else "")

    @classmethod
    def parse(cls, name: str, revision: str | None = None) -> Self | None:
        """Return the name that a text has, or None if it has another form; `revision`: the one given beside it.

        The forms are `org/model`, `org/model@revision`, `org/model:Q4_K_M`, the same after `hf.co/` or
        `https://huggingface.co/`, and the address of a page of the repository. Raises ModelLoadError for two
        revisions, or one that cannot be.
        """
        text, on_site = _without_site(name)
        if (page := _PAGE.fullmatch(text)) and on_site:
            parts = {"@": [page["revision"]], ":": [page["file"]] if page["file"] else []}
            repo = page["repo"]
        elif match := _NAME.fullmatch(text):
            parts = {sign: re.findall(rf"{sign}([^@:\s]+)", match["rest"]) for sign in "@:"}
            repo = match["repo"]
        else:
            return None
        if repo.lower().endswith(".gguf") and not on_site:  # a path
            return None
        revisions = {*parts["@"], *([revision] if revision else [])}
        if len(revisions) > 1 or len(parts[":"]) > 1:
            raise ModelLoadError(
                f"{name}: this names {' and '.join(sorted(revisions | {*parts[':']}))}: give one of them"
            )
        gguf = next(iter(parts[":"]), None)
        return cls(repo, _checked(name, next(iter(revisions), None)), None if gguf == _LATEST else gguf)


def is_hub_only(name: str) -> bool:
    """Return True if a name has a form that no path has: an address on the hub, or `org/model:FILE.gguf`."""
    return _without_site(name)[1] or _FILE.fullmatch(name) is not None


def _without_site(name: str) -> tuple[str, bool]:
    """Return a name without the hub's address, and True if it had one."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if endpoint and name.startswith(f"{endpoint}/"):
        text = name.removeprefix(f"{endpoint}/")
    elif match := _SITES.match(name):
        text = name[match.end() :]
    else:
        return name, False
    return text.partition("?")[0].rstrip("/"), True


def _checked(name: str, revision: str | None) -> str | None:
    if revision is not None and not _REVISION.fullmatch(revision):
        raise ModelLoadError(f"{name}: {revision!r} is no revision: give a branch, a tag or a commit of the repository")
    return revision
