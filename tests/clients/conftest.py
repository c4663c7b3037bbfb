"""Fixtures of the tests with other people's clients."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from environments import environment_variables, node_environment, python_environment
from known import FOLDER, Client
from recorder import recording

from run_gpt.config import ModelConfig
from run_gpt.models.files import fetch

RECORD = "RUNGPT_RECORD_CLIENTS"
RUN_SECONDS = 600.0
MODEL = "smollm2"


@pytest.fixture(scope="session")
def run_case(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Client, str], None]:
    """Return a function that fails with the error of a client's case. All cases of a client run in one process."""
    results: dict[str, dict[str, str | None]] = {}

    def check(client: Client, case: str) -> None:
        skip_unless_runnable(client)
        if client.name not in results:
            results[client.name] = {}  # a client whose run fails is not run again
            results[client.name] = run_client(client, server.http_url, tmp_path_factory.mktemp(client.name))
        ended = results[client.name]
        assert case in ended, f"{client.name}: the process ended before this case; see its first test"
        assert ended[case] is None, ended[case]

    return check


def run_client(client: Client, url: str, home: Path) -> dict[str, str | None]:
    """Run the cases of a client, and return each one's error. Renew its recorded requests if the environment asks."""
    command, programs = _command(client, home)
    with _recorded(client, url, home) as address:
        variables = environment_variables(home, programs)
        done = subprocess.run(
            command,
            cwd=home,
            env={
                **variables,
                "BASE_URL": f"{address}/v1",
                "MODEL": MODEL,
                "PROGRAMS": str(programs),
                **_tokenizer(client),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case":')]
    assert results, f"{client.name} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return {result["case"]: result["error"] for result in results}


def skip_unless_runnable(client: Client) -> None:
    """Skip the case of a client that needs what is not here and is not made for a test."""
    if client.needs and not os.environ.get(client.needs):
        pytest.skip(f"{client.needs} names no interpreter of an environment with {client.package}")
    if client.node and not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not here")


def _tokenizer(client: Client) -> dict[str, str]:
    """Return the folder with the tokenizer of the model, for a client that counts tokens by itself."""
    return {"TOKENIZER": str(fetch(ModelConfig()).folder)} if client.needs else {}


def _command(client: Client, home: Path) -> tuple[list[str], Path]:
    """Return the command that runs the cases, and the folder of the client's programs; makes its environment."""
    if client.own:
        return [sys.executable, str(client.cases_file)], Path(sys.executable).parent
    if client.needs:
        interpreter = os.environ[client.needs]
        return [interpreter, str(client.cases_file)], Path(interpreter).parent
    if not client.node:
        programs = python_environment(client.pins, torch=client.torch)
        return [str(programs / "python"), str(client.cases_file)], programs
    modules = node_environment(client.pins) / "node_modules"
    if client.cases_file.suffix == ".py":
        return [sys.executable, str(client.cases_file)], modules / ".bin"
    (home / "node_modules").symlink_to(modules)  # Node looks for packages beside the script
    for file in (client.cases_file, FOLDER / "node" / "cases.mjs"):
        shutil.copy(file, home)
    return ["node", str(home / client.cases_file.name)], modules / ".bin"


@contextmanager
def _recorded(client: Client, url: str, home: Path) -> Iterator[str]:
    """Yield the address for the client: the server's, or that of a recorder before it."""
    if os.environ.get(RECORD) != "1":
        yield url
        return
    with recording(url) as recorder:
        yield recorder.url
        recorder.write(FOLDER / "data" / "requests" / f"{client.name}.json", home)
