"""Owns the list of a deployment's objects on Kubernetes, its Secrets, and the text of the manifests."""

import base64
from pathlib import PurePosixPath
from typing import Any

import yaml

from run_gpt.deploy.deployment import KEYS_PATH, Deployment
from run_gpt.deploy.kubernetes import network, workloads
from run_gpt.deploy.kubernetes.options import Object, Options, key_secret, keys_secret, metadata, token_secret

FILE = "kubernetes.yaml"
KEY_ITEM, TOKEN_ITEM, KEYS_ITEM = workloads.KEY_ITEM, workloads.TOKEN_ITEM, PurePosixPath(KEYS_PATH).name

_HEADER = """\
# {model} on Kubernetes, as `rungpt deploy --cloud kubernetes` applies it.
# Without that command: kubectl apply --server-side --filename FILE
"""
_SECRETS_HEADER = """\
# Keys and the executors' token are in no file. `rungpt deploy` makes their Secrets; without it, before this file:
"""


def manifests(deployment: Deployment, options: Options) -> list[Object]:
    """Return all objects except the Secrets, in the order in which they are applied. Raises SetupError."""
    if (where := _outside(options)) is not None:
        deployment.check_closed(f"anyone who reaches {where}")
    return [
        *network.policies(deployment, options),
        *network.services(deployment, options),
        *network.budgets(deployment, options),
        workloads.executors(deployment, options),
        workloads.gateways(deployment, options),
        *network.ingresses(deployment, options),
        *network.scalers(deployment, options),
    ]


def secrets(deployment: Deployment, namespace: str, token: str) -> list[Object]:
    """Return the Secrets with the keys and the executors' token, for the cluster only.

    Raises SetupError if the key file is unreadable.
    """
    name = deployment.name
    contents = (
        (key_secret(name), KEY_ITEM, deployment.server.api_key),
        (keys_secret(name), KEYS_ITEM, deployment.keys_file()),
        (token_secret(name), TOKEN_ITEM, token),
    )
    return [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata(secret, name, namespace, "gateway"),
            "type": "Opaque",
            "data": {item: base64.b64encode(content.encode()).decode()},
        }
        for secret, item, content in contents
        if content is not None
    ]


def text(deployment: Deployment, options: Options) -> str:
    """Return the manifests as one file, with the commands for making the Secrets in a comment. Raises SetupError."""
    header = _HEADER.format(model=deployment.model)
    if line := warning(deployment):
        header += f"# {line}\n"
    commands = _secret_commands(deployment, options.namespace)
    header += _SECRETS_HEADER + "".join(f"#   {command}\n" for command in commands)
    objects = manifests(deployment, options)
    return header + yaml.dump_all(
        objects, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True, explicit_start=True
    )


def _secret_commands(deployment: Deployment, namespace: str) -> list[str]:
    """Return the commands that make the Secrets. The key goes through a pipe: other users see command lines in `ps`."""
    create = f"kubectl --namespace {namespace} create secret generic"
    token = f"{create} {token_secret(deployment.name)} --from-file={TOKEN_ITEM}=/dev/stdin"
    commands = [f"head -c 32 /dev/urandom | base64 | tr -d '\\n' | {token}"]
    if deployment.server.api_key is not None:
        commands.append(
            f'printf %s "$RUNGPT_API_KEY" | {create} {key_secret(deployment.name)} --from-file={KEY_ITEM}=/dev/stdin'
        )
    if deployment.server.api_key_file is not None:
        commands.append(f"{create} {keys_secret(deployment.name)} --from-file={KEYS_ITEM}=FILE")
    return commands


def warning(deployment: Deployment) -> str | None:
    """Return a warning for a deployment that needs no key although `open` is not set, else None."""
    if deployment.server.asks_for_key or deployment.open:
        return None
    return (
        "Warning: it requires no key: every pod of the cluster can use it. $RUNGPT_API_KEY or --api-key-file closes it."
    )


def _outside(options: Options) -> str | None:
    """Return the endpoint for clients outside the cluster, if there is one."""
    if options.ingress_host:
        return options.ingress_host
    return "the load balancer" if options.service_type == "LoadBalancer" else None


class _Dumper(yaml.SafeDumper):
    """Dumper that writes texts of several lines as block scalars, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
