"""Without these tests, Docker Compose could refuse our file, misread it, or show a key in it."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from run_gpt.config import ServeConfig
from run_gpt.deploy import Autoscale, Deployment
from run_gpt.deploy.docker import DockerCompose
from run_gpt.errors import SetupError
from run_gpt.flows.reading import read_flow

CheckGolden = Callable[[str, dict[str, dict[str, str]]], None]


def fitted(deployment: Deployment) -> Deployment:
    """Return the deployment without the settings that Docker Compose refuses."""
    return replace(deployment, gateways=1, autoscale=None)


def rendered(deployment: Deployment, **settings: Any) -> dict[str, Any]:
    file: dict[str, Any] = yaml.safe_load(DockerCompose(**settings).render(deployment)["compose.yml"])
    return file


def one(**settings: Any) -> Deployment:
    server = ServeConfig(**settings.pop("server", {}))
    return Deployment(**{"server": server, "memory_gib": 3, **settings})


def test_the_files_are_what_they_were(deployments: dict[str, Deployment], check_golden: CheckGolden) -> None:
    check_golden("docker", {name: DockerCompose().render(fitted(made)) for name, made in deployments.items()})


def test_the_file_follows_the_specification(case: tuple[str, Deployment]) -> None:
    text = DockerCompose().render(fitted(case[1]))["compose.yml"]
    compose_spec.PyCompose.from_yaml(text).validate()
    file = yaml.safe_load(text)
    assert yaml.safe_load(yaml.safe_dump(file)) == file


def test_the_real_docker_compose_takes_the_file(case: tuple[str, Deployment], tmp_path: Path) -> None:
    """This needs the Compose plugin, but no Docker engine."""
    version = ["docker", "compose", "version"]
    if shutil.which("docker") is None or subprocess.run(version, capture_output=True, check=False).returncode:
        pytest.skip("docker with its Compose plugin is not here")
    text = DockerCompose().render(fitted(case[1]))["compose.yml"]
    (tmp_path / "compose.yml").write_text(text)
    command = ["docker", "compose", "--file", str(tmp_path / "compose.yml"), "config", "--format", "json"]
    env = {**os.environ, "RUNGPT_API_KEY": "a $key"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARN" not in done.stderr.upper()  # a variable that is not set, for example
    environment = yaml.safe_load(done.stdout)["services"]["gateway"]["environment"]
    assert environment["RUNGPT_FLOW"].replace("$$", "$") == fitted(case[1]).flow("executor")


def interpolated(text: str) -> str:
    """Return a value as Docker Compose reads it; a variable is an error here."""
    assert not re.search(r"(?<!\$)(\$\$)*\$(?!\$)", text), "a variable of the caller's"
    return text.replace("$$", "$")


def test_every_container_gets_the_whole_flow_in_which_executors_have_the_services_name(
    case: tuple[str, Deployment],
) -> None:
    """Without escapes, Docker Compose would replace a `$` in an adapter's path."""
    deployment = fitted(case[1])
    for name, service in rendered(deployment)["services"].items():
        flow = read_flow(interpolated(service["environment"]["RUNGPT_FLOW"]))
        assert flow["executors"][0]["host"] == "executor"
        assert flow["executors"][0]["uses"].get("with", {}).get("adapters") == deployment.server.adapters
        aliases = service.get("networks", {}).get("default", {}).get("aliases", [])
        assert name == "gateway" or "executor" in (name, *aliases)


def test_the_doors_are_on_loopback_unless_requests_need_a_key(keys_file: Path) -> None:
    def addresses(deployment: Deployment, **settings: Any) -> set[str]:
        return {port["host_ip"] for port in rendered(deployment, **settings)["services"]["gateway"]["ports"]}

    assert addresses(one()) == {"127.0.0.1"}
    assert addresses(one(server={"api_key": "secret-key"})) == {"0.0.0.0"}
    assert addresses(one(server={"api_key_file": keys_file})) == {"0.0.0.0"}
    assert addresses(one(open=True)) == {"0.0.0.0"}
    assert addresses(one(server={"api_key": "secret-key"}), publish="10.0.0.7") == {"10.0.0.7"}
    with pytest.raises(SetupError, match=r"anyone who reaches 10\.0\.0\.7 of this machine could use this model"):
        rendered(one(), publish="10.0.0.7")


def test_only_the_gateway_has_keys_and_doors(keys_file: Path) -> None:
    services = rendered(one(server={"api_key": "secret-key", "api_key_file": keys_file}))["services"]
    gateway, executor = services["gateway"], services["executor"]
    assert gateway["environment"]["RUNGPT_API_KEY"] == "${RUNGPT_API_KEY:?set it to the key that requests must have}"
    assert gateway["volumes"][0]["target"] == "/etc/rungpt/keys"
    assert gateway["volumes"][0]["read_only"]
    assert "RUNGPT_API_KEY" not in executor["environment"]
    for service in (gateway, executor):
        assert service["environment"]["RUNGPT_EXECUTOR_TOKEN"] == "${RUNGPT_EXECUTOR_TOKEN:-}"
    assert [volume["target"] for volume in executor["volumes"]] == ["/cache"]
    assert "ports" not in executor


def test_each_replica_has_gpus_of_its_own() -> None:
    """Docker gives all containers of a service the same GPUs."""
    services = rendered(one(gpus=2, server={"replicas": 3}))["services"]
    devices = [
        service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for name, service in services.items()
        if name != "gateway"
    ]
    assert devices == [["0", "1"], ["2", "3"], ["4", "5"]]
    assert "shm_size" not in services["executor-0"]
    assert rendered(one(gpus=2, server={"tensor_parallel": 2}))["services"]["executor-0"]["shm_size"] == "1gb"


def test_a_container_may_write_nothing_but_its_cache_and_gets_its_time_to_end(case: tuple[str, Deployment]) -> None:
    deployment = fitted(case[1])
    for service in rendered(deployment)["services"].values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["tmpfs"] == ["/tmp"]
        assert service["stop_grace_period"] == f"{deployment.drain_seconds + 15}s"
        assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"autoscale": Autoscale(least=1, most=4)}, "does not scale by load: leave --autoscale out"),
        ({"gateways": 2}, "leave --gateways out"),
    ],
)
def test_what_docker_compose_cannot_do_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SetupError, match=says):
        rendered(one(**settings))


def test_a_certificate_for_the_executors_is_mounted_in_every_container(tmp_path: Path) -> None:
    made = DockerCompose(executor_tls=str(tmp_path / "a$b"))
    text = made.render(one())["compose.yml"]
    compose_spec.PyCompose.from_yaml(text).validate()
    for service in yaml.safe_load(text)["services"].values():
        mount = service["volumes"][-1]
        assert interpolated(mount["source"]) == str(tmp_path / "a$b")
        assert service["environment"]["RUNGPT_EXECUTOR_TLS"] == mount["target"]
        assert mount["read_only"]
    with pytest.raises(SetupError, match=r"ca\.crt cannot be read"):
        made.deploy(one(), lambda line: None)
