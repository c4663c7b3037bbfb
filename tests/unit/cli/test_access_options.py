"""Without these tests `rungpt serve` could be open to a network by accident, or print its API key."""

from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from typer.testing import CliRunner

from run_gpt.cli.app import app
from run_gpt.cli.serving import welcome, who_may_ask
from run_gpt.client import Client
from run_gpt.config import API_KEY_VARIABLE, LOG_FORMAT_VARIABLE, LOG_FORMATS, ServeConfig
from run_gpt.errors import SetupError
from run_gpt.flows.server import check_server, new_supervisor

KEY = "secret-key-of-the-test"


def dry_run(*arguments: str, **env: str) -> tuple[str, dict[str, Any]]:
    """Return the output of `rungpt serve --dry-run`, and the Flow in it."""
    done = CliRunner(env=env).invoke(app, ["serve", "--dry-run", *arguments])
    assert done.exit_code == 0, done.output
    return done.output, yaml.safe_load(done.stdout)


@pytest.mark.parametrize(
    ("settings", "host", "says"),
    [
        ({}, "127.0.0.1", "listens on 127.0.0.1 only: --host or a key opens it"),
        ({"api_key": KEY}, "0.0.0.0", "listens on 0.0.0.0, every interface: requests need a key"),
        ({"api_key_file": Path("keys")}, "0.0.0.0", "every interface: requests need a key"),
        ({"api_key": KEY}, "0.0.0.0", "in plain text: --tls-cert encrypts it"),
        ({"api_key": KEY, "tls_cert": Path("chain.pem")}, "0.0.0.0", "every interface: requests need a key."),
        ({"api_key": KEY, "host": "127.0.0.1"}, "127.0.0.1", "127.0.0.1 only: requests need a key"),
        ({"api_key": KEY, "host": "10.1.2.3"}, "10.1.2.3", "listens on 10.1.2.3: requests need a key"),
        ({"host": "0.0.0.0"}, "0.0.0.0", "Warning: RunGPT listens on 0.0.0.0, every interface, and requires no key"),
        ({"host": "::"}, "::", "Warning: RunGPT listens on ::, every interface, and requires no key"),
        ({"host": "::1"}, "::1", "listens on ::1 only"),
        ({"host": "localhost"}, "localhost", "listens on localhost only"),
        ({"host": "gpu.example"}, "gpu.example", "Warning"),
    ],
)
def test_a_server_without_a_key_keeps_to_itself_and_says_where_it_listens(
    settings: dict[str, Any], host: str, says: str
) -> None:
    config = ServeConfig(**settings)
    line = who_may_ask(config)
    assert config.listen_host == host
    assert says in line
    assert "\n" not in line
    assert KEY not in line


def test_the_first_request_that_is_shown_has_a_key_if_it_needs_one() -> None:
    assert "Authorization" not in welcome(ServeConfig())
    shown = welcome(ServeConfig(api_key=KEY))
    assert '"Authorization: Bearer $RUNGPT_API_KEY"' in shown
    assert KEY not in shown


@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_dry_run_shows_no_key_and_its_flow_does_not_start_without_one(way: str) -> None:
    text, flow = dry_run("--api-key", KEY) if way == "option" else dry_run(RUNGPT_API_KEY=KEY)
    assert KEY not in text
    assert "set RUNGPT_API_KEY in the environment" in text
    assert flow["gateway"]["uses"]["with"] == {"require_key": True}
    assert flow["gateway"]["host"] == "0.0.0.0"
    assert flow["executors"][0]["host"] == "127.0.0.1", "a replica is no door"


def test_the_options_of_access_reach_the_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    origins = ["--cors-origin", "https://a.example", "--cors-origin", "http://b.example:8080"]
    origins += ["--tls-cert", "chain.pem", "--tls-key", "key.pem"]
    _, flow = dry_run("--api-key-file", "keys", "--host", "127.0.0.1", "--log-requests", *origins)
    assert flow["gateway"]["host"] == "127.0.0.1"
    assert flow["gateway"]["uses"]["with"] == {
        "api_key_file": str(tmp_path / "keys"),
        "require_key": True,
        "tls_cert": str(tmp_path / "chain.pem"),
        "tls_key": str(tmp_path / "key.pem"),
        "cors_origins": ["https://a.example", "http://b.example:8080"],
        "log_requests": True,
    }
    assert "uses" in dry_run()[1]["gateway"]
    assert "with" not in dry_run()[1]["gateway"]["uses"], "off unless asked for"


def test_a_server_with_a_certificate_is_named_by_its_scheme() -> None:
    shown = welcome(ServeConfig(tls_cert=Path("chain.pem"), tls_key=Path("key.pem")))
    assert "https://127.0.0.1:52000/v1" in shown
    assert "grpcs://127.0.0.1:51000" in shown
    assert "http://" not in shown


def test_the_key_is_for_the_gateways_environment_alone() -> None:
    config = ServeConfig(api_key=KEY, host="127.0.0.1", grpc_port=1, http_port=2)
    supervisor = new_supervisor(config, on_event=lambda event: None)
    gateway, worker = (child.spec for child in (supervisor._gateway, supervisor._workers[0]))
    assert gateway.env[API_KEY_VARIABLE] == KEY
    assert worker.env[API_KEY_VARIABLE] is None
    for told in (repr(config), repr(gateway), gateway.stdin, worker.stdin, *gateway.command):
        assert KEY not in told


def test_the_form_of_the_log_is_in_the_environment_of_every_process() -> None:
    for log_format in LOG_FORMATS:
        config = ServeConfig(log_format=cast("Any", log_format), grpc_port=1, http_port=2)
        supervisor = new_supervisor(config, on_event=lambda event: None)
        for child in supervisor._children:
            assert child.spec.env[LOG_FORMAT_VARIABLE] == log_format, "whatever this program's environment says"


def test_a_form_of_the_log_that_nobody_would_honour_is_refused() -> None:
    for env, options in (({}, ["--log-format", "json"]), ({LOG_FORMAT_VARIABLE: "json"}, [])):
        done = CliRunner(env=env).invoke(app, ["serve", "--dry-run", *options])
        assert "--log-format json is in no Flow" in str(done.exception)
    assert CliRunner().invoke(app, ["serve", "--log-format", "xml"]).exit_code == 2
    with pytest.raises(SetupError, match=r"--log-format xml: give one of text, json"):
        check_server(ServeConfig(log_format=cast("Any", "xml")))


@pytest.mark.parametrize("command", [["generate", "hi"], ["chat", "hi"], ["embed", "hi"], ["adapters", "list"]])
def test_a_command_that_asks_a_server_sends_its_key(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[str | None] = []

    def get_model(client: Client, *_: Any, **__: Any) -> Any:
        tokens.append(client._token)
        raise SystemExit

    monkeypatch.setattr(Client, "get_model", get_model)
    arguments = [*command, "--endpoint", "http://127.0.0.1:9"]
    CliRunner().invoke(app, arguments)
    CliRunner(env={"RUNGPT_API_KEY": "of-the-environment"}).invoke(app, arguments)
    CliRunner(env={"RUNGPT_API_KEY": "of-the-environment"}).invoke(app, [*arguments, "--api-key", "of-the-option"])
    assert tokens == [None, "of-the-environment", "of-the-option"]


def test_a_key_without_a_server_is_refused() -> None:
    """Without this error the key would be ignored."""
    done = CliRunner().invoke(app, ["generate", "hi", "--api-key", "of-the-option"])
    assert "--endpoint" in str(done.exception)
