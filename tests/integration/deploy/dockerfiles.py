"""Reader of Dockerfiles and .dockerignore for tests, limited to the syntax that ours use.

Ours takes nothing out of a folder at the top that it ignores, so such folders, as large as .venv, are not walked.
"""

import json
import re
import shlex
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """Instruction such as `RUN`, its flags such as `--mount=...`, and the rest of its text."""

    stage: str
    name: str
    flags: tuple[str, ...]
    text: str

    @property
    def words(self) -> list[str]:
        """Arguments, also of the exec form (a JSON list)."""
        words: list[str] = json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)
        return words


def steps_of(file: Path) -> list[Step]:
    """Return the instructions in order, without comments and continuations."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    steps: list[Step] = []
    stage = ""
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        name, _, rest = line.partition(" ")
        words = rest.split()
        flags = [word for index, word in enumerate(words) if all(w.startswith("--") for w in words[: index + 1])]
        text = rest.strip()
        for flag in flags:
            text = text.removeprefix(flag).strip()
        if name == "FROM":
            stage = words[-1] if "AS" in words else "image"
        steps.append(Step(stage, name, tuple(flags), text))
    return steps


def context_of(folder: Path, ignore: Path) -> set[str]:
    """Return the files below `folder` that the build gets: all but those that their last .dockerignore match drops."""
    patterns = [line for line in ignore.read_text().splitlines() if line and not line.startswith("#")]
    kept = (entry for entry in folder.iterdir() if entry.is_file() or not _ignored(entry.name, patterns))
    files = (file for entry in kept for file in (entry.rglob("*") if entry.is_dir() else (entry,)))
    return {
        path for file in files if file.is_file() and not _ignored(path := file.relative_to(folder).as_posix(), patterns)
    }


def _ignored(path: str, patterns: list[str]) -> bool:
    parts = path.split("/")
    parents = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    ignored = False
    for pattern in patterns:
        plain = pattern.removeprefix("!")
        if any(_matches(parent, plain) for parent in parents):
            ignored = not pattern.startswith("!")
    return ignored


def _matches(path: str, pattern: str) -> bool:
    """Return True if the pattern matches the whole path; `*` stays within a folder, `**/` stands for any folders."""
    if pattern.startswith("**/"):
        return fnmatch(path.rpartition("/")[2], pattern.removeprefix("**/"))
    return path.count("/") == pattern.count("/") and fnmatch(path, pattern)
