"""Without these tests, a server with several models could start one of them twice, or none on the port that is used."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from run_gpt.config import ServeConfig, ServedModel
from run_gpt.errors import SetupError
from run_gpt.flows.healthcheck import ports_of
from run_gpt.flows.pod import executor_arguments, gateway_arguments
from run_gpt.flows.reading import read_flow
from run_gpt.flows.render import render_flow
from run_gpt.flows.server import check_server, new_supervisor, worker_names

GOLDEN = Path(__file__).parents[2] / "golden" / "flows"
RENEW = "RUNGPT_RENEW_GOLDEN"
"""Environment variable with which the tests rewrite the golden files, to be reviewed in the diff."""

SMALL = ServedModel(model_name="smollm2", unload_after=600.0)
TINY = ServedModel(model_path="/models/tiny", replicas=2, precision="fp32", preload=False, memory=10**9)
TWO = ServeConfig(models=(SMALL, TINY), memory_budget=8 * 10**9)


@pytest.mark.parametrize(("form", "ports"), [("complete", None), ("supervised", [4001, 4002, 4003])])
def test_two_models_render_to_the_golden_file(form: str, ports: list[int] | None) -> None:
    text = render_flow(TWO, worker_ports=ports)
    file = GOLDEN / f"two-models-{form}.yml"
    if os.environ.get(RENEW):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert text == file.read_text(), f"if this change is meant: {RENEW}=1, run the test, and read the diff"


def test_one_model_in_the_list_is_the_flow_of_that_model() -> None:
    """A file with one model must serve as the command line does."""
    assert render_flow(ServeConfig(models=(SMALL,))) == render_flow(
        ServeConfig(model_name="smollm2", unload_after=600.0)
    )


def test_pods_get_what_the_flow_says_of_their_model() -> None:
    flow = read_flow(render_flow(TWO, worker_ports=[4001, 4002, 4003]))
    arguments = gateway_arguments(flow)
    addresses = json.loads(arguments[arguments.index("--deployments-addresses") + 1])
    assert list(addresses) == ["causal_lm_0", "causal_lm_1"], "the first is the default model"
    assert addresses["causal_lm_1"] == ["grpc://127.0.0.1:4002", "grpc://127.0.0.1:4003"]
    started = [executor_arguments(flow, index) for index in range(3)]
    named = [(a[a.index("--name") + 1], a[a.index("--port") + 1], a[a.index("--replica-id") + 1]) for a in started]
    assert named == [
        ("causal_lm_0/rep-0", "4001", "0"),
        ("causal_lm_1/rep-0", "4002", "0"),
        ("causal_lm_1/rep-1", "4003", "1"),
    ]
    uses = [json.loads(a[a.index("--uses") + 1])["with"] for a in started]
    assert uses[0] == {"model_name": "smollm2", "unload_after": 600.0}
    assert (
        uses[1]
        == uses[2]
        == {
            "model_path": "/models/tiny",
            "precision": "fp32",
            "preload": False,
            "memory": 10**9,
        }
    )
    with pytest.raises(SetupError, match="executor 3: the Flow has ports for 3"):
        executor_arguments(flow, 3)


def test_a_worker_is_started_for_each_replica_and_named_after_its_model() -> None:
    events: list[Any] = []
    workers = [child.spec for child in new_supervisor(TWO, events.append)._workers]
    assert [spec.name for spec in workers] == ["worker 0 (smollm2)", "worker 1 (tiny)", "worker 2 (tiny)"]
    assert [spec.command[-2:] for spec in workers] == [("executor", "0"), ("executor", "1"), ("executor", "2")]
    assert worker_names(ServeConfig(replicas=2)) == ["worker 0", "worker 1"]
    assert worker_names(ServeConfig(models=(TINY,))) == ["worker 0", "worker 1"]


def test_a_container_is_healthy_whichever_of_the_executors_runs_in_it() -> None:
    flow = read_flow(render_flow(TWO, worker_ports=[4001, 4002, 4003]))
    assert ports_of(flow) == (52000, [4001, 4002, 4003])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (ServeConfig(models=(SMALL,), model_name="tiny", precision="fp32"), "leave out model_name, precision"),
        (ServeConfig(models=(SMALL,), unload_after=3.0), "leave out unload_after"),
        (ServeConfig(models=(SMALL, ServedModel(model_name="a/b", replicas=0))), "b: --replicas must be at least 1"),
        (ServeConfig(memory=0), "memory must be at least 1 byte, not 0"),
        (ServeConfig(memory_budget=-1), "--memory-budget must be at least 1 byte, not -1"),
        (ServeConfig(unload_after=0.0), "unload_after must be more than 0 seconds, not 0"),
        (ServeConfig(models=(SMALL, TINY), memory_budget=10**9), "tiny: 2 x 1000000000 bytes of memory are more than"),
        (
            ServeConfig(models=(SMALL, ServedModel(memory=5), ServedModel(memory=6)), memory_budget=10),
            "the models that are loaded at the start take 11 bytes of memory, more than the memory budget of 10",
        ),
    ],
)
def test_models_that_cannot_be_served_are_one_line(config: ServeConfig, said: str) -> None:
    """A setting beside `models` would be ignored, and a model that is larger than the budget would never load."""
    for use in (render_flow, check_server):
        with pytest.raises(SetupError) as raised:
            use(config)
        assert said in raised.value.message
        assert "\n" not in raised.value.message


def test_executors_at_one_address_have_one_model() -> None:
    with pytest.raises(SetupError, match="make a Flow for each model"):
        render_flow(TWO, executor_address=("executors", 51001))
    flow = yaml.safe_load(render_flow(ServeConfig(models=(TINY,)), executor_address=("executors", 51001)))
    assert [executor["name"] for executor in flow["executors"]] == ["causal_lm"]
