"""Without these tests, a failing deployment on AWS could show a traceback, or nothing for hours."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from run_gpt.deploy.aws import AWS, stack
from run_gpt.deploy.aws.session import Refused, Session
from run_gpt.deploy.aws.stack import TAG, Stack
from run_gpt.errors import SetupError

NAME = "chat"
MISSING = Refused("...", "ValidationError", f"Stack with id {NAME} does not exist")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets the AWS configuration to the given variables and hides that of this machine."""

    def have(**variables: str) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, "/nonexistent")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setattr("run_gpt.deploy.aws.session.ATTEMPTS", 1)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return have


def test_without_boto3_there_is_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(SetupError, match=r"pip install 'rungpt\[aws\]'"):
        AWS(region="us-east-1").status(NAME)


def test_a_configuration_that_lacks_something_says_what(environment: Callable[..., None]) -> None:
    environment()
    with pytest.raises(SetupError, match=r"no AWS region: give --region, or set \$AWS_DEFAULT_REGION"):
        AWS().status(NAME)
    with pytest.raises(SetupError, match=r"no credentials for AWS: run `aws configure`"):
        AWS(region="us-east-1").status(NAME)
    environment(AWS_PROFILE="unheard-of")
    with pytest.raises(SetupError, match=r"the AWS configuration cannot be used: .*unheard-of"):
        AWS(region="us-east-1").status(NAME)


def test_no_network_is_one_line(environment: Callable[..., None]) -> None:
    environment(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_ENDPOINT_URL="http://127.0.0.9:9")
    with pytest.raises(SetupError, match=r"AWS cannot be reached in us-east-1: .*; check the network and --region"):
        AWS(region="us-east-1").status(NAME)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("ExpiredToken", "the credentials for AWS have expired"),
        ("InvalidClientTokenId", "AWS does not know these credentials"),
        ("AccessDenied", r"may not do this on AWS: User: x is not authorized to perform: y$"),
        ("Throttling", r"AWS refused DescribeStacks: User: x is not authorized to perform: y$"),
    ],
)
def test_a_call_that_aws_refuses_is_one_line_that_says_what_to_do(
    environment: Callable[..., None], code: str, says: str
) -> None:
    from botocore.stub import Stubber

    environment(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
    session = Session("us-east-1")
    with Stubber(session._client("cloudformation")) as stub:
        stub.add_client_error("describe_stacks", code, "User: x is not authorized\nto perform: y")
        with pytest.raises(SetupError, match=says) as caught:
            Stack(session, NAME).get()
    assert "\n" not in caught.value.message


class Script:
    """Session with scripted answers: each call takes the next one, and the last one repeats for ever."""

    region = "us-east-1"

    def __init__(self, **answers: list[Any]):
        self._answers = {"describe_stack_resource": [Refused("...", "ValidationError", "no such resource")]} | answers
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def call(self, service: str, operation: str, **arguments: Any) -> Any:
        self.calls.append((operation, arguments))
        answers = self._answers[operation]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "PAUSE", 0.0)


def state(status: str) -> dict[str, Any]:
    found = {"StackId": "id", "StackStatus": status, "Tags": [{"Key": TAG, "Value": NAME}], "Parameters": []}
    return {"Stacks": [found]}


def event(number: int, resource: str, status: str, reason: str = "", kind: str = "AWS::EC2::VPC") -> dict[str, Any]:
    return {
        "EventId": str(number),
        "LogicalResourceId": resource,
        "ResourceType": kind,
        "ResourceStatus": status,
        "ResourceStatusReason": reason,
    }


SERVICE = "AWS::ECS::Service"
EVENTS = [
    event(1, NAME, "CREATE_IN_PROGRESS"),
    event(2, "Vpc", "CREATE_COMPLETE"),
    event(3, "ExecutorService", "CREATE_IN_PROGRESS", kind=SERVICE),
    event(4, "ExecutorService", "CREATE_FAILED", "ECS Deployment Circuit Breaker was triggered.", SERVICE),
    event(5, "Http", "CREATE_FAILED", "Resource creation cancelled"),
    event(6, "Vpc", "DELETE_COMPLETE"),
]


def pages(*lengths: int) -> list[dict[str, Any]]:
    """Return CloudFormation's answers from poll to poll: the events up to then, the newest first."""
    return [{"StackEvents": EVENTS[:length][::-1]} for length in lengths]


def test_a_stack_that_fails_says_what_failed_first_and_shows_the_last_lines_of_the_containers() -> None:
    session = Script(
        describe_stacks=[MISSING, state("CREATE_IN_PROGRESS"), state("DELETE_IN_PROGRESS"), state("DELETE_COMPLETE")],
        describe_stack_events=pages(3, 5, 6),
        create_stack=[{"StackId": "id"}],
        describe_log_streams=[{"logStreams": [{"logStreamName": "rungpt/executor/0123456789"}]}],
        get_log_events=[{"events": [{"timestamp": 1, "message": "no such model: org/model"}]}],
    )
    told: list[str] = []
    with pytest.raises(SetupError) as caught:
        Stack(session, NAME, told.append).put("template", {})  # type: ignore[arg-type]
    assert caught.value.message == (
        "ExecutorService (AWS::ECS::Service) failed: ECS Deployment Circuit Breaker was triggered; what had been made "
        "is deleted again"
    )
    assert told == [
        "creating the stack chat in us-east-1; Ctrl-C leaves it to AWS",
        "Vpc: create complete",
        "ExecutorService: create in progress",
        *["[executor 01234567] no such model: org/model"] * 2,  # the script has the same line in both logs
        "ExecutorService: create failed: ECS Deployment Circuit Breaker was triggered.",
        "Http: create failed: Resource creation cancelled",
        "Vpc: delete complete",
    ]
    assert dict(session.calls)["create_stack"]["OnFailure"] == "DELETE", "what is left of a failed one would be billed"


def test_a_change_that_fails_says_that_the_deployment_serves_as_before() -> None:
    session = Script(
        describe_stacks=[state("CREATE_COMPLETE"), state("UPDATE_ROLLBACK_COMPLETE")],
        describe_stack_events=[
            {"StackEvents": [event(1, NAME, "CREATE_COMPLETE")]},
            {"StackEvents": [event(2, "Vpc", "UPDATE_FAILED", "no"), event(1, NAME, "CREATE_COMPLETE")]},
        ],
        update_stack=[{}],
    )
    with pytest.raises(SetupError, match=r"^Vpc .* failed: no; it is rolled back: the previous version serves$"):
        Stack(session, NAME).put("template", {})  # type: ignore[arg-type]


def test_what_failed_long_ago_is_not_taken_for_a_failure_of_now_and_events_are_read_page_by_page() -> None:
    old = [event(number, "Vpc", "CREATE_FAILED", "old") for number in range(3)]
    session = Script(
        describe_stacks=[state("UPDATE_ROLLBACK_COMPLETE"), state("UPDATE_COMPLETE")],
        describe_stack_events=[
            {"StackEvents": old[:2], "NextToken": "more"},
            {"StackEvents": old[2:]},
            {"StackEvents": [event(9, NAME, "UPDATE_COMPLETE"), *old]},
        ],
        update_stack=[{}],
    )
    told: list[str] = []
    Stack(session, NAME, told.append).put("template", {})  # type: ignore[arg-type]
    assert told[1:] == ["chat: update complete"]


def test_a_stack_that_had_failed_is_deleted_before_it_is_made_anew() -> None:
    session = Script(
        describe_stacks=[
            *[state("ROLLBACK_COMPLETE")] * 2,
            *[state("DELETE_COMPLETE"), state("CREATE_COMPLETE")],
        ],
        describe_stack_events=[{"StackEvents": []}],
        delete_stack=[{}],
        create_stack=[{"StackId": "id"}],
    )
    Stack(session, NAME).put("template", {})  # type: ignore[arg-type]
    assert [name for name in session.names() if name in ("delete_stack", "create_stack")] == [
        "delete_stack",
        "create_stack",
    ]


def test_a_stack_that_is_being_changed_is_not_changed_again() -> None:
    session = Script(describe_stacks=[state("UPDATE_IN_PROGRESS")])
    with pytest.raises(SetupError, match=r"the stack chat is being changed \(UPDATE_IN_PROGRESS\): wait for its end"):
        Stack(session, NAME).change(Replicas="2")  # type: ignore[arg-type]


def test_a_stack_that_cannot_be_deleted_says_why() -> None:
    session = Script(
        describe_stacks=[state("CREATE_COMPLETE"), state("DELETE_FAILED")],
        describe_stack_events=[{"StackEvents": []}, {"StackEvents": [event(1, "Vpc", "DELETE_FAILED", "in use")]}],
        delete_stack=[{}],
    )
    with pytest.raises(SetupError, match=r"^Vpc .* failed: in use; the stack is left as DELETE_FAILED: `rungpt deploy"):
        Stack(session, NAME).delete()  # type: ignore[arg-type]


def test_a_quota_that_lets_no_instance_start_is_told_at_once_and_once() -> None:
    """CloudFormation does not report the quota, and waits for hours."""
    quota = "You have requested more vCPU capacity than your current vCPU limit of 0 allows"
    failed = {"StatusCode": "Failed", "StatusMessage": quota, "StartTime": datetime.now(UTC)}
    long_ago = {**failed, "StatusMessage": "no room", "StartTime": datetime.now(UTC) - timedelta(days=1)}
    activities = [failed, failed, {**failed, "StatusCode": "Successful"}, long_ago]
    session = Script(
        describe_stacks=[MISSING, *[state("CREATE_IN_PROGRESS")] * 3, state("CREATE_COMPLETE")],
        describe_stack_events=[{"StackEvents": []}],
        create_stack=[{"StackId": "id"}],
        describe_stack_resource=[
            Refused("...", "ValidationError", "Resource Instances does not exist for stack chat"),
            {"StackResourceDetail": {"PhysicalResourceId": "group"}},
        ],
        describe_scaling_activities=[{"Activities": activities}],
    )
    told: list[str] = []
    Stack(session, NAME, told.append).put("template", {})  # type: ignore[arg-type]
    assert told[1:] == [f"no instance could be started: {quota}"]


def test_protected_instances_of_a_stack_that_is_rolled_back_are_let_go() -> None:
    instances = [
        {"InstanceId": "i-1", "ProtectedFromScaleIn": True, "LifecycleState": "InService"},
        {"InstanceId": "i-2", "ProtectedFromScaleIn": False, "LifecycleState": "InService"},
    ]
    session = Script(
        describe_stacks=[MISSING, state("DELETE_IN_PROGRESS"), state("DELETE_COMPLETE")],
        describe_stack_events=[{"StackEvents": []}],
        create_stack=[{"StackId": "id"}],
        describe_stack_resource=[{"StackResourceDetail": {"PhysicalResourceId": "group"}}],
        describe_auto_scaling_groups=[{"AutoScalingGroups": [{"Instances": instances}]}],
        set_instance_protection=[{}],
        describe_scaling_activities=[{"Activities": []}],
    )
    with pytest.raises(SetupError, match="the stack chat ended as DELETE_COMPLETE; what had been made is deleted"):
        Stack(session, NAME).put("template", {})  # type: ignore[arg-type]
    assert dict(session.calls)["set_instance_protection"] == {
        "AutoScalingGroupName": "group",
        "InstanceIds": ["i-1"],
        "ProtectedFromScaleIn": False,
    }


def test_a_template_that_is_too_large_is_refused_before_it_is_sent() -> None:
    with pytest.raises(SetupError, match="more than the 51200 bytes that AWS takes"):
        Stack(Script(), NAME).put("x" * 51_201, {})  # type: ignore[arg-type]


def test_a_log_that_is_gone_does_not_hide_what_failed() -> None:
    session = Script(
        describe_stacks=[MISSING, state("DELETE_COMPLETE")],
        describe_stack_events=pages(6),
        create_stack=[{"StackId": "id"}],
        describe_log_streams=[Refused("...", "ResourceNotFoundException", "")],
    )
    told: list[str] = []
    with pytest.raises(SetupError, match=r"ExecutorService .* failed: ECS Deployment Circuit Breaker"):
        Stack(session, NAME, told.append).put("template", {})  # type: ignore[arg-type]
    assert "there is no log /rungpt/chat/gateway in us-east-1: see the name and --region" in told
