"""Owns the options of the target Kubernetes, and the names and labels of a deployment's objects."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from run_gpt.deploy.target import option
from run_gpt.errors import SetupError

Object = dict[str, Any]
"""Kubernetes object, as it is written in YAML."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PAIR = re.compile(r"[\w./-]+=[\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `rungpt deploy --cloud kubernetes`. Raises SetupError for those that cannot be combined."""

    namespace: str = option("default", "The namespace, which must exist.")
    context: str = option("", "The kubeconfig's context; default: its current one.")
    service_type: Literal["ClusterIP", "LoadBalancer"] = option(
        "ClusterIP", "ClusterIP: reachable in the cluster only; or LoadBalancer."
    )
    ingress_host: str = option("", "Host name of an Ingress for HTTP.")
    ingress_class: str = option("", "The Ingress' class; default: the cluster's default class.")
    tls_secret: str = option("", "The Secret with the Ingress' TLS certificate.")
    executor_tls_secret: str = option(
        "", "The Secret with ca.crt, tls.crt and tls.key for TLS between gateways and executors."
    )
    pull_secret: str = option("", "The Secret with which the image is pulled.")
    cache_gib: int = option(0, "A volume of so many GiB for each replica's models; 0: the disk of its node.")
    storage_class: str = option("", "The class of these volumes; default: the cluster's default class.")
    cache_claim: str = option("", "A ReadWriteMany volume claim in which all replicas share their models.")
    node_selector: str = option("", "KEY=VALUE: the label of the nodes that replicas run on.")
    start_minutes: int = option(60, "Minutes that a replica has to download and load its model.")

    def __post_init__(self) -> None:
        check_label("--namespace", self.namespace)
        if self.service_type not in ("ClusterIP", "LoadBalancer"):
            raise SetupError(f"--service-type {self.service_type}: ClusterIP or LoadBalancer")
        for flag, value in (("--ingress-class", self.ingress_class), ("--tls-secret", self.tls_secret)):
            if value and not self.ingress_host:
                raise SetupError(f"{flag} is for an Ingress: give --ingress-host")
        if self.executor_tls_secret:
            check_label("--executor-tls-secret", self.executor_tls_secret)
        if self.storage_class and not self.cache_gib:
            raise SetupError("--storage-class is for volumes: give --cache-gib")
        if self.cache_gib and self.cache_claim:
            raise SetupError("--cache-gib is a volume for each replica, --cache-claim one for all: give one of the two")
        if self.cache_gib < 0 or self.start_minutes < 1:
            raise SetupError("--cache-gib must be at least 0, --start-minutes at least 1")
        if self.node_selector and not _PAIR.fullmatch(self.node_selector):
            raise SetupError(f"--node-selector {self.node_selector}: write KEY=VALUE")


def check_label(what: str, value: str) -> None:
    """Raise SetupError for a value that is not valid as a name and a label of Kubernetes."""
    if not _LABEL.fullmatch(value):
        raise SetupError(f"{what} {value}: up to 63 of a-z 0-9 -, and no hyphen at either end")


def gateway_name(name: str) -> str:
    """Return the name of a deployment's gateways."""
    return f"{name}-gateway"


def executors_name(name: str) -> str:
    """Return the name of a deployment's executors and their headless Service, whose DNS name the gateways resolve."""
    return f"{name}-executors"


def key_secret(name: str) -> str:
    """Return the name of the Secret with the unnamed key, which a gateway reads when it starts."""
    return f"{name}-key"


def keys_secret(name: str) -> str:
    """Return the name of the Secret with the key file, which a gateway reads again when it changes."""
    return f"{name}-keys"


def token_secret(name: str) -> str:
    """Return the name of the Secret with the executors' token, which gateways and executors read when they start."""
    return f"{name}-token"


def selector(name: str, component: str | None = None) -> dict[str, str]:
    """Return the labels that never change: a deployment's, or those of its `gateway` or `executor` pods."""
    labels = {"app.kubernetes.io/name": "rungpt", "app.kubernetes.io/instance": name}
    return labels if component is None else labels | {"app.kubernetes.io/component": component}


def owned(name: str) -> dict[str, str]:
    """Return the labels that find the objects made for a deployment, even if others have its `selector` labels."""
    return {**selector(name), "app.kubernetes.io/managed-by": "rungpt"}


def metadata(name: str, deployment: str, namespace: str, component: str | None = None) -> Object:
    """Return an object's metadata."""
    return {"name": name, "namespace": namespace, "labels": selector(deployment, component) | owned(deployment)}
