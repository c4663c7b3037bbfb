"""Without these tests, `rungpt deploy --cloud aws` could work on paper only. The real boto3 runs against moto's AWS."""

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partialmethod
from itertools import islice
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws
from moto.cloudformation import parsing
from moto.cloudformation.models import CloudFormationBackend
from moto.elbv2.models import ELBv2Backend

from run_gpt.config import ServeConfig
from run_gpt.deploy import Autoscale, Deployment
from run_gpt.deploy.aws import AWS
from run_gpt.deploy.aws.fleet import Fleet
from run_gpt.deploy.aws.session import Refused, Session
from run_gpt.deploy.aws.stack import Stack
from run_gpt.errors import SetupError

REGION = "us-east-1"
IMAGE = "example/rungpt:1.2.3"
NAME = "rungpt-smollm2"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class _Unmade:
    """Resource that moto's CloudFormation does not know: it gets a name here, and does nothing."""

    kind = ""

    def __init__(self, name: str):
        self.name = self.physical_resource_id = name
        self.type = self.kind

    @classmethod
    def cloudformation_type(cls) -> str:
        return cls.kind

    @staticmethod
    def cloudformation_name_type() -> str:
        return ""

    @classmethod
    def has_cfn_attr(cls, attr: str) -> bool:
        return True

    def get_cfn_attribute(self, attribute_name: str) -> str:
        return f"{self.name}.{attribute_name}"

    @classmethod
    def create_from_cloudformation_json(cls, resource_name: str, *_: Any, **__: Any) -> Any:
        return cls(resource_name)

    @classmethod
    def update_from_cloudformation_json(cls, original_resource: Any, *_: Any) -> Any:
        return original_resource

    @classmethod
    def delete_from_cloudformation_json(cls, *_: Any, **__: Any) -> None:
        return

    def is_created(self) -> bool:
        return True


@pytest.fixture(scope="module")
def boto() -> Iterator[boto3.Session]:
    """Yield one session for all tests: each session reads megabytes of JSON about the services."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "none")
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, "/nonexistent")
        patch.delenv("AWS_PROFILE", raising=False)
        patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
        session = boto3.Session(region_name=REGION)
        patch.setattr(boto3, "Session", lambda region_name: session)
        patch.setattr(boto3, "client", session.client)
        yield session


@pytest.fixture
def aws(boto: boto3.Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[AWS]:
    """Yield AWS in this process, with the resources that moto's CloudFormation lacks."""
    monkeypatch.setattr("run_gpt.deploy.aws.stack.PAUSE", 0.0)
    lacking = (
        *("ServiceDiscovery::PrivateDnsNamespace", "ServiceDiscovery::Service", "ECS::CapacityProvider"),
        *("ECS::ClusterCapacityProviderAssociations", "Logs::MetricFilter"),
        *("ApplicationAutoScaling::ScalableTarget", "ApplicationAutoScaling::ScalingPolicy"),
    )
    made = {f"AWS::{kind}": type(kind, (_Unmade,), {"kind": f"AWS::{kind}"}) for kind in lacking}
    known = dict(parsing.get_model_map())
    monkeypatch.setattr(parsing, "get_model_map", lambda: known | made)
    # moto makes an application load balancer of each.
    network = partialmethod(ELBv2Backend.create_load_balancer, loadbalancer_type="network")
    monkeypatch.setattr(ELBv2Backend, "create_load_balancer", network)
    # moto does not know that a parameter with a default has a previous value.
    given = CloudFormationBackend._resolve_update_parameters
    monkeypatch.setattr(
        CloudFormationBackend,
        "_resolve_update_parameters",
        lambda self, instance, incoming_params: given(
            self, instance, [one for one in incoming_params if one["ParameterKey"] in instance.parameters]
        ),
    )
    with mock_aws():
        yield AWS(region=REGION)


def client(service: str) -> Any:
    return boto3.client(service, region_name=REGION)


def deployment(**settings: Any) -> Deployment:
    return Deployment(**{"server": ServeConfig(api_key="sesame"), "image": IMAGE, "memory_gib": 3} | settings)


def test_a_deployment_is_made_changed_scaled_and_removed_with_all_that_it_was(aws: AWS) -> None:
    """The VPC exists before: moto's CloudFormation cannot delete the route tables of a VPC of the stack."""
    subnets = client("ec2").describe_subnets()["Subnets"][:2]
    names = ",".join(subnet["SubnetId"] for subnet in subnets)
    aws = replace(aws, vpc=subnets[0]["VpcId"], subnets=names, public_subnets=names)
    told: list[str] = []
    doors = aws.deploy(deployment(), told.append)
    assert re.fullmatch(r"http://.+\.amazonaws\.com:52000", doors.http or "")
    assert (doors.grpc or "").endswith(":51000")
    assert told[:2] == [
        "warning: without --certificate keys and texts cross the internet unencrypted",
        "creating the stack rungpt-smollm2 in us-east-1; Ctrl-C leaves it to AWS",
    ]
    status = aws.status(NAME)
    assert (status.wanted, status.endpoints) == (1, doors)

    told.clear()
    aws.deploy(deployment(gateways=2), told.append)
    assert "changing the stack rungpt-smollm2 in us-east-1; Ctrl-C leaves it to AWS" in told
    assert count("Gateway") == 2

    aws.scale(NAME, 3, told.append)
    assert count("Executor") == 3
    assert count("Gateway") == 2, "scaling changes nothing else"

    told.clear()
    aws.remove(NAME, told.append)
    assert told[-1] == "the secret with the keys is deleted"
    assert client("secretsmanager").list_secrets()["SecretList"] == []
    assert client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"] == []
    for gone in (
        lambda: aws.status(NAME),
        lambda: aws.scale(NAME, 1, told.append),
        lambda: aws.remove(NAME, told.append),
    ):
        with pytest.raises(SetupError, match="there is no deployment rungpt-smollm2 in us-east-1: see --region"):
            gone()


def count(kind: str) -> int:
    """Return the number of containers of this kind that ECS wants."""
    ecs = client("ecs")
    (cluster,) = ecs.list_clusters()["clusterArns"]
    services = ecs.list_services(cluster=cluster)["serviceArns"]
    found = ecs.describe_services(cluster=cluster, services=services)["services"]
    (wanted,) = [s["desiredCount"] for s in found if f"{kind}Task" in s["taskDefinition"] or kind in s["serviceName"]]
    return int(wanted)


def test_a_deployment_that_is_as_it_should_be_is_left_alone(
    aws: AWS, keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline runs the same `rungpt deploy` again and again."""
    made = deployment(server=ServeConfig(api_key_file=keys_file))
    doors = aws.deploy(made, print)
    version = client("secretsmanager").get_secret_value(SecretId=f"rungpt/{NAME}")["VersionId"]
    told: list[str] = []
    # moto makes every update; AWS answers that there is nothing to do.
    real = Session.call

    def call(session: Session, service: str, operation: str, **arguments: Any) -> dict[str, Any]:
        if operation == "update_stack":
            raise Refused("...", "ValidationError", "No updates are to be performed")
        return real(session, service, operation, **arguments)

    monkeypatch.setattr(Session, "call", call)
    assert aws.deploy(made, told.append) == doors
    assert told[-1] == "the stack rungpt-smollm2 is as it should be: nothing to change"
    assert client("secretsmanager").get_secret_value(SecretId=f"rungpt/{NAME}")["VersionId"] == version


def test_a_new_key_makes_new_gateways_and_an_open_deployment_keeps_no_secret(aws: AWS) -> None:
    aws.deploy(deployment(), print)
    first = parameters()
    aws.deploy(deployment(server=ServeConfig(api_key="another")), print)
    assert parameters()["KeySecret"] == first["KeySecret"]
    assert parameters()["KeyVersion"] != first["KeyVersion"], "gateways would still take the old key"
    assert "another" not in str(client("cloudformation").describe_stacks()["Stacks"])
    aws.deploy(deployment(server=ServeConfig(), open=True), print)
    assert client("secretsmanager").list_secrets()["SecretList"] == []


def test_a_deployment_that_failed_leaves_no_secret_behind(aws: AWS, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error message promises that everything is deleted again."""

    def fail(*_: Any) -> None:
        raise SetupError("it failed; what had been made is deleted again")

    monkeypatch.setattr(Stack, "put", fail)
    with pytest.raises(SetupError, match="it failed"):
        aws.deploy(deployment(), print)
    assert client("secretsmanager").list_secrets()["SecretList"] == []


def parameters() -> dict[str, str]:
    """Return the parameters of the stack."""
    (stack,) = client("cloudformation").describe_stacks(StackName=NAME)["Stacks"]
    return {parameter["ParameterKey"]: parameter["ParameterValue"] for parameter in stack["Parameters"]}


def test_a_deployment_that_scales_by_load_is_not_scaled_by_hand_nor_by_an_update(aws: AWS) -> None:
    scaled = deployment(autoscale=Autoscale(least=1, most=6))
    aws.deploy(scaled, print)
    with pytest.raises(SetupError, match=r"rungpt-smollm2 scales by load \(1:6:16\): deploy it with another"):
        aws.scale(NAME, 2, print)
    ecs = client("ecs")
    (cluster,) = ecs.list_clusters()["clusterArns"]
    (executors,) = [arn for arn in ecs.list_services(cluster=cluster)["serviceArns"] if "Executor" in arn]
    ecs.update_service(cluster=cluster, service=executors, desiredCount=5)
    aws.deploy(scaled, print)
    assert count("Executor") == 5, "an update under load would end replicas"


def test_no_more_replicas_than_the_gateways_would_hear_of(aws: AWS) -> None:
    aws.deploy(deployment(), print)
    with pytest.raises(SetupError, match="9 replicas are more than the 8 that a deployment has on AWS"):
        aws.scale(NAME, 9, print)
    aws.scale(NAME, 0, print)
    assert aws.status(NAME).phase == "stopped"


def test_a_stack_of_somebody_else_is_not_touched(aws: AWS) -> None:
    client("cloudformation").create_stack(
        StackName=NAME, TemplateBody='{"Resources": {"Logs": {"Type": "AWS::Logs::LogGroup"}}}'
    )
    for act in (
        lambda: aws.deploy(deployment(), print),
        lambda: aws.remove(NAME, print),
        lambda: aws.scale(NAME, 1, print),
    ):
        with pytest.raises(SetupError, match="the stack rungpt-smollm2 in us-east-1 is not RunGPT's"):
            act()
    assert client("cloudformation").describe_stacks(StackName=NAME)["Stacks"][0]["StackStatus"] == "CREATE_COMPLETE"


@pytest.mark.parametrize(
    ("instance_type", "settings", "says"),
    [
        ("m9x.huge", {}, "there are no instances m9x.huge in us-east-1"),
        ("c7g.2xlarge", {}, "c7g.2xlarge has another architecture"),
        ("m7i.large", {"cpus": 4}, "m7i.large has 2 CPUs, 7 GiB .* 4 CPUs, 3 GiB for a replica do not fit"),
        ("g6.xlarge", {"gpus": 2}, "and 1 GPUs; .* and 2 GPUs for a replica do not fit"),
    ],
)
def test_an_instance_on_which_replicas_would_wait_for_ever_is_refused_before_anything_is_made(
    aws: AWS, instance_type: str, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(SetupError, match=says):
        replace(aws, instance_type=instance_type).deploy(deployment(**settings), print)
    assert client("cloudformation").list_stacks()["StackSummaries"] == []
    assert client("secretsmanager").list_secrets()["SecretList"] == []


def write(role: str, task: str, lines: list[tuple[int, str]]) -> None:
    log, group, stream = client("logs"), f"/rungpt/{NAME}/{role}", f"rungpt/{role}/{task}"
    if not log.describe_log_groups(logGroupNamePrefix=group)["logGroups"]:
        log.create_log_group(logGroupName=group)
    if not log.describe_log_streams(logGroupName=group, logStreamNamePrefix=stream)["logStreams"]:
        log.create_log_stream(logGroupName=group, logStreamName=stream)
    events = [{"timestamp": at, "message": text} for at, text in lines]
    log.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)


def test_logs_are_the_last_lines_of_each_container_in_order_and_then_those_that_come(
    aws: AWS, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = int(time.time() * 1000)
    write("gateway", "a" * 32, [(now - 3000, "one"), (now - 1000, "three\n")])
    write("executor", "b" * 32, [(now - 9000, "too early"), (now - 2000, "two"), (now - 500, "four")])
    shown = [
        "[gateway aaaaaaaa] one",
        "[executor bbbbbbbb] two",
        "[gateway aaaaaaaa] three",
        "[executor bbbbbbbb] four",
    ]
    assert list(aws.logs(NAME, follow=False, lines=2)) == shown
    pauses = iter(
        [
            lambda: write("executor", "c" * 32, [(now + 60_000, "six")]),
            lambda: write("gateway", "a" * 32, [(now + 50_000, "five")]),  # later, with an earlier time
        ]
    )
    monkeypatch.setattr("run_gpt.deploy.aws.logs.time.sleep", lambda seconds: next(pauses)())
    lines = aws.logs(NAME, follow=True, lines=2)
    assert list(islice(lines, 6)) == [*shown, "[executor cccccccc] six", "[gateway aaaaaaaa] five"]


def test_logs_of_a_name_that_nobody_deployed(aws: AWS) -> None:
    with pytest.raises(
        SetupError, match="there is no log /rungpt/chat/gateway in us-east-1: see the name and --region"
    ):
        list(aws.logs("chat", follow=False, lines=1))


def test_instances_are_no_longer_protected_when_their_stack_is_deleted(aws: AWS) -> None:
    """CloudFormation would wait for ever for the end of a group whose instances are protected."""
    aws.deploy(deployment(), print)
    autoscaling = client("autoscaling")
    (group,) = autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    assert group["NewInstancesProtectedFromScaleIn"]
    name = group["AutoScalingGroupName"]
    autoscaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=2)
    Fleet(Session(REGION), NAME).release()
    instances = autoscaling.describe_auto_scaling_instances()["AutoScalingInstances"]
    assert [instance["ProtectedFromScaleIn"] for instance in instances] == [False, False]
