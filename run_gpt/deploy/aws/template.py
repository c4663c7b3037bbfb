"""Owns the whole template: its parameters, resources and outputs, as text."""

from typing import Any

from run_gpt.deploy.aws.cloudformation import Resources, att, dump, sub
from run_gpt.deploy.aws.containers import containers
from run_gpt.deploy.aws.machines import image_parameter, machines
from run_gpt.deploy.aws.network import network
from run_gpt.deploy.aws.options import MOST_REPLICAS, Options
from run_gpt.deploy.aws.scaling import scaling, telling_load
from run_gpt.deploy.deployment import GRPC_PORT, HTTP_PORT, Deployment

_HEADER = """\
# RunGPT on ECS. `rungpt deploy` creates and updates the stack; so does
# `aws cloudformation deploy --capabilities CAPABILITY_IAM --stack-name {name} --template-file FILE`.
"""
_KEY_HEADER = """\
# No key is in this file: its parameters name a secret of Secrets Manager, and its version. The secret's text:
# {{{fields}}}
"""
_FIELDS = {"api_key": '"api_key": "the key"', "keys": '"keys": "the text of the file of keys"'}


def template(deployment: Deployment, options: Options) -> str:
    """Return the CloudFormation template of a checked deployment, as YAML."""
    deployment = telling_load(deployment)
    header = _HEADER.format(name=deployment.name)
    if deployment.server.asks_for_key:
        given = {"api_key": deployment.server.api_key, "keys": deployment.server.api_key_file}
        header += _KEY_HEADER.format(fields=", ".join(_FIELDS[name] for name, value in given.items() if value))
    resources: Resources = (
        network(deployment, options)
        | machines(deployment, options)
        | containers(deployment, options)
        | scaling(deployment)
    )
    body = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": f"RunGPT serves {deployment.model}",
        "Parameters": parameters(deployment),
        "Resources": resources,
        "Outputs": outputs(deployment, options),
    }
    return header + dump(body)


def parameters(deployment: Deployment) -> dict[str, Any]:
    """Return the template's parameters, which may change without a new template."""
    made: dict[str, Any] = {
        "Replicas": {
            "Type": "Number",
            "Default": deployment.replicas,
            "MinValue": 0,
            "MaxValue": MOST_REPLICAS,
            "Description": "Executors, at first where they scale by load.",
        },
        "MachineImage": image_parameter(deployment),
    }
    if deployment.server.asks_for_key:
        made["KeySecret"] = {"Type": "String", "Description": "ARN of the secret with the keys."}
        made["KeyVersion"] = {"Type": "String", "Description": "The id of the secret's version."}
    return made


def outputs(deployment: Deployment, options: Options) -> dict[str, Any]:
    """Return the template's outputs: the URLs for requests, and the names that `rungpt deploy` needs later."""
    values: dict[str, Any] = {
        "Http": _url("http", HTTP_PORT, options),
        "Grpc": _url("grpc", GRPC_PORT, options),
        "LoadBalancer": att("LoadBalancer", "DNSName"),
        "Cluster": {"Ref": "Cluster"},
        "ExecutorService": att("ExecutorService", "Name"),
        "GatewayService": att("GatewayService", "Name"),
        "Instances": {"Ref": "Instances"},
    }
    if (autoscale := deployment.autoscale) is not None:
        values["Autoscale"] = f"{autoscale.least}:{autoscale.most}:{autoscale.in_flight}"
    return {name: {"Value": value} for name, value in values.items()}


def _url(scheme: str, port: int, options: Options) -> Any:
    if options.domain is not None:  # then there is a certificate for it
        return f"{scheme}s://{options.domain}:{port}"
    return sub(f"{scheme}://${{LoadBalancer.DNSName}}:{port}")
