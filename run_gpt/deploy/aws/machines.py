"""Owns the instances that executors run on: their type, and the resources that start and end them."""

from dataclasses import dataclass
from typing import Any

from run_gpt.deploy.aws.cloudformation import Resources, allow, att, ref, resource, role, sub, tags
from run_gpt.deploy.aws.network import subnets
from run_gpt.deploy.aws.options import MOST_REPLICAS, Options
from run_gpt.deploy.aws.session import Refused, Session
from run_gpt.deploy.deployment import Deployment
from run_gpt.errors import SetupError

_USABLE = 0.92
"""Share of an instance's memory for containers; the system and the ECS agent take the rest."""


@dataclass(frozen=True)
class Machine:
    """Instance type with its CPUs, memory and GPUs."""

    name: str
    cpus: int
    memory_gib: float
    gpus: int = 0

    def holds(self, deployment: Deployment) -> bool:
        """Return True if one replica fits on it."""
        return (
            self.cpus >= deployment.cpus
            and self.memory_gib * _USABLE >= deployment.memory_gib
            and self.gpus >= deployment.gpus
        )


# Smallest first. m7i has AVX-512 with VNNI, on which the native runner is fastest; a g6 has L4 GPUs of 22 GiB.
_CPU = tuple(
    Machine(f"m7i.{size}", cpus, 4 * cpus)
    for size, cpus in {"large": 2, "xlarge": 4, "2xlarge": 8, "4xlarge": 16, "8xlarge": 32}.items()
) + tuple(Machine(f"m7i.{cpus // 4}xlarge", cpus, 4 * cpus) for cpus in (48, 64, 96, 192))
_GPU = (
    Machine("g6.xlarge", 4, 16, 1),
    Machine("g6.2xlarge", 8, 32, 1),
    Machine("g6.4xlarge", 16, 64, 1),
    Machine("g6.8xlarge", 32, 128, 1),
    Machine("g6.16xlarge", 64, 256, 1),
    Machine("g6.12xlarge", 48, 192, 4),
    Machine("g6.24xlarge", 96, 384, 4),
    Machine("g6.48xlarge", 192, 768, 8),
)
DEFAULTS = (*_CPU, *_GPU)


def instance_type(deployment: Deployment, options: Options) -> str:
    """Return the chosen type, else the smallest default that holds a replica. Raises SetupError if none does."""
    if options.instance_type is not None:
        return options.instance_type
    for machine in _GPU if deployment.gpus else _CPU:
        if machine.holds(deployment):
            return machine.name
    raise SetupError(
        f"{needs(deployment)} are more than the instances have that are chosen by themselves: give --instance-type"
    )


def needs(deployment: Deployment) -> str:
    """Describe the resources of a replica, in words."""
    gpus = f" and {deployment.gpus} GPUs" if deployment.gpus else ""
    return f"{deployment.cpus:g} CPUs, {deployment.memory_gib:g} GiB{gpus} for a replica"


def check_instance_type(session: Session, name: str, deployment: Deployment) -> None:
    """Raise SetupError if the region has no such type, or if a replica does not fit on it and would wait for ever."""
    try:
        found = session.call("ec2", "describe_instance_types", InstanceTypes=[name])["InstanceTypes"][0]
    except Refused as refused:
        if refused.code != "InvalidInstanceType":
            raise
        raise SetupError(
            f"there are no instances {name} in {session.region}: give another --instance-type"
        ) from refused
    if "x86_64" not in found["ProcessorInfo"]["SupportedArchitectures"]:
        raise SetupError(f"--instance-type {name} has another architecture than the image, x86_64")
    gpus = sum(gpu["Count"] for gpu in found.get("GpuInfo", {}).get("Gpus", []))
    machine = Machine(name, found["VCpuInfo"]["DefaultVCpus"], found["MemoryInfo"]["SizeInMiB"] / 1024, gpus)
    if not machine.holds(deployment):
        raise SetupError(
            f"--instance-type {name} has {machine.cpus} CPUs, {machine.memory_gib * _USABLE:.0f} GiB for containers "
            f"and {machine.gpus} GPUs; {needs(deployment)} do not fit"
        )


def machines(deployment: Deployment, options: Options) -> Resources:
    """Return the cluster with as many instances as its tasks need: none without a task."""
    group = {
        "MinSize": "0",
        # During a rollout each replica exists twice.
        "MaxSize": str(2 * MOST_REPLICAS),
        "VPCZoneIdentifier": subnets(options),
        "LaunchTemplate": {
            "LaunchTemplateId": ref("InstanceTemplate"),
            "Version": att("InstanceTemplate", "LatestVersionNumber"),
        },
        # So that only instances without a task are ended. `rungpt deploy remove` removes the protection.
        "NewInstancesProtectedFromScaleIn": True,
        "Tags": [{**tag, "PropagateAtLaunch": True} for tag in tags(deployment.name)],
    }
    provider = {
        "AutoScalingGroupProvider": {
            "AutoScalingGroupArn": ref("Instances"),
            "ManagedScaling": {"Status": "ENABLED", "TargetCapacity": 100},
            "ManagedTerminationProtection": "ENABLED",
            "ManagedDraining": "ENABLED",
        }
    }
    cluster = {"Cluster": ref("Cluster"), "CapacityProviders": [ref("Capacity")]}
    return {
        "Cluster": resource("ECS::Cluster", {"Tags": tags(deployment.name)}),
        "InstanceRole": _instance_role(),
        "InstanceProfile": resource("IAM::InstanceProfile", {"Roles": [ref("InstanceRole")]}),
        "InstanceTemplate": resource("EC2::LaunchTemplate", {"LaunchTemplateData": _launch(deployment, options)}),
        "Instances": resource("AutoScaling::AutoScalingGroup", group, **_after_routes(options)),
        "Capacity": resource("ECS::CapacityProvider", provider),
        "ClusterCapacity": resource(
            "ECS::ClusterCapacityProviderAssociations", cluster | {"DefaultCapacityProviderStrategy": []}
        ),
    }


def _after_routes(options: Options) -> dict[str, Any]:
    """Make instances wait for the routes: one that starts without internet access never joins the cluster."""
    return {} if options.vpc else {"DependsOn": ["PrivateRoute", "PrivateSubnet0Routes", "PrivateSubnet1Routes"]}


def image_parameter(deployment: Deployment) -> dict[str, Any]:
    """Return the template's parameter for the machine image: the newest that AWS recommends for ECS."""
    kind = "amazon-linux-2023/gpu" if deployment.gpus else "amazon-linux-2023"
    return {
        "Type": "AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>",
        "Default": f"/aws/service/ecs/optimized-ami/{kind}/recommended/image_id",
        "Description": "The machine image of the instances.",
    }


def _launch(deployment: Deployment, options: Options) -> dict[str, Any]:
    agent = ["ECS_CLUSTER=${Cluster}", "ECS_AWSVPC_BLOCK_IMDS=true"]
    script = "\n".join(["#!/bin/bash", "cat >> /etc/ecs/ecs.config <<'END'", *agent, "END", ""])
    disk = {"VolumeSize": options.disk(deployment), "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
    return {
        "ImageId": ref("MachineImage"),
        "InstanceType": instance_type(deployment, options),
        "IamInstanceProfile": {"Arn": att("InstanceProfile", "Arn")},
        "SecurityGroupIds": [ref("InstanceSecurity")],
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
        "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": disk}],
        "UserData": {"Fn::Base64": sub(script)},
    }


def _instance_role() -> dict[str, Any]:
    """Return the role of an instance's ECS agent, for this cluster only; the tasks' roles cover images and logs."""
    cluster = att("Cluster", "Arn")
    instances = sub("arn:${AWS::Partition}:ecs:${AWS::Region}:${AWS::AccountId}:container-instance/${Cluster}/*")
    return role(
        "ec2.amazonaws.com",
        [
            allow(["ecs:RegisterContainerInstance", "ecs:DeregisterContainerInstance"], cluster),
            allow(
                ["ecs:SubmitAttachmentStateChanges", "ecs:SubmitContainerStateChange", "ecs:SubmitTaskStateChange"],
                cluster,
            ),
            allow(["ecs:Poll", "ecs:StartTelemetrySession", "ecs:UpdateContainerInstancesState"], instances),
            allow(["ecs:DiscoverPollEndpoint"], "*"),  # takes no resources
        ],
    )
