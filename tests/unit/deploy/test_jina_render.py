"""Without these tests, the Flow for Jina Cloud could change by accident, or jcloud and Jina could misread it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import run_gpt.process._jina  # noqa: F401  (before jcloud imports jina)
from run_gpt.config import ServeConfig
from run_gpt.deploy import Autoscale, Deployment
from run_gpt.deploy.jina import JinaCloud
from run_gpt.errors import SetupError

IMAGE = "example/rungpt:1.2.3"
KEY = "long-enough-key"


def deployment(server: ServeConfig | None = None, **settings: Any) -> Deployment:
    """Return a deployment that is open to all clients."""
    return Deployment(**{"server": server or ServeConfig(), "image": IMAGE, "memory_gib": 3, "open": True, **settings})


def flow_of(cloud: JinaCloud, of: Deployment) -> dict[str, Any]:
    """Return the Flow that the cloud gets."""
    (text,) = cloud.render(of).values()
    return dict(yaml.safe_load(text))


def executor_of(cloud: JinaCloud, of: Deployment) -> dict[str, Any]:
    """Return the executor of the Flow that the cloud gets."""
    return dict(flow_of(cloud, of)["executors"][0])


def test_each_deployment_renders_to_its_golden_file(
    deployments: dict[str, Deployment], check_golden: Callable[[str, dict[str, dict[str, str]]], None]
) -> None:
    del deployments["gpu"]  # the refusal of key files is tested below
    rendered = {name: JinaCloud().render(of) for name, of in deployments.items()}
    check_golden("jina", {**rendered, "instance": on_an_instance()})


def on_an_instance() -> dict[str, str]:
    """Return the files of a deployment with an instance of its own, and with options that `deployments` lack."""
    cloud = JinaCloud(instance="G4", capacity="on-demand")
    server = ServeConfig(
        model_name="org/model-70b",
        device_map="balanced",
        adapters={"law": "org/law-lora", "odd": "/adapters/$(odd) ${one}"},
        cors_origins=("https://app.example.com",),
        request_timeout=1200.5,
        max_running=128,
    )
    return cloud.render(deployment(server, cpus=16, memory_gib=50, gpus=4))


def test_jcloud_itself_reads_the_same_flow_and_takes_the_key_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """jcloud must recognise a Flow with finished images, or it would build, push, or crash."""
    from jcloud.helper import load_flow_data, normalized

    (text,) = JinaCloud().render(deployment(ServeConfig(api_key=KEY, precision="bit4", replicas=2))).values()
    file = tmp_path / "flow.yml"
    file.write_text(text)
    meant = yaml.safe_load(text)
    monkeypatch.setenv("RUNGPT_API_KEY", KEY)
    monkeypatch.setenv("RUNGPT_EXECUTOR_TOKEN", "its-token")
    assert normalized(file)
    read = load_flow_data(file)
    assert read["gateway"]["env"]["RUNGPT_API_KEY"] == KEY
    for pod in (read["gateway"], *read["executors"]):
        assert pod["env"]["RUNGPT_EXECUTOR_TOKEN"] == "its-token"
    for flow in (read, meant):
        for pod in (flow["gateway"], *flow["executors"]):
            pod["env"] = sorted(pod["env"])  # jcloud converts their values to numbers; the Flow that we push keeps text
    assert read == meant


def test_jina_takes_every_field_that_is_not_of_its_cloud() -> None:
    """A field that Jina does not know would be dropped, with its value, on the way to the containers."""
    from jina.parsers import set_deployment_parser, set_gateway_parser

    server = ServeConfig(api_key=KEY, precision="bit4", trace_endpoint="otel.example:4317")
    flow = flow_of(JinaCloud(), deployment(server))
    assert flow["gateway"]["traces_exporter_port"] == flow["executors"][0]["traces_exporter_port"] == 4317
    for pod, parser in ((flow["gateway"], set_gateway_parser()), (flow["executors"][0], set_deployment_parser())):
        known = {action.dest for action in parser._actions}
        assert pod.keys() - known == {"jcloud"}


def test_the_memory_is_in_the_unit_that_jina_cloud_knows() -> None:
    resources = executor_of(JinaCloud(), deployment(memory_gib=3.5, cpus=0.5, gpus=1))["jcloud"]["resources"]
    assert resources == {"cpu": 0.5, "memory": "4G", "gpu": 1, "capacity": "spot"}


@pytest.mark.parametrize(
    ("image", "executor"),
    [
        ("me/rungpt", "docker://me/rungpt-executor"),
        ("me/rungpt:1.0", "docker://me/rungpt-executor:1.0"),
        ("localhost:5000/me/rungpt", "docker://localhost:5000/me/rungpt-executor"),
    ],
)
def test_the_two_images_are_called_after_the_one(image: str, executor: str) -> None:
    assert executor_of(JinaCloud(), deployment(image=image))["uses"] == executor


@pytest.mark.parametrize(
    ("cloud", "settings", "says"),
    [
        ({"instance": "C9"}, {}, "--instance C9: Jina Cloud has C1, C2"),
        ({"capacity": "cheap"}, {}, "--capacity cheap: give one of spot, on-demand"),
        ({"instance": "C3"}, {"cpus": 2}, "--instance C3 has 1, less than --cpus requires: 2"),
        ({"instance": "C4"}, {"memory_gib": 4}, "--instance C4 has 4, less than --memory requires: 4.3"),
        ({"instance": "C8"}, {"gpus": 1}, "--instance C8 has 0, less than --gpus requires: 1"),
        ({}, {"open": False}, "anyone who finds its address on the internet could use this model"),
        ({}, {"server": ServeConfig(api_key_file=Path("keys"))}, "so --api-key-file does not work"),
        ({}, {"image": "me/rungpt@sha256:" + "0" * 64}, "give a tag in place of the digest"),
        (
            {},
            {"server": ServeConfig(replicas=3), "autoscale": Autoscale(least=1, most=4)},
            "--replicas 3: with --autoscale Jina Cloud starts with MIN, 1",
        ),
    ],
)
def test_what_jina_cloud_cannot_do_is_refused(cloud: dict[str, Any], settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SetupError) as caught:
        JinaCloud(**cloud).render(deployment(**settings))
    assert says in caught.value.message
    assert os.linesep not in caught.value.message
