"""Without these tests, `rungpt deploy status` could report a loading deployment as serving, or give no reasons."""

from datetime import UTC, datetime
from typing import Any

import pytest

from run_gpt.deploy.aws import AWS, target
from run_gpt.deploy.target import Endpoints, Status

OUTPUTS = {
    "Http": "http://lb:52000",
    "Grpc": "grpc://lb:51000",
    "Cluster": "cluster",
    "ExecutorService": "executors",
    "GatewayService": "gateways",
}


class Answers:
    """Session of AWS with one stack."""

    region = "us-east-1"

    def __init__(self, **about: Any):
        self.status: str = about["status"]
        self.reason: str | None = about.get("reason")
        self.outputs: dict[str, str] = about.get("outputs", OUTPUTS)
        self.healths: list[str] = about.get("healths", [])
        self.wanted: int = about.get("wanted", 2)
        self.gateways: int = about.get("gateways", 1)

    def call(self, service: str, operation: str, **arguments: Any) -> dict[str, Any]:
        return dict(getattr(self, operation)())

    def describe_stacks(self) -> dict[str, Any]:
        outputs = [{"OutputKey": key, "OutputValue": value} for key, value in self.outputs.items()]
        found = {"StackId": "id", "StackStatus": self.status, "Tags": [{"Key": "rungpt", "Value": "chat"}]}
        return {"Stacks": [found | {"Outputs": outputs} | ({"StackStatusReason": self.reason} if self.reason else {})]}

    def describe_services(self) -> dict[str, Any]:
        events = [{"message": f"event {number}"} for number in range(3)]
        executors = {"serviceName": "executors", "desiredCount": self.wanted, "events": events}
        return {"services": [executors, {"serviceName": "gateways", "runningCount": self.gateways}]}

    def list_tasks(self) -> dict[str, Any]:
        return {"taskArns": [str(number) for number in range(len(self.healths))]}

    def describe_tasks(self) -> dict[str, Any]:
        return {"tasks": [{"healthStatus": health} for health in self.healths]}

    def describe_stack_resource(self) -> dict[str, Any]:
        return {"StackResourceDetail": {"PhysicalResourceId": "group"}}

    def describe_scaling_activities(self) -> dict[str, Any]:
        return {"Activities": [{"StatusCode": "Failed", "StatusMessage": "limit of 0", "StartTime": datetime.now(UTC)}]}


def seen(monkeypatch: pytest.MonkeyPatch, **about: Any) -> Status:
    monkeypatch.setattr(target, "Session", lambda region: Answers(**about))
    return AWS().status("chat")


DOORS = Endpoints(http="http://lb:52000", grpc="grpc://lb:51000")


def test_a_replica_is_ready_when_its_model_is_loaded_not_when_its_task_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    found = seen(monkeypatch, status="CREATE_COMPLETE", healths=["HEALTHY", "UNKNOWN"])
    assert found == Status(name="chat", phase="serving", ready=1, wanted=2, endpoints=DOORS)


def test_what_keeps_it_from_serving_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = seen(monkeypatch, status="UPDATE_IN_PROGRESS", healths=["UNKNOWN"])
    notes = ("event 0", "event 1", "no instance could be started: limit of 0")
    assert found == Status(name="chat", phase="starting", ready=0, wanted=2, endpoints=DOORS, notes=notes)
    assert seen(monkeypatch, status="CREATE_COMPLETE", healths=["HEALTHY"], gateways=0).phase == "starting"


def test_a_change_that_was_undone_serves_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = seen(monkeypatch, status="UPDATE_ROLLBACK_COMPLETE", reason="no such image", healths=["HEALTHY"] * 2)
    assert found.phase == "serving"
    assert found.notes == ("UPDATE_ROLLBACK_COMPLETE: no such image",)


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        ("CREATE_IN_PROGRESS", "starting"),
        ("ROLLBACK_COMPLETE", "failed"),
        ("DELETE_FAILED", "failed"),
        ("DELETE_IN_PROGRESS", "stopped"),
    ],
)
def test_a_stack_that_never_was_complete(monkeypatch: pytest.MonkeyPatch, status: str, phase: str) -> None:
    assert seen(monkeypatch, status=status, outputs={}).phase == phase


def test_none_wanted_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    found = seen(monkeypatch, status="UPDATE_COMPLETE", wanted=0)
    assert (found.phase, found.ready, found.wanted) == ("stopped", 0, 0)
