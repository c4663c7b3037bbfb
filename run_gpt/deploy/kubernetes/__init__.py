"""Deployments on Kubernetes: their manifests, and the calls to the cluster."""

from run_gpt.deploy.kubernetes.target import Kubernetes

__all__ = ["Kubernetes"]
