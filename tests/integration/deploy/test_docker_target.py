"""Without these tests, `rungpt deploy --cloud docker` could show Docker's own errors, or leave half of a deployment.

RunGPT uses the command line of docker; `docker_stand_in.py` answers in its place.
"""

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker_stand_in
import pytest
import yaml

from run_gpt.config import ServeConfig
from run_gpt.deploy import Deployment, Endpoints
from run_gpt.deploy import docker as docker_target
from run_gpt.deploy.docker import DockerCompose
from run_gpt.errors import SetupError

KEY = "secret-key-of-the-test"


class StandIn:
    """State of the stand-in: its past calls, and the behaviour that the test sets."""

    def __init__(self, folder: Path):
        self.file = folder / "stand-in.json"
        self.home = folder / "state" / "rungpt" / "docker"
        self.set(
            calls=[],
            projects={},
            has_compose=True,
            has_engine=True,
            has_image=True,
            up_fails="",
            loading_polls=2,
            polls=0,
            crashing="",
            log="a line",
        )

    def set(self, **values: Any) -> None:
        state = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.file.write_text(json.dumps(state | values))

    def get(self, name: str) -> Any:
        return json.loads(self.file.read_text())[name]

    def called(self, command: str) -> list[list[str]]:
        """Return the arguments, after those for the project, of each call of this `docker compose` command."""
        calls = [call["arguments"][5:] for call in self.get("calls")]
        return [call for call in calls if call[:1] == [command]]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {docker_stand_in.__file__} "$@"\n')
    program.chmod(0o755)
    found = StandIn(tmp_path)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(found.file))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COMPOSE_FILE", "somebody-elses.yml")
    monkeypatch.delenv("RUNGPT_API_KEY", raising=False)
    monkeypatch.setattr(docker_target, "_POLL_SECONDS", 0.01)
    return found


@pytest.fixture
def said() -> list[str]:
    """Return a list for the lines of progress."""
    return []


def deployment(**settings: Any) -> Deployment:
    server = ServeConfig(replicas=2, **settings.pop("server", {}))
    return Deployment(**{"server": server, "name": "chat", "memory_gib": 3, **settings})


def test_the_life_of_a_deployment(stand_in: StandIn, said: list[str]) -> None:
    target = DockerCompose(publish_http=52900)
    urls = target.deploy(deployment(), said.append)
    assert urls == Endpoints(http="http://127.0.0.1:52900", grpc="grpc://127.0.0.1:51000")
    assert "Container chat-executor-2  Started" in said
    assert said[-1] == "0 of 2 replicas ready"  # it waited, and said what for
    status = target.status("chat")
    assert (status.phase, status.ready, status.wanted, status.notes) == ("serving", 2, 2, ())
    assert status.endpoints == urls
    assert list(target.logs("chat", follow=True, lines=7)) == ["executor-1  | a line"]
    assert stand_in.called("logs") == [["logs", "--no-color", "--tail", "7", "--follow"]]
    target.scale("chat", 5, said.append)
    assert target.status("chat").wanted == 5
    target.scale("chat", 0, said.append)
    assert (target.status("chat").phase, target.status("chat").wanted) == ("stopped", 0)
    target.scale("chat", 5, said.append)
    target.remove("chat", said.append)
    assert "Container chat-executor-5  Removed" in said
    assert not list(stand_in.home.iterdir())
    with pytest.raises(SetupError, match="there is no deployment chat: `docker compose ls --all` lists them"):
        target.status("chat")


def test_the_same_command_again_changes_what_is_there(stand_in: StandIn, said: list[str]) -> None:
    DockerCompose().deploy(deployment(), said.append)
    variables = stand_in.home / "chat" / ".env"
    token = variables.read_text()
    assert re.fullmatch(r"RUNGPT_EXECUTOR_TOKEN=\S{40,}\n", token)
    assert variables.stat().st_mode & 0o077 == 0
    DockerCompose().deploy(deployment(cpus=7, server={"precision": "bit4"}), said.append)
    assert variables.read_text() == token, "executors that stay have it"
    assert len(stand_in.called("up")) == 2
    text = (stand_in.home / "chat" / "compose.yml").read_text()
    assert "cpus: '7'" in text
    assert "precision: bit4" in text


def test_the_key_reaches_docker_by_its_environment_and_by_nothing_else(stand_in: StandIn, said: list[str]) -> None:
    endpoints = DockerCompose().deploy(deployment(server={"api_key": KEY}), said.append)
    assert endpoints.http == "http://127.0.0.1:52000"  # this machine's address of a server on 0.0.0.0
    assert KEY not in (stand_in.home / "chat" / "compose.yml").read_text() + "".join(said)
    calls = stand_in.get("calls")
    assert not any(KEY in argument for call in calls for argument in call["arguments"])
    assert [call["key"] for call in calls if "up" in call["arguments"]] == [KEY]
    DockerCompose().scale("chat", 3, said.append)  # from a shell without the key, which scaling does not need
    DockerCompose().remove("chat", said.append)


def test_keys_reach_the_gateway_as_a_folder_that_no_other_user_can_enter(
    stand_in: StandIn, said: list[str], tmp_path: Path
) -> None:
    """The container reads the keys as another user. A mounted file would keep its old content when it is replaced."""
    keys = tmp_path / "mine.txt"
    keys.write_text(f"alice: {KEY}\n")
    keys.chmod(0o600)
    for text in (f"alice: {KEY}\n", f"bob: {KEY}-two\n"):
        keys.write_text(text)
        DockerCompose().deploy(deployment(server={"api_key_file": keys}), said.append)
        copy = stand_in.home / "chat" / "keys" / "keys"
        assert copy.read_text() == text
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (copy, copy.parent, copy.parent.parent)]
        assert modes == [0o644, 0o755, 0o700]
        assert sorted(path.name for path in copy.parent.iterdir()) == ["keys"]
    DockerCompose().remove("chat", said.append)
    assert not copy.exists()


def test_the_error_of_a_model_that_does_not_load_is_reported_at_once(stand_in: StandIn, said: list[str]) -> None:
    stand_in.set(crashing="chat-executor-1", log="Traceback\nrungpt: there is no model org/unheard-of\nbye")
    says = r"chat-executor-1 restarting \(exit code 78, 1 restarts\): there is no model org/unheard-of$"
    with pytest.raises(SetupError, match=says):
        DockerCompose().deploy(deployment(), said.append)
    status = DockerCompose().status("chat")
    assert status.phase == "failed"
    assert "chat-executor-1 restarting" in status.notes[0]


def test_one_that_never_serves_is_not_waited_for_without_end(stand_in: StandIn, said: list[str]) -> None:
    stand_in.set(loading_polls=10**9)
    says = r"does not serve after 0.05 s \(0 of 2 replicas ready\): see `rungpt deploy logs chat --cloud docker`"
    with pytest.raises(SetupError, match=says):
        DockerCompose(compose_wait=0.05).deploy(deployment(), said.append)
    assert DockerCompose().status("chat").phase == "starting"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"has_compose": False}, "docker has no `compose` here: install Docker's Compose plugin, then again"),
        ({"has_engine": False}, f"docker says: {docker_stand_in.NO_ENGINE}"),
        (
            {"up_fails": "Error response from daemon: driver failed: port is already allocated"},
            "docker says: Error response from daemon: driver failed: port is already allocated",
        ),
        (
            {"up_fails": "Error response from daemon: pull access denied for rungpt", "has_image": False},
            r"pull access denied for rungpt. If it is the image rungpt:[\d.]+ that is missing: build it, in a clone of "
            r"RunGPT, with `docker build --tag rungpt:[\d.]+ .`, or name another with --image",
        ),
    ],
)
def test_what_docker_lacks_or_refuses_is_one_line(
    stand_in: StandIn, said: list[str], settings: dict[str, Any], says: str
) -> None:
    stand_in.set(**settings)
    with pytest.raises(SetupError, match=says) as caught:
        DockerCompose().deploy(deployment(), said.append)
    assert "\n" not in caught.value.message


def test_without_docker_it_says_what_to_install(
    stand_in: StandIn, said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for call in (
        lambda: DockerCompose().deploy(deployment(), said.append),
        lambda: DockerCompose().status("chat"),
    ):
        with pytest.raises(SetupError, match="the program docker is not here: install Docker with its Compose plugin"):
            call()


def test_a_project_of_somebody_elses_is_neither_replaced_nor_removed(
    stand_in: StandIn, said: list[str], tmp_path: Path
) -> None:
    """The volume of such a project may hold a database."""
    file = tmp_path / "theirs.yml"
    file.write_text("name: chat\nservices: {db: {image: postgres}}\n")
    stand_in.set(projects={"chat": {"file": str(file), "containers": []}})
    calls: list[Callable[[], object]] = [
        lambda: DockerCompose().deploy(deployment(), said.append),
        lambda: DockerCompose().remove("chat", said.append),
        lambda: DockerCompose().scale("chat", 0, said.append),
        lambda: list(DockerCompose().logs("chat", follow=False, lines=1)),
    ]
    for call in calls:
        with pytest.raises(SetupError, match="that `rungpt deploy` has not made"):
            call()
    assert "chat" in stand_in.get("projects")


def test_a_deployment_from_another_machine_is_not_touched_blindly(stand_in: StandIn, said: list[str]) -> None:
    stand_in.set(projects={"chat": {"file": "/elsewhere/compose.yml", "containers": []}})
    with pytest.raises(SetupError, match=r"/elsewhere/compose\.yml, is not on this machine: deploy it again, or"):
        DockerCompose().remove("chat", said.append)


def test_with_gpus_the_number_of_replicas_is_changed_by_deploy(stand_in: StandIn, said: list[str]) -> None:
    """Containers of one service would all get the same GPUs."""
    DockerCompose().deploy(deployment(gpus=1), said.append)
    assert DockerCompose().status("chat").wanted == 2
    with pytest.raises(SetupError, match="give `rungpt deploy` another --replicas instead"):
        DockerCompose().scale("chat", 3, said.append)


def test_files_that_were_written_by_output_and_started_by_hand_are_ours_too(stand_in: StandIn, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "run_gpt.cli", "deploy"]
    options = ["smollm2", "--cloud", "docker", "--name", "mine", "--memory", "2", "--output", str(tmp_path / "out")]
    subprocess.run([*command, *options], check=True, timeout=60, capture_output=True)
    file = tmp_path / "out" / "compose.yml"
    up = ["docker", "compose", "--project-name", "mine", "--file", str(file), "up", "--detach", "--remove-orphans"]
    subprocess.run(up, check=True, timeout=60, capture_output=True)
    done = subprocess.run([*command, "remove", "mine", "--cloud", "docker"], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert file.exists()
    assert yaml.safe_load(file.read_text())["name"] == "mine"
