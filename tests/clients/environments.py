"""Environments of the clients: made once from pinned lists of packages, and kept in `build/clients`."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

FOLDER = Path(__file__).parents[2] / "build" / "clients"
INSTALL_SECONDS = 900.0


def python_environment(requirements: Path, *, torch: bool = False) -> Path:
    """Return the folder of the programs of an environment with these packages, which are pinned, and complete.

    With `torch` it takes what it lacks from our own environment, so that torch is not installed once more.
    """
    name, content = requirements.stem, requirements.read_bytes()
    return _made(name, content, lambda folder: _install(folder, requirements, torch=torch)) / "bin"


def _install(folder: Path, requirements: Path, *, torch: bool) -> None:
    venv.create(folder)
    if torch:
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
    options = ["--quiet", "--quiet", "--no-deps", "--no-compile", "--requirement", str(requirements)]
    subprocess.run([*pip, "install", *options], check=True, timeout=INSTALL_SECONDS)


def node_environment(package: Path) -> Path:
    """Return the folder with the `node_modules` of a folder with `package.json` and its lock file."""
    files = [package / "package.json", package / "package-lock.json"]
    return _made(package.name, b"".join(file.read_bytes() for file in files), lambda folder: _npm(folder, files))


def _npm(folder: Path, files: list[Path]) -> None:
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(command, cwd=folder, check=True, timeout=INSTALL_SECONDS, stdin=subprocess.DEVNULL)


def _made(name: str, content: bytes, make: Callable[[Path], None]) -> Path:
    """Return the folder of an environment, which `make` fills if it is not complete. One process makes it."""
    key = hashlib.sha256(content + f"{sys.version} {sys.prefix}".encode()).hexdigest()[:12]
    folder, complete = FOLDER / f"{name}-{key}", FOLDER / f"{name}-{key}.complete"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            complete.touch()
    return folder


def environment_variables(home: Path, programs: Path) -> dict[str, str]:
    """Return the variables of a client's process: a home of its own, no proxies, and nothing reported to its makers."""
    kept = ("LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(home),
        "PYTHONWARNINGS": "ignore",
        "NO_COLOR": "1",
        "DO_NOT_TRACK": "1",
        "CI": "true",
    }
