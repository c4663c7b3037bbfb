"""Paths that users give in place of a model's name: when a text is one, the file that it means, and its name."""

import os
import re
from pathlib import Path

from run_gpt.errors import ModelLoadError
from run_gpt.models.gguf.parts import model_stem, part_paths
from run_gpt.models.hub_names import is_hub_only

_SNAPSHOT = re.compile(r"models--(.+)")


def is_gguf(file: str | Path) -> bool:
    """Return True if a file's name ends in .gguf, in any case."""
    return str(file).lower().endswith(".gguf")


def is_explicit_path(text: str) -> bool:
    """Return True if a text can be nothing but a path: it begins with `.`, `~` or `/`, or ends in `/` or .gguf.

    An address on the hub and `org/model:FILE.gguf` end so too, but are names of the hub.
    """
    if text.startswith((".", "~", os.sep)):
        return True
    return (is_gguf(text) or text.endswith(os.sep)) and not is_hub_only(text)


def local_path(text: str | Path) -> Path:
    """Return an absolute path, with `~` replaced and links kept. Raises ModelLoadError for an unknown user."""
    try:
        return Path(os.path.abspath(Path(text).expanduser()))
    except RuntimeError as error:
        raise ModelLoadError(f"{text}: there is no such user here: give the whole path") from error


def path_name(text: str | Path) -> str:
    """Return the name of what lies at a path: of the folder or link, of the file without .gguf, or a snapshot's hub id.

    Raises ModelLoadError for an unknown user.
    """
    local = local_path(text)
    if local.parent.name == "snapshots" and (match := _SNAPSHOT.fullmatch(local.parent.parent.name)):
        return match[1].replace("--", "/")
    return model_stem(local) if is_gguf(local) else local.name


def gguf_files(folder: Path) -> list[Path]:
    """Return the GGUF files of a folder that hold a model, by name: of a model in parts the first one."""
    found = [file for file in folder.iterdir() if is_gguf(file) and not file.name.startswith("mmproj")]
    return sorted({part_paths(file)[0] for file in found})
