"""Owns the containers in the template: the task, the service, the rights and the log of each role."""

import re
from pathlib import Path
from typing import Any

from run_gpt.config import API_KEY_VARIABLE, EXECUTOR_PORT, EXECUTOR_TOKEN_VARIABLE
from run_gpt.deploy.aws.cloudformation import Resources, allow, att, ref, resource, role, sub
from run_gpt.deploy.aws.network import executor_host, subnets
from run_gpt.deploy.aws.options import Options
from run_gpt.deploy.deployment import (
    CACHE_PATH,
    GATEWAY_CPUS,
    GATEWAY_MEMORY_GIB,
    GRPC_PORT,
    HTTP_PORT,
    Deployment,
    pod_command,
)

KEYS_PATH = Path("/dev/shm/rungpt/keys")
"""Path of the key file in a gateway: in memory, and on Fargate the only place where its user may write."""
LOG_DAYS = 30
_KEYS_VARIABLE = "RUNGPT_KEYS"
_ECR = re.compile(r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[\w-]+)\.amazonaws\.com(\.cn)?/(?P<name>[^:@]+)")
_SECRETS = {API_KEY_VARIABLE: "api_key", _KEYS_VARIABLE: "keys"}
"""Environment variables of a gateway that come from the secret, and their fields in it."""


def secret_fields(deployment: Deployment) -> dict[str, str]:
    """Return the fields of the secret, as text; empty for a deployment without keys. Raises SetupError."""
    held = {"api_key": deployment.server.api_key, "keys": deployment.keys_file()}
    return {name: text for name, text in held.items() if text is not None}


def log_group(name: str, role: str) -> str:
    """Return the log group of a deployment's `gateway` or `executor` containers."""
    return f"/rungpt/{name}/{role}"


def containers(deployment: Deployment, options: Options) -> Resources:
    """Return the gateways on Fargate and the executors on the cluster's instances; the executors start first."""
    return {
        "ExecutorToken": resource(
            "SecretsManager::Secret", _token(), DeletionPolicy="Delete", UpdateReplacePolicy="Delete"
        ),
        **_role_of_containers("Gateway", deployment),
        **_role_of_containers("Executor", deployment),
        "GatewayTask": resource("ECS::TaskDefinition", _gateway_task(deployment)),
        "ExecutorTask": resource("ECS::TaskDefinition", _executor_task(deployment)),
        "ExecutorService": resource("ECS::Service", _executor_service(options), DependsOn="ClusterCapacity"),
        # A stack is complete when its services are: first the model is loaded, then a gateway finds it.
        "GatewayService": resource(
            "ECS::Service",
            _gateway_service(deployment, options),
            DependsOn=["ExecutorService", "GrpcListener", "HttpListener"],
        ),
    }


def _token() -> dict[str, Any]:
    """Return the secret with the executors' token, which AWS makes once and which no one needs to know."""
    made = {"PasswordLength": 64, "ExcludePunctuation": True}
    return {"Description": "Token of the gateways, which executors ask for.", "GenerateSecretString": made}


def _role_of_containers(kind: str, deployment: Deployment) -> Resources:
    """Return the log group, and the role with which ECS starts such a container. The container itself has no rights."""
    statements = [allow(["logs:CreateLogStream", "logs:PutLogEvents"], att(f"{kind}Logs", "Arn"))]
    if match := _ECR.match(deployment.image):
        repository = "arn:${AWS::Partition}:ecr:{region}:{account}:repository/{name}"
        for part, value in match.groupdict().items():
            repository = repository.replace(f"{{{part}}}", value)
        pull = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        statements += [allow(pull, sub(repository)), allow(["ecr:GetAuthorizationToken"], "*")]  # takes no resources
    statements.append(allow(["secretsmanager:GetSecretValue"], ref("ExecutorToken")))
    if kind == "Gateway" and deployment.server.asks_for_key:
        statements.append(allow(["secretsmanager:GetSecretValue"], ref("KeySecret")))
    log = {"LogGroupName": log_group(deployment.name, kind.lower()), "RetentionInDays": LOG_DAYS}
    return {
        f"{kind}Logs": resource("Logs::LogGroup", log, DeletionPolicy="Delete", UpdateReplacePolicy="Delete"),
        f"{kind}Start": role("ecs-tasks.amazonaws.com", statements),
    }


def _container(kind: str, deployment: Deployment, env: dict[str, str]) -> dict[str, Any]:
    """Return the part of a container definition that both roles share."""
    log = {
        "awslogs-group": ref(f"{kind}Logs"),
        "awslogs-region": ref("AWS::Region"),
        "awslogs-stream-prefix": "rungpt",
        "mode": "non-blocking",  # a server must not block because its log does
        "max-buffer-size": "25m",
    }
    return {
        "Name": kind.lower(),
        "Image": deployment.image,
        "Essential": True,
        "EntryPoint": pod_command(kind.lower()),
        "Environment": [{"Name": name, "Value": value} for name, value in env.items()],
        "Secrets": [{"Name": EXECUTOR_TOKEN_VARIABLE, "ValueFrom": ref("ExecutorToken")}],
        "ReadonlyRootFilesystem": True,
        "LinuxParameters": {"InitProcessEnabled": True, "Capabilities": {"Drop": ["ALL"]}},
        "StopTimeout": deployment.stop_seconds,
        "LogConfiguration": {"LogDriver": "awslogs", "Options": log},
    }


def _gateway_task(deployment: Deployment) -> dict[str, Any]:
    env = deployment.gateway_env(executor_host(deployment), keys_path=KEYS_PATH)
    # Fargate mounts no tmpfs, and its volumes belong to root.
    container = _container("Gateway", deployment, env | {"HOME": "/dev/shm", "TMPDIR": "/dev/shm"})
    container["PortMappings"] = [
        {"Name": "grpc", "ContainerPort": GRPC_PORT, "Protocol": "tcp", "AppProtocol": "grpc"},
        {"Name": "http", "ContainerPort": HTTP_PORT, "Protocol": "tcp", "AppProtocol": "http"},
    ]
    fields = secret_fields(deployment)
    # The version is fixed: a changed key makes a changed task, and so new gateways.
    container["Secrets"] += [
        {"Name": variable, "ValueFrom": sub(f"${{KeySecret}}:{field}::${{KeyVersion}}")}
        for variable, field in _SECRETS.items()
        if field in fields
    ]
    if deployment.server.api_key_file is not None:
        container["EntryPoint"] = ["sh", "-c", _keys_then_gateway()]
    return _task("Gateway", container, "FARGATE", GATEWAY_CPUS, max(GATEWAY_MEMORY_GIB, 2 * GATEWAY_CPUS))


def _keys_then_gateway() -> str:
    """Return the command that writes the key file from the environment and then runs the gateway.

    ECS cannot mount a secret as a file.
    """
    write = f'mkdir -p {KEYS_PATH.parent} && printf %s "${_KEYS_VARIABLE}" > {KEYS_PATH} && unset {_KEYS_VARIABLE}'
    return f"umask 077 && {write} && exec {' '.join(pod_command('gateway'))}"


def _executor_task(deployment: Deployment) -> dict[str, Any]:
    env = deployment.executor_env(executor_host(deployment), keys_path=KEYS_PATH)
    container = _container("Executor", deployment, env)
    container["PortMappings"] = [
        {"Name": "executor", "ContainerPort": EXECUTOR_PORT, "Protocol": "tcp", "AppProtocol": "grpc"}
    ]
    container["LinuxParameters"]["Tmpfs"] = [
        {"ContainerPath": "/tmp", "Size": 1024, "MountOptions": ["exec", "nosuid", "nodev"]}
    ]
    if deployment.gpus > 1 or deployment.server.tensor_parallel > 1:
        container["LinuxParameters"]["SharedMemorySize"] = 1024  # several processes or GPUs communicate through it
    if deployment.gpus:
        container["ResourceRequirements"] = [{"Type": "GPU", "Value": str(deployment.gpus)}]
    container["MountPoints"] = [{"SourceVolume": "cache", "ContainerPath": CACHE_PATH, "ReadOnly": False}]
    # The executor gets 15 minutes to start, the longest time that one check a minute allows. If it is ended during a
    # download, the next one continues from the cache.
    container["HealthCheck"] = {
        "Command": ["CMD", "python", "-P", "-m", "run_gpt.flows.healthcheck", "executor"],
        "StartPeriod": 300,
        "Interval": 60,
        "Retries": 10,
        "Timeout": 10,
    }
    task = _task("Executor", container, "EC2", deployment.cpus, deployment.memory_gib)
    # A Docker volume starts as the image's folder with its owner; a path of the machine would belong to root.
    shared = {"Scope": "shared", "Autoprovision": True, "Driver": "local"}
    return task | {"Volumes": [{"Name": "cache", "DockerVolumeConfiguration": shared}]}


def _task(kind: str, container: dict[str, Any], where: str, cpus: float, memory_gib: float) -> dict[str, Any]:
    return {
        "Family": sub(f"${{AWS::StackName}}-{kind.lower()}"),
        "RequiresCompatibilities": [where],
        "NetworkMode": "awsvpc",
        "RuntimePlatform": {"CpuArchitecture": "X86_64", "OperatingSystemFamily": "LINUX"},
        "Cpu": str(max(128, round(1024 * cpus))),  # the least that ECS accepts
        "Memory": str(round(1024 * memory_gib)),
        "ExecutionRoleArn": att(f"{kind}Start", "Arn"),
        "ContainerDefinitions": [container],
    }


def _executor_service(options: Options) -> dict[str, Any]:
    return _service("Executor", ref("Replicas"), options) | {
        "CapacityProviderStrategy": [{"CapacityProvider": ref("Capacity"), "Weight": 1}],
        "PlacementStrategies": [
            {"Type": "spread", "Field": "attribute:ecs.availability-zone"},
            {"Type": "binpack", "Field": "MEMORY"},
        ],
        "AvailabilityZoneRebalancing": "DISABLED",  # a replica that moves loads its model again
        "ServiceRegistries": [{"RegistryArn": att("ExecutorNames", "Arn")}],
    }


def _gateway_service(deployment: Deployment, options: Options) -> dict[str, Any]:
    ports = {"Grpc": GRPC_PORT, "Http": HTTP_PORT}
    return _service("Gateway", deployment.gateways, options) | {
        "LaunchType": "FARGATE",
        "HealthCheckGracePeriodSeconds": 120,
        "LoadBalancers": [
            {"ContainerName": "gateway", "ContainerPort": port, "TargetGroupArn": ref(f"{name}Targets")}
            for name, port in ports.items()
        ],
    }


def _service(kind: str, count: Any, options: Options) -> dict[str, Any]:
    """Return a service whose rollout starts new containers before it ends old ones.

    The rollout goes back to the old containers if the new ones fail.
    """
    return {
        "Cluster": ref("Cluster"),
        "TaskDefinition": ref(f"{kind}Task"),
        "DesiredCount": count,
        "DeploymentConfiguration": {
            "MinimumHealthyPercent": 100,
            "MaximumPercent": 200,
            "DeploymentCircuitBreaker": {"Enable": True, "Rollback": True},
        },
        "NetworkConfiguration": {
            "AwsvpcConfiguration": {
                "Subnets": subnets(options),
                "SecurityGroups": [ref(f"{kind}Security")],
                "AssignPublicIp": "DISABLED",
            }
        },
        "PropagateTags": "SERVICE",
        "EnableECSManagedTags": True,
    }
