"""`rungpt serve A B` and `--config`: an error here would serve a model with the settings of another, or without any."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from run_gpt.cli.app import app
from run_gpt.cli.serving import loading_text, welcome
from run_gpt.config import ServeConfig, ServedModel

EXAMPLE = Path(__file__).parents[3] / "examples" / "models.yml"


def flow_of(*arguments: str, **env: str) -> dict[str, Any]:
    """Return the Flow that `rungpt serve --dry-run ARGUMENTS` prints."""
    done = CliRunner(env=env).invoke(app, ["serve", "--dry-run", *arguments])
    assert done.exit_code == 0, done.output or done.exception
    return dict(yaml.safe_load(done.stdout))


def models_of(*arguments: str) -> list[dict[str, Any]]:
    """Return the settings that each executor gets for its model."""
    return [executor["uses"]["with"] for executor in flow_of(*arguments)["executors"]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a configuration file with two models."""
    path = tmp_path / "models.yml"
    path.write_text("http_port: 1234\nlog_requests: true\nmodels: [smollm2, {name: qwen3-0.6b, replicas: 2}]\n")
    return path


def test_of_several_models_the_first_is_loaded_and_each_is_unloaded_after_ten_minutes() -> None:
    first, second = models_of("smollm2", "qwen3-0.6b", "--precision", "fp32", "--replicas", "2", "--max-running", "4")
    shared = {"precision": "fp32", "max_running": 4, "unload_after": 600.0}
    assert first == {"model_name": "smollm2", **shared}
    assert second == {"model_name": "qwen3-0.6b", "preload": False, **shared}
    flow = flow_of("smollm2", "qwen3-0.6b", "--replicas", "2")
    assert [executor["replicas"] for executor in flow["executors"]] == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a/b"], [{}]),
        (["a/b", "--no-preload"], [{"preload": False}]),
        (["a/b", "--unload-after", "5"], [{"unload_after": 5.0}]),
        (["a/b", "--unload-after", "0"], [{}]),
        (["a/b", "c/d", "--preload", "--unload-after", "0"], [{}, {}]),
        (["a/b", "c/d", "--no-preload", "--unload-after", "0"], [{"preload": False}] * 2),
    ],
)
def test_what_is_said_of_loading_is_for_each_model(arguments: list[str], expected: list[dict[str, Any]]) -> None:
    models = models_of(*arguments)
    for model in models:
        del model["model_name"]
    assert models == expected


def test_the_memory_budget_is_the_gateways() -> None:
    flow = flow_of("smollm2", "qwen3-0.6b", "--memory-budget", "8GiB", "--drain-seconds", "3")
    assert flow["gateway"]["uses"]["with"] == {"memory_budget": 8 * 2**30, "drain_seconds": 3.0}


def test_options_of_the_server_win_over_the_file(file: Path) -> None:
    flow = flow_of("--config", str(file), "--grpc-port", "4321", RUNGPT_API_KEY="secret-of-the-test")
    assert flow["gateway"]["port"] == [4321, 1234]
    assert flow["gateway"]["uses"]["with"] == {"log_requests": True, "require_key": True}
    assert flow["gateway"]["host"] == "0.0.0.0", "a key in the environment counts beside a file, too"
    assert flow_of("--config", str(file), "--http-port", "80")["gateway"]["port"] == [51000, 80]
    assert [executor["replicas"] for executor in flow["executors"]] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["smollm2"], "MODEL beside --config"),
        (["--precision", "auto"], "--precision beside --config"),
        (["--adapter", "x"], "--adapter beside --config"),
        (["--replicas", "1"], "--replicas beside --config"),
        (["--no-preload"], "--preload beside --config"),
        (["--unload-after", "9"], "--unload-after beside --config"),
    ],
)
def test_options_of_a_model_beside_a_file_are_refused(
    file: Path, arguments: list[str], words: str, fail: Callable[..., str]
) -> None:
    """Without this error they would be ignored, or change every model of the file."""
    assert words in fail("serve", "--config", str(file), *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "smollm2", "SmolLM2-135M-Instruct"], "2 models are called smollm2, by which requests choose"),
        (["serve", "smollm2", "smolm3"], "did you mean"),
        (["serve", "--memory-budget", "much"], "--memory-budget 'much' is no size: write 8GB"),
        (["serve", "--config", "/nowhere/models.yml"], "--config /nowhere/models.yml cannot be read: No such file"),
        (["deploy", "smollm2", "qwen3-0.6b", "--cloud", "docker"], "there is one model to a deployment"),
    ],
)
def test_models_that_cannot_be_served_together_are_one_line(
    arguments: list[str], words: str, fail: Callable[..., str]
) -> None:
    assert words in fail(*arguments)


def test_the_welcome_says_which_models_load_later() -> None:
    several = ServeConfig(models=(ServedModel(), ServedModel(model_name="qwen3-0.6b", preload=False, replicas=2)))
    assert "RunGPT serves smollm2, qwen3-0.6b (loads on first use):" in welcome(several)
    assert loading_text(several) == "Loading smollm2"
    assert loading_text(ServeConfig(replicas=2)) == "Loading smollm2 in 2 replicas"
    assert loading_text(ServeConfig(preload=False)) == "Starting"


def test_the_example_is_served_as_it_says() -> None:
    flow = flow_of("--config", str(EXAMPLE))
    assert flow["gateway"]["uses"]["with"] == {"memory_budget": 8 * 10**9}
    assert [executor["uses"]["with"]["model_name"] for executor in flow["executors"]] == ["smollm2", "qwen2.5-0.5b"]
