"""Deployments of a model on Jina Cloud, Kubernetes, Docker Compose and AWS."""

from run_gpt.deploy.aws import AWS
from run_gpt.deploy.deployment import Autoscale, Deployment
from run_gpt.deploy.docker import DockerCompose
from run_gpt.deploy.jina import JinaCloud
from run_gpt.deploy.kubernetes import Kubernetes
from run_gpt.deploy.target import Doors, Status, Target, Tell

TARGETS: dict[str, type[Target]] = {"aws": AWS, "docker": DockerCompose, "jina": JinaCloud, "kubernetes": Kubernetes}
"""Targets by their names for `--cloud`."""

__all__ = ["TARGETS", "Autoscale", "Deployment", "Doors", "Status", "Target", "Tell"]
