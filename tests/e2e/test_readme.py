"""The snippets of these documents run unchanged on a real server: without these tests users could paste broken ones."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from families import write_checkpoint

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/openai.md", "docs/deploy.md")

# The only lines that are not run, with the reasons.
EXEMPT = {
    "make serve": "sets up a second environment; `rungpt serve` is what it runs then",
    "make test": "is what runs this test",
    "pip install .": "changes the environment in which the tests run; `make install` does the same",
}


# Path of the reader's own model in the documents; the tests put a tiny model there.
MY_MODEL = "./my-model"

BENCHMARK, SHORT = "rungpt bench serve", "--prompt-words 8 --output-tokens 4 --warmup 1"
"""A command that loads a server, and options that make the load small."""


@dataclass(frozen=True)
class Snippet:
    """One fenced block."""

    document: str
    language: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"{Path(self.document).stem}-{self.language}-line-{self.line}"


def snippets() -> list[Snippet]:
    found = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            found.append(Snippet(document, match[1], match[2], text.count("\n", 0, match.start()) + 1))
    return found


def commands(text: str) -> list[str]:
    """Return the commands of a bash snippet; a line that ends in a backslash continues in the next."""
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]


def run(arguments: list[str], folder: Path) -> str:
    """Run a program. Return its output; it must succeed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        arguments,
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def my_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny model called my-model."""
    return write_checkpoint("llama", tmp_path_factory.mktemp("models") / Path(MY_MODEL).name)


def run_command(command: str, folder: Path) -> None:
    """Run one command of a bash snippet. `rungpt serve` does not end: `server` is one, and the rest is shown only."""
    if command in EXEMPT:
        return
    if command.startswith("rungpt serve") and "--dry-run" not in command:
        command += " --dry-run"
    check_output(command, run(["bash", "-euo", "pipefail", "-c", command], folder))


def check_output(source: str, output: str) -> None:
    """Check that there is output; a question for the capital of France must be answered with Paris."""
    assert output.strip(), f"this printed nothing:\n{source}"
    if "capital of France" in source:
        assert "Paris" in output, f"{source}\nprinted:\n{output}"


@pytest.mark.parametrize("snippet", snippets(), ids=str)
def test_snippet(snippet: Snippet, server: Any, my_model: Path, tmp_path: Path) -> None:
    text = snippet.text.replace(":51000", f":{server.grpc_port}").replace(":52000", f":{server.http_port}")
    text = text.replace(MY_MODEL, str(my_model)).replace(BENCHMARK, f"{BENCHMARK} {SHORT}")
    if snippet.language == "python":
        check_output(text, run([sys.executable, "-c", text], tmp_path))
        return
    assert snippet.language == "bash", "only bash and python snippets can be run"
    for command in commands(text):
        run_command(command, tmp_path)


def test_every_exemption_is_used() -> None:
    used = {command for snippet in snippets() for command in commands(snippet.text)}
    assert set(EXEMPT) <= used
