"""Without these tests, a user of Jina Cloud could get neither addresses nor one line that says what to do.

The real client of jcloud runs against a stand-in for its API."""

import importlib
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jina_cloud_stand_in import TOKEN, Script, StandIn, StandInFlow

from run_gpt.config import ServeConfig
from run_gpt.deploy import Deployment, Endpoints
from run_gpt.deploy.jina import JinaCloud
from run_gpt.errors import SetupError

KEY = "12345678e9"
"""Key that Jina's own YAML reader would turn into a number."""
SERVER = ServeConfig(model_name="org/model-7b", api_key=KEY, replicas=3)
DEPLOYMENT = Deployment(server=SERVER, name="chat", image="me/rungpt:1", memory_gib=12)
SERVING = Endpoints(http="https://http-chat-0000000000.example.com", grpc="grpcs://chat-0000000000.example.com")


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    """Yield one stand-in for all tests here: jcloud reads its address when it is imported."""
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def script(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    """Return a new script of the stand-in; jcloud calls it with a token and polls often."""
    monkeypatch.setenv("JINA_HUB_ROOT", str(tmp_path))  # without a login
    point_at(stand_in.url, monkeypatch)
    stand_in.script = Script()
    return stand_in.script


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Import jcloud and our client of it, as a process with this JCLOUD_API would."""
    monkeypatch.setenv("JCLOUD_API", url)
    monkeypatch.setenv("JINA_AUTH_TOKEN", TOKEN)
    for name in ("jcloud.constants", "jcloud.flow", "run_gpt.deploy.jina_client"):
        importlib.reload(importlib.import_module(name))
    monkeypatch.setattr("hubble.utils.config.config.config_file", Path(os.environ["JINA_HUB_ROOT"]) / "config.json")
    monkeypatch.setattr("run_gpt.deploy.jina_client.POLL_SECONDS", 0.01)
    monkeypatch.setattr("run_gpt.deploy.jina_client.SETTLE_SECONDS", 0.1)


@pytest.fixture
def told() -> list[str]:
    """Return a list for the lines of progress."""
    return []


def one_line(call: Callable[[], object]) -> str:
    """Return the message of the SetupError that the call raises; assert that it is one line."""
    with pytest.raises(SetupError) as caught:
        call()
    assert "\n" not in caught.value.message
    assert TOKEN not in caught.value.message
    return caught.value.message


def test_a_deployment_is_pushed_and_its_addresses_come_back(
    script: Script, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert JinaCloud(instance="C6").deploy(DEPLOYMENT, told.append) == SERVING
    (flow,) = script.flows.values()
    (executor,) = flow.spec["executors"]
    assert executor["replicas"] == 3
    assert executor["jcloud"]["resources"]["instance"] == "C6"
    assert executor["uses"] == "docker://me/rungpt-executor:1"
    assert flow.spec["gateway"]["env"]["RUNGPT_API_KEY"] == KEY
    assert "RUNGPT_API_KEY" not in executor["env"]
    assert [call.partition("?")[0] for call in script.calls[:3]] == [
        "GET /flows",
        "POST /flows/validate",
        "POST /flows",
    ]
    assert told[0] == "submitted as chat-0000000000"
    assert "chat-0000000000 is starting" in told
    assert not capsys.readouterr().out, "jcloud's own output is not for ours"


def test_deploying_again_changes_the_deployment_of_this_name(script: Script, told: list[str]) -> None:
    JinaCloud().deploy(DEPLOYMENT, told.append)
    other = StandInFlow({"executors": []}, ["Serving"])
    script.flows["chat-pro-1234567890"] = other  # another deployment, whose name begins the same way
    changed = replace(DEPLOYMENT, server=replace(SERVER, replicas=5))
    assert JinaCloud().deploy(changed, told.append) == SERVING
    assert script.flows["chat-0000000000"].spec["executors"][0]["replicas"] == 5
    assert "changing chat-0000000000" in told
    assert len(script.flows) == 2
    assert other.spec == {"executors": []}


def test_what_failed_before_makes_room_for_the_next_try(script: Script, told: list[str]) -> None:
    script.phases = ["Failed"]
    one_line(lambda: JinaCloud().deploy(DEPLOYMENT, told.append))
    script.phases = ["Serving"]
    JinaCloud().deploy(DEPLOYMENT, told.append)
    assert [flow.phases[-1] for flow in script.flows.values()] == ["Deleted", "Serving"]
    assert "removing chat-0000000000, which is failed" in told


def test_status_logs_and_scale_find_it_by_its_name_or_id(script: Script, told: list[str]) -> None:
    cloud = JinaCloud()
    cloud.deploy(DEPLOYMENT, told.append)
    for name in ("chat", "chat-0000000000"):
        status = cloud.status(name)
        assert (status.phase, status.wanted, status.endpoints) == ("serving", 3, SERVING)
    assert list(cloud.logs("chat", follow=False, lines=1)) == ["gateway-7d9f | serving", "causal-lm-7d9f | serving"]
    cloud.scale("chat", 5, told.append)
    assert cloud.status("chat").wanted == 5
    assert told[-1] == "chat-0000000000 is updating"


def test_remove_ends_all_of_the_name_and_waits_until_they_are_gone(script: Script, told: list[str]) -> None:
    JinaCloud().deploy(DEPLOYMENT, told.append)
    script.flows["chat-1111111111"] = StandInFlow({}, ["Failed"])
    script.flows["talk-2222222222"] = StandInFlow({}, ["Serving"])
    JinaCloud().remove("chat", told.append)
    assert [flow.phases for flow in script.flows.values()] == [["Deleted"], ["Deleted"], ["Serving"]]


def test_several_of_one_name_are_distinguished_by_their_ids(script: Script) -> None:
    script.flows |= {f"chat-{i}": StandInFlow({}, ["Serving"]) for i in (1, 2)}
    assert one_line(lambda: JinaCloud().status("chat")) == "there are several chat: give one of chat-1, chat-2"


@pytest.mark.parametrize("phase", ["Failed", "Paused"])
def test_a_deployment_that_fails_says_why(script: Script, told: list[str], phase: str) -> None:
    script.phases, script.reason = ["Starting", phase], "ImagePullBackOff:\n me/rungpt-executor:1"
    said = one_line(lambda: JinaCloud().deploy(DEPLOYMENT, told.append))
    assert said.startswith(f"chat-0000000000 is {phase.lower()}: ImagePullBackOff: me/rungpt-executor:1; see `rungpt")
    status = JinaCloud().status("chat")
    assert status.phase in ("failed", "stopped")
    assert status.notes == ("ImagePullBackOff: me/rungpt-executor:1",)


def test_a_deployment_that_never_serves_ends_the_wait(
    script: Script, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("run_gpt.deploy.jina.START_SECONDS", 0.2)
    script.phases = ["Starting"]
    said = one_line(lambda: JinaCloud().deploy(DEPLOYMENT, told.append))
    assert said.startswith("chat-0000000000 is still starting after 0 s; see `rungpt deploy logs")


def test_a_wait_outlives_a_moment_without_a_network_but_not_more(script: Script, told: list[str]) -> None:
    script.dropped = 3
    assert JinaCloud().deploy(DEPLOYMENT, told.append) == SERVING
    script.dropped = 100
    assert "cannot be reached" in one_line(lambda: JinaCloud().scale("chat", 2, told.append))


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (
            401,
            b'{"error": "expired"}',
            "refuses the token (401: expired): run `jcloud login`, or set another JINA_",
        ),
        (403, b'{"error": "no credit"}', "refuses this (403: no credit): the account must be active and have credit"),
        (404, b'{"message": "gone"}', "answers (404: gone)"),
        (502, b"<html>\nBad gateway</html>", "answers (502: <html> Bad gateway</html>)"),
        (200, b"<html>a login page</html>", "sent what jcloud cannot read"),
        (200, b"{", "sent what jcloud cannot read"),
    ],
)
def test_an_answer_that_is_an_error_is_one_line(
    script: Script, told: list[str], status: int, body: bytes, says: str
) -> None:
    script.status, script.body = status, body
    calls: list[Callable[[], object]] = [
        lambda: JinaCloud().deploy(DEPLOYMENT, told.append),
        lambda: JinaCloud().status("chat"),
        lambda: JinaCloud().remove("chat", told.append),
    ]
    for call in calls:
        assert says in one_line(call)


def test_a_wrong_token_and_no_token(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JINA_AUTH_TOKEN", "another")
    assert "refuses the token (401: invalid token)" in one_line(lambda: JinaCloud().status("chat"))
    monkeypatch.delenv("JINA_AUTH_TOKEN")
    calls = len(script.calls)
    assert one_line(lambda: JinaCloud().status("chat")).startswith("you are not logged in at Jina Cloud: run `jcloud")
    assert len(script.calls) == calls


def test_validation_errors_are_reported_before_anything_is_made(script: Script, told: list[str]) -> None:
    script.errors = ["autoscale.max: at most 5", "name: taken"]
    said = one_line(lambda: JinaCloud().deploy(DEPLOYMENT, told.append))
    assert said == "Jina Cloud refuses the Flow: autoscale.max: at most 5; name: taken"
    assert not script.flows


def test_what_is_not_there_and_what_cannot_be_done(script: Script, told: list[str]) -> None:
    cloud, nothing = JinaCloud(), "this account has no deployment chat on Jina Cloud"
    assert one_line(lambda: cloud.status("chat")) == nothing
    assert one_line(lambda: cloud.remove("chat", told.append)) == nothing
    assert one_line(lambda: cloud.scale("chat", 2, told.append)) == nothing
    assert one_line(lambda: list(cloud.logs("chat", follow=False, lines=1))) == nothing
    assert "leave out --follow" in one_line(lambda: list(cloud.logs("chat", follow=True, lines=1)))
    assert "at least 1 replica" in one_line(lambda: cloud.scale("chat", 0, told.append))
    local, keyless = replace(DEPLOYMENT, image="rungpt:1"), replace(DEPLOYMENT, server=ServeConfig(require_key=True))
    assert "pulls images from a registry" in one_line(lambda: cloud.deploy(local, told.append))
    assert "set RUNGPT_API_KEY" in one_line(lambda: cloud.deploy(keyless, told.append))


def test_a_server_that_cannot_prove_who_it_is_gets_no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """jcloud itself would send the token to a man in the middle."""
    monkeypatch.setenv("JINA_HUB_ROOT", str(tmp_path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    with StandIn() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        point_at(server.url.replace("http:", "https:"), monkeypatch)
        try:
            said = one_line(lambda: JinaCloud().status("chat"))
        finally:
            server.shutdown()
            thread.join()
        assert "cannot be reached" in said
        assert "certificate verify failed" in said
        assert not server.script.calls


def self_signed(folder: Path) -> Path:
    """Write a self-signed certificate for localhost, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(datetime(2020, 1, 1)).not_valid_after(datetime(2100, 1, 1))
    file = folder / "server.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(private + builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    return file


def test_the_command_prints_addresses_or_one_line(stand_in: StandIn, script: Script, tmp_path: Path) -> None:
    script.phases = ["Serving"]
    arguments = ("smollm2", "--image", "me/rungpt:1", "--memory", "3", "--name", "chat")
    done = deploy(stand_in.url, *arguments)
    assert done.stdout.splitlines() == [f"HTTP  {SERVING.http}", f"gRPC  {SERVING.grpc}"]
    assert done.stderr.splitlines()[:2] == ["deploying smollm2 as chat", "submitted as chat-0000000000"]
    assert KEY not in done.stdout + done.stderr


def test_without_a_network_the_command_says_so_in_one_line(free_ports: Callable[[int], list[int]]) -> None:
    (port,) = free_ports(1)
    done = deploy(f"http://127.0.0.1:{port}", "smollm2", "--image", "me/rungpt:1", "--memory", "3")
    assert done.returncode == 1
    _, line = done.stderr.splitlines()
    assert f"Jina Cloud at http://127.0.0.1:{port} cannot be reached" in line


def deploy(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `rungpt deploy` as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "run_gpt.cli", "deploy", *arguments, "--cloud", "jina"],
        env={**os.environ, "JCLOUD_API": url, "JINA_AUTH_TOKEN": TOKEN, "RUNGPT_API_KEY": KEY},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
