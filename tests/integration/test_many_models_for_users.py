"""A server with two models as a user sees it: in Python, by commands, and in `rungpt top`, over both real ports."""

import re
import subprocess
import sys

import pytest
import yaml

from run_gpt import Client, models
from run_gpt.errors import ModelNotFound


@pytest.fixture(scope="module")
def two(start_server, server, tmp_path_factory):
    """Yield a server with the default model and, under another name, a second copy that is not loaded at the start."""
    folder = models.show("smollm2").folder  # `server` has fetched it
    file = tmp_path_factory.mktemp("two") / "models.yml"
    second = {"name": "second", "model_path": str(folder), "memory": "1GB"}
    settings = {"defaults": {"unload_after": 0, "max_context": 1024}, "models": [{"name": "smollm2"}, second]}
    file.write_text(yaml.safe_dump(settings))
    with start_server("--config", str(file)) as running:
        yield running


def states(url):
    return {card.id: card.state for card in Client().list_models(url)}


def rungpt(*arguments):
    command = [sys.executable, "-m", "run_gpt.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("url_name", ["grpc_url", "http_url"])
def test_a_model_is_loaded_with_its_progress_used_and_unloaded(two, url_name):
    url = getattr(two, url_name)
    assert states(url) == {"smollm2": "loaded", "second": "unloaded"}
    heard = []
    with Client().get_model("second", url) as model:
        state = model.load(on_progress=lambda *step: heard.append(step), timeout=120)
        assert state.state == "loaded"
        assert 0 < state.memory < 2e9
        sizes = [(done, total) for _, done, total in heard if total]
        assert sizes, heard
        assert all(done <= total for done, total in sizes)
        assert "Paris" in model.chat("What is the capital of France?", max_new_tokens=16, timeout=60).text
        assert states(url)["second"] == "loaded"
        assert model.unload(timeout=60).state == "unloaded"
    with Client().get_model("third", url) as model, pytest.raises(ModelNotFound, match="'smollm2', 'second'"):
        model.load()


def test_the_commands_and_top_report_the_same(two):
    done = rungpt("models", "load", "second", "--endpoint", two.grpc_url)
    assert done.stdout.startswith("second is loaded, and takes ")
    assert "Loading second" in done.stderr
    shown = rungpt("models", "served", "--endpoint", two.http_url).stdout
    table = [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines()]
    assert table[0] == ["name", "state", "memory", "context"]
    assert [row[:2] for row in table[1:]] == [["smollm2", "loaded"], ["second", "loaded"]]
    assert {row[3] for row in table[1:]} == {"1,024"}
    assert rungpt("models", "unload", "second", "--endpoint", two.grpc_url).stdout == "second is unloaded\n"
    text = rungpt("top", "--once", "--interval", "0.5", "--url", two.http_url).stdout
    rows = [line.split() for line in text.splitlines()]
    assert rows[0][:2] == ["smollm2,", "second"], text
    assert "started again" not in text
    second = next(row for row in rows if row[:1] == ["second"])
    assert second[1] == "unloaded"
    loads, failed, unloads = map(int, second[-3:])
    assert (loads == unloads, failed) == (True, 0)
    assert loads > 0
    assert sorted(row[1:3] for row in rows if row and row[0].startswith("127.0.0.1:")) == [
        ["ready", "smollm2"],
        ["unloaded", "second"],
    ]
