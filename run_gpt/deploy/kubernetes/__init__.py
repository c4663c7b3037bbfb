"""A deployment on Kubernetes: its manifests, and the cluster that they go to."""

from run_gpt.deploy.kubernetes.target import Kubernetes

__all__ = ["Kubernetes"]
