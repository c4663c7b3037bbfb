"""Without these tests, a stack could fail half an hour after `rungpt deploy`, or have rights that it does not need."""

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from run_gpt.config import ServeConfig
from run_gpt.deploy import Autoscale, Deployment
from run_gpt.deploy.aws import AWS
from run_gpt.deploy.aws.machines import DEFAULTS, instance_type
from run_gpt.deploy.aws.stack import MOST_BYTES
from run_gpt.errors import SetupError

IMAGE = "example/rungpt:1.2.3"
CERTIFICATE = "arn:aws:acm:eu-west-1:123456789012:certificate/0a1b2c3d"
PRIVATE, PUBLIC = "subnet-0000000a,subnet-0000000b", "subnet-1000000a,subnet-1000000b"
OWN_VPC: dict[str, Any] = {"vpc": "vpc-0a1b2c3d", "subnets": PRIVATE}
VARIANTS: dict[str, AWS] = {
    "public": AWS(
        **OWN_VPC,
        public_subnets=PUBLIC,
        instance_type="c7i.2xlarge",
        disk_gib=200,
        certificate=CERTIFICATE,
        domain="llm.example.com",
        allow_from="203.0.113.0/24,198.51.100.7/32",
    ),
    "internal": AWS(**OWN_VPC, internal=True),
}


def deployment(**settings: Any) -> Deployment:
    settings = {"server": ServeConfig(replicas=2), "image": IMAGE, "memory_gib": 3, "open": True} | settings
    return Deployment(**settings)


def rendered(target: AWS, made: Deployment) -> dict[str, Any]:
    """Return the template as CloudFormation reads it."""
    return dict(yaml.safe_load(target.render(made)["cloudformation.yaml"]))


def resources(target: AWS, made: Deployment) -> dict[str, Any]:
    """Return the properties of each resource."""
    return {name: made["Properties"] for name, made in rendered(target, made)["Resources"].items()}


def container(target: AWS, made: Deployment, kind: str) -> dict[str, Any]:
    return dict(resources(target, made)[f"{kind}Task"]["ContainerDefinitions"][0])


def check_lint(text: str) -> None:
    """Assert that cfn-lint, with its own schemas of the region, finds nothing."""
    from cfnlint.api import ManualArgs, lint

    found = lint(text, config=ManualArgs(regions=["us-east-1"]))
    assert not found, "\n".join(map(str, found))


def test_the_templates_are_those_that_were_read(
    deployments: dict[str, Deployment], check_golden: Callable[[str, dict[str, dict[str, str]]], None]
) -> None:
    check_golden("aws", {name: AWS().render(made) for name, made in deployments.items()})


def test_cloudformation_takes_the_template(case: tuple[str, Deployment]) -> None:
    (text,) = AWS().render(case[1]).values()
    check_lint(text)
    assert len(text.encode()) < MOST_BYTES


@pytest.mark.parametrize("name", VARIANTS)
def test_cloudformation_takes_the_template_of_each_option(name: str) -> None:
    check_lint(VARIANTS[name].render(deployment())["cloudformation.yaml"])


def test_both_doors_speak_tls_with_a_certificate() -> None:
    made = rendered(VARIANTS["public"], deployment())
    for door, alpn in (("Grpc", "HTTP2Only"), ("Http", "HTTP1Only")):
        listener = made["Resources"][f"{door}Listener"]["Properties"]
        assert (listener["Protocol"], listener["AlpnPolicy"]) == ("TLS", [alpn])
        assert listener["Certificates"] == [{"CertificateArn": CERTIFICATE}]
    assert made["Outputs"]["Http"]["Value"] == "https://llm.example.com:52000"
    assert made["Outputs"]["Grpc"]["Value"] == "grpcs://llm.example.com:51000"


def test_only_the_networks_that_were_named_reach_the_doors() -> None:
    rules = resources(VARIANTS["public"], deployment())["LoadBalancerSecurity"]["SecurityGroupIngress"]
    assert {(rule["CidrIp"], rule["FromPort"], rule["ToPort"]) for rule in rules} == {
        (network, port, port) for network in ("203.0.113.0/24", "198.51.100.7/32") for port in (51000, 52000)
    }


def test_executors_are_reached_by_gateways_only_and_instances_by_nobody() -> None:
    made = resources(AWS(), deployment())
    (rule,) = made["ExecutorSecurity"]["SecurityGroupIngress"]
    assert (rule["FromPort"], rule["ToPort"]) == (51001, 51001)
    assert rule["SourceSecurityGroupId"] == {"Ref": "GatewaySecurity"}
    assert all(
        rule["SourceSecurityGroupId"] == {"Ref": "LoadBalancerSecurity"}
        for rule in made["GatewaySecurity"]["SecurityGroupIngress"]
    )
    assert "SecurityGroupIngress" not in made["InstanceSecurity"]


def test_an_existing_vpc_is_used_and_none_is_made() -> None:
    made = resources(VARIANTS["public"], deployment())
    assert not [name for name in made if "Subnet" in name or name in ("Vpc", "Nat")]
    assert made["LoadBalancer"]["Subnets"] == PUBLIC.split(",")
    assert made["LoadBalancer"]["Scheme"] == "internet-facing"
    assert made["Instances"]["VPCZoneIdentifier"] == PRIVATE.split(",")
    launched = made["InstanceTemplate"]["LaunchTemplateData"]
    assert launched["InstanceType"] == "c7i.2xlarge"
    assert launched["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 200
    internal = resources(VARIANTS["internal"], deployment())["LoadBalancer"]
    assert (internal["Scheme"], internal["Subnets"]) == ("internal", PRIVATE.split(","))


def statements(made: dict[str, Any]) -> dict[str, list[tuple[tuple[str, ...], Any]]]:
    """Return the actions that each role may take, with their resources."""
    return {
        name: [(tuple(s["Action"]), s["Resource"]) for p in role["Policies"] for s in p["PolicyDocument"]["Statement"]]
        for name, role in made.items()
        if "AssumeRolePolicyDocument" in role
    }


def test_roles_may_do_what_they_need_on_what_is_theirs_and_no_more() -> None:
    image = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/rungpt:1"
    made = deployment(server=ServeConfig(api_key="k"), image=image)
    may = statements(resources(AWS(), made))
    repository = {"Fn::Sub": "arn:${AWS::Partition}:ecr:eu-west-1:123456789012:repository/team/rungpt"}
    pull = (("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"), repository)
    token = (("ecr:GetAuthorizationToken",), "*")
    write = ("logs:CreateLogStream", "logs:PutLogEvents")
    read_token, read_key = (
        (("secretsmanager:GetSecretValue",), {"Ref": name}) for name in ("ExecutorToken", "KeySecret")
    )
    assert may["ExecutorStart"] == [(write, {"Fn::GetAtt": ["ExecutorLogs", "Arn"]}), pull, token, read_token]
    assert may["GatewayStart"] == [(write, {"Fn::GetAtt": ["GatewayLogs", "Arn"]}), pull, token, read_token, read_key]
    for role, allowed in may.items():
        for actions, on in allowed:
            assert not [action for action in actions if "*" in action], f"{role}: {actions}"
            assert on != "*" or actions in (token[0], ("ecs:DiscoverPollEndpoint",)), f"{role}: {actions} on all"
    tasks = [resources(AWS(), made)[f"{kind}Task"] for kind in ("Gateway", "Executor")]
    assert not [task for task in tasks if "TaskRoleArn" in task], "what runs in a container needs no rights"


def test_an_image_of_another_registry_needs_no_rights_at_ecr() -> None:
    may = statements(resources(AWS(), deployment()))
    assert [actions for allowed in may.values() for actions, _ in allowed if actions[0].startswith("ecr:")] == []


def test_only_gateways_get_keys_and_of_one_version(keys_file: Path) -> None:
    made = deployment(server=ServeConfig(api_key="k", api_key_file=keys_file))
    secrets = {secret["Name"]: secret["ValueFrom"] for secret in container(AWS(), made, "Gateway")["Secrets"]}
    token = {"RUNGPT_EXECUTOR_TOKEN": {"Ref": "ExecutorToken"}}
    assert secrets == {
        "RUNGPT_API_KEY": {"Fn::Sub": "${KeySecret}:api_key::${KeyVersion}"},
        "RUNGPT_KEYS": {"Fn::Sub": "${KeySecret}:keys::${KeyVersion}"},
        **token,
    }
    for others in (container(AWS(), made, "Executor"), container(AWS(), deployment(), "Gateway")):
        assert {secret["Name"]: secret["ValueFrom"] for secret in others["Secrets"]} == token


def test_the_file_of_keys_is_there_before_the_gateway_starts_and_for_nobody_else(
    keys_file: Path, tmp_path: Path
) -> None:
    made = container(AWS(), deployment(server=ServeConfig(api_key_file=keys_file)), "Gateway")
    env = {variable["Name"]: variable["Value"] for variable in made["Environment"]}
    there = yaml.safe_load(env["RUNGPT_FLOW"])["gateway"]["uses"]["with"]["api_key_file"]
    folder = tmp_path / "shm"
    shell, flag, script = made["EntryPoint"]
    assert there in script
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\necho "$@ [$RUNGPT_KEYS]"\n')
    stand_in.chmod(0o755)
    done = subprocess.run(
        [shell, flag, script.replace(os.path.dirname(there), str(folder))],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "RUNGPT_KEYS": keys_file.read_text()},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert done.stdout == "-P -m run_gpt.flows.pod gateway []\n", "the keys stay in the environment of the gateway"
    written = folder / os.path.basename(there)
    assert written.read_text() == keys_file.read_text()
    assert stat.S_IMODE(written.stat().st_mode) == 0o600


def test_a_container_gets_the_time_that_its_requests_need_and_writes_only_where_it_must(
    case: tuple[str, Deployment],
) -> None:
    made = case[1]
    for kind in ("Gateway", "Executor"):
        found = container(AWS(), made, kind)
        assert found["StopTimeout"] == made.stop_seconds
        assert found["ReadonlyRootFilesystem"] is True
        assert found["LinuxParameters"]["Capabilities"] == {"Drop": ["ALL"]}
    executor = container(AWS(), made, "Executor")
    assert [mount["ContainerPath"] for mount in executor["MountPoints"]] == ["/cache"]
    assert [mount["ContainerPath"] for mount in executor["LinuxParameters"]["Tmpfs"]] == ["/tmp"]
    gpus = [{"Type": "GPU", "Value": str(made.gpus)}] if made.gpus else None
    assert executor.get("ResourceRequirements") == gpus
    image = rendered(AWS(), made)["Parameters"]["MachineImage"]["Default"]
    assert ("/gpu/" in image) == bool(made.gpus)


def test_replicas_follow_the_requests_in_flight_of_all_gateways() -> None:
    scaled = deployment(autoscale=Autoscale(least=2, most=8, in_flight=12), gateways=3)
    made = resources(AWS(), scaled)
    policy = made["ScalingByLoad"]["TargetTrackingScalingPolicyConfiguration"]
    filtered = made["Load"]["MetricTransformations"][0]
    metric = policy["CustomizedMetricSpecification"]
    assert policy["TargetValue"] == 12 / 3
    assert (metric["Namespace"], metric["MetricName"]) == (filtered["MetricNamespace"], filtered["MetricName"])
    assert (made["Scaling"]["MinCapacity"], made["Scaling"]["MaxCapacity"]) == (2, 8)
    env = {variable["Name"]: variable["Value"] for variable in container(AWS(), scaled, "Gateway")["Environment"]}
    assert yaml.safe_load(env["RUNGPT_FLOW"])["gateway"]["uses"]["with"]["log_load"] == 10.0
    assert "Scaling" not in resources(AWS(), deployment())


@pytest.mark.parametrize(
    ("target", "settings", "says"),
    [
        (AWS(), {"open": False}, "anyone who reaches the load balancer could use this model: give --api-key-file"),
        (AWS(), {"server": ServeConfig(require_key=True)}, "a key is required and there is none"),
        (AWS(), {"server": ServeConfig(replicas=9)}, "--replicas: 9 replicas are more than the 8"),
        (AWS(), {"autoscale": Autoscale(least=1, most=9)}, "--autoscale: 9 replicas are more than the 8"),
        (AWS(), {"server": ServeConfig(drain_seconds=105.5)}, "--drain-seconds 105.5: .* at most 105 here"),
        (AWS(), {"cpus": 200}, "200 CPUs, 3 GiB for a replica are more than .* give --instance-type"),
        (AWS(vpc="vpc-0a1b2c3d"), {}, "--vpc and --subnets: give both"),
        (AWS(**OWN_VPC), {}, "give --public-subnets for the load balancer too, or say --internal"),
        (AWS(public_subnets=PUBLIC), {}, "--public-subnets are for"),
        (AWS(vpc="default", subnets="a"), {}, "--vpc default: write such as vpc-"),
        (AWS(vpc="vpc-0a1b2c3d", subnets="subnet-0000000a"), {}, "--subnets subnet-0000000a: write two or more"),
        (AWS(certificate=CERTIFICATE), {}, "--certificate and --domain: give both"),
        (AWS(certificate="mine", domain="a.b"), {}, "--certificate mine: write the ARN"),
        (AWS(allow_from="10.0.0.1/8"), {}, "--allow-from 10.0.0.1/8: .*host bits"),
        (AWS(instance_type="big"), {}, "--instance-type big: write such as m7i.xlarge"),
        (AWS(disk_gib=5), {}, "--disk-gib must be at least 30"),
    ],
)
def test_what_aws_could_not_run_is_refused_with_the_option_to_change(
    target: AWS, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(SetupError, match=says):
        target.render(deployment(**settings))


def test_an_image_that_lies_on_this_machine_only_is_refused_before_anything_is_made() -> None:
    with pytest.raises(SetupError, match=r"--image rungpt:1\.2\.3: AWS finds no such image; push it to a registry"):
        AWS().deploy(deployment(image="rungpt:1.2.3"), print)


def test_the_longest_drain_that_aws_grants_is_taken() -> None:
    made = deployment(server=ServeConfig(drain_seconds=105.0))
    assert container(AWS(), made, "Executor")["StopTimeout"] == 120


def test_the_instances_chosen_by_default_are_what_they_are_taken_for() -> None:
    """moto has AWS's own list of types."""
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    for machine in DEFAULTS:
        known = INSTANCE_TYPES[machine.name]
        gpus = sum(gpu["Count"] for gpu in known.get("GpuInfo", {}).get("Gpus", []))
        memory = known["MemoryInfo"]["SizeInMiB"] / 1024
        assert (machine.cpus, machine.memory_gib, machine.gpus) == (known["VCpuInfo"]["DefaultVCpus"], memory, gpus)
        assert known["ProcessorInfo"]["SupportedArchitectures"] == ["x86_64"]


@pytest.mark.parametrize(
    ("cpus", "memory_gib", "gpus", "expected"),
    [(2, 3, 0, "m7i.large"), (2, 7.8, 0, "m7i.xlarge"), (4, 3, 1, "g6.xlarge"), (16, 160, 2, "g6.12xlarge")],
)
def test_the_smallest_instance_that_holds_a_replica(cpus: float, memory_gib: float, gpus: int, expected: str) -> None:
    assert instance_type(deployment(cpus=cpus, memory_gib=memory_gib, gpus=gpus), AWS()) == expected


def test_a_text_with_cloudformations_own_signs_reaches_the_container_as_it_is() -> None:
    odd = {"odd": "/adapters/${AWS::Region} {{x}} $(y)"}
    made = deployment(server=ServeConfig(adapters=odd))
    env = {variable["Name"]: variable["Value"] for variable in container(AWS(), made, "Executor")["Environment"]}
    assert yaml.safe_load(env["RUNGPT_FLOW"])["executors"][0]["uses"]["with"]["adapters"] == odd
