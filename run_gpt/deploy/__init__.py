"""Deployments of a model on Jina Cloud, Kubernetes, Docker Compose and AWS."""

from run_gpt.deploy.aws import AWS
from run_gpt.deploy.deployment import Autoscale, Deployment
from run_gpt.deploy.docker import DockerCompose
from run_gpt.deploy.jina import JinaCloud
from run_gpt.deploy.kubernetes import Kubernetes
from run_gpt.deploy.target import Endpoints, Report, Status, Target

TARGETS: dict[str, type[Target]] = {"aws": AWS, "docker": DockerCompose, "jina": JinaCloud, "kubernetes": Kubernetes}
"""Targets by their names for `--cloud`."""

Doors, Tell = Endpoints, Report  # earlier names

__all__ = ["TARGETS", "Autoscale", "Deployment", "Endpoints", "Report", "Status", "Target"]
