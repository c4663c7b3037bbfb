"""Deployments on AWS: a CloudFormation stack with an ECS cluster, managed through boto3."""

from run_gpt.deploy.aws.target import AWS

__all__ = ["AWS"]
