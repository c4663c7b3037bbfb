"""The published inference-client 0.0.8, in an environment of its own, against our server: its users change nothing.

RUNGPT_SKIP_INFERENCE_CLIENT=1 skips these tests; so does a Python version on which that client is not known to work.
"""

import hashlib
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from run_gpt.client import Client

REQUIREMENTS = Path(__file__).parents[1] / "data" / "inference_client_requirements.txt"
ASK = """
import json, sys
from inference_client import Client
endpoint, prompts, parameters = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
model = Client().get_model(endpoint=endpoint)
model.token = sys.argv[4] if len(sys.argv) > 4 else None  # Client(token=) would ask Jina's cloud about it
print(json.dumps(model.generate(prompts, **parameters)))
"""

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("RUNGPT_SKIP_INFERENCE_CLIENT") == "1", reason="RUNGPT_SKIP_INFERENCE_CLIENT is set"
    ),
    pytest.mark.skipif(sys.version_info >= (3, 12), reason="inference-client 0.0.8 is known to work on Python 3.11"),
]


@pytest.fixture(scope="session")
def inference_python(request: pytest.FixtureRequest) -> Path:
    """Return the interpreter of the client's environment, which is built once and kept in pytest's cache."""
    key = hashlib.sha256(REQUIREMENTS.read_bytes() + f"{sys.version} {sys.prefix}".encode()).hexdigest()[:12]
    folder = Path(request.config.cache.mkdir("inference-client")) / key
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        venv.create(folder, clear=True)
        pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, "--no-compile", "--no-deps", "--requirement", REQUIREMENTS], check=True, timeout=900)
        complete.touch()
    return python


@pytest.fixture
def ask(inference_python, server):
    """Return a function that runs the published client in its environment and returns the finished process."""

    def run(prompts: str, parameters: str = "{}", *key: str, of: Any = server) -> subprocess.CompletedProcess[str]:
        command = [inference_python, "-W", "ignore", "-c", ASK, of.grpc_url, prompts, parameters, *key]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    return run


def test_it_gets_its_answer(ask, server):
    """The answer is the one that a new client gets."""
    parameters = {"max_new_tokens": 8, "do_sample": False}
    done = ask('"The capital of France is"', json.dumps(parameters))
    assert done.returncode == 0, done.stderr
    with Client().get_model(endpoint=server.grpc_url) as model:
        assert json.loads(done.stdout) == model.generate("The capital of France is", **parameters).text


def test_it_gets_the_answers_to_a_list_in_order(ask, server):
    prompts = ["One, two, three,", "The sky is", "hi"]
    done = ask(json.dumps(prompts), '{"max_new_tokens": 6}')
    assert done.returncode == 0, done.stderr
    with Client().get_model(endpoint=server.grpc_url) as model:
        assert json.loads(done.stdout) == [answer.text for answer in model.generate(prompts, max_new_tokens=6)]


def test_it_raises_our_error(ask):
    done = ask('"hi"', '{"top_p": 7}')
    assert done.returncode != 0
    assert "BadServer" in done.stderr
    assert "top_p: input should be less than or equal to 1, got 7" in done.stderr


def test_its_token_is_the_servers_key(ask, start_server):
    key = "an-older-clients-key"
    with start_server("--host", "127.0.0.1", "--api-key", key) as keyed:
        answered = ask('"hi"', '{"max_new_tokens": 4}', key, of=keyed)
        assert answered.returncode == 0, answered.stderr
        refused = ask('"hi"', '{"max_new_tokens": 4}', "another-key", of=keyed)
    assert refused.returncode != 0
    assert "the key is wrong" in refused.stderr
