"""Owns the `docker` program: starts it, reads its output, and turns its errors into SetupError."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from run_gpt.errors import SetupError


def check_docker() -> None:
    """Raise SetupError without docker or without Docker Compose 2; the Docker engine is not checked."""
    if shutil.which("docker") is None:
        raise SetupError("the program docker is not here: install Docker with its Compose plugin, then again")
    try:
        docker("compose", "version")
    except SetupError as error:
        raise SetupError("docker has no `compose` here: install Docker's Compose plugin, then again") from error


def docker(*arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Return the stdout of `docker ARGUMENTS`. Raises SetupError with the last line of its errors."""
    command = ("docker", *arguments)
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        _refuse(done.stderr.splitlines())
    return done.stdout


def docker_lines(*arguments: str, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yield the lines of `docker ARGUMENTS` as they come, errors among them. Raises SetupError at the end if it failed.

    Closing the iterator ends the program.
    """
    command = ("docker", *arguments)
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, env=env, text=True, errors="replace", **pipes)
    assert process.stdout is not None
    last = ""
    try:
        with process.stdout:
            for line in process.stdout:
                last = line.strip() or last
                yield line.rstrip("\n")
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode:
        _refuse([last])


def json_rows(text: str) -> list[dict[str, Any]]:
    """Parse the rows of `--format json`: one list, or, from `compose ps` since Compose 2.21, an object on each line."""
    if text.lstrip().startswith("["):
        rows: list[dict[str, Any]] = json.loads(text)
        return rows
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _refuse(lines: list[str]) -> NoReturn:
    said = [line.strip() for line in lines if line.strip()] or ["nothing"]
    raise SetupError(f"docker says: {said[-1]}")
