"""Owns the calls to a cluster's API through the official client, and the message when one fails."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from run_gpt.deploy.kubernetes.options import Object
from run_gpt.errors import SetupError

KINDS: dict[str, tuple[str, str]] = {
    "ScaledObject": ("apis/keda.sh/v1alpha1", "scaledobjects"),
    "Ingress": ("apis/networking.k8s.io/v1", "ingresses"),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets"),
    "Service": ("api/v1", "services"),
    "Deployment": ("apis/apps/v1", "deployments"),
    "StatefulSet": ("apis/apps/v1", "statefulsets"),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies"),
    "Secret": ("api/v1", "secrets"),
    "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims"),
    "Pod": ("api/v1", "pods"),
}
"""API path and plural name of each kind of object, in the order in which a deployment's objects are deleted."""
MADE = tuple(kind for kind in KINDS if kind not in ("PersistentVolumeClaim", "Pod"))
"""Kinds that RunGPT creates itself."""

_MANAGER = "rungpt"
_CONNECT_SECONDS, _READ_SECONDS = 5, 30
_NO_CLIENT = "the Kubernetes client is not installed: pip install 'rungpt[kubernetes]'"


class Unreachable(SetupError):
    """Error of a cluster that does not answer, possibly for a moment only."""


class _NotThere(SetupError):
    """Error for an object that is not in the cluster, or whose kind the cluster does not know."""


class Cluster:
    """One namespace of a cluster. Calls raise SetupError in one line when the cluster refuses or is unreachable."""

    def __init__(self, namespace: str, context: str = ""):
        self.namespace = namespace
        self._client = _client(context)
        self.host: str = self._client.configuration.host

    def has(self, group: str) -> bool:
        """Return True if the cluster knows a group of kinds, such as `keda.sh/v1alpha1`."""
        return self._call("GET", f"/apis/{group}", missing_ok=True) is not None

    def get(self, kind: str, name: str) -> Object | None:
        """Return one object; None if there is none."""
        return self._call("GET", self._path(kind, name), missing_ok=True)

    def find(self, kind: str, labels: dict[str, str]) -> list[Object]:
        """Return the objects with these labels; none if the cluster does not know the kind."""
        query = {"labelSelector": ",".join(f"{name}={value}" for name, value in labels.items())}
        found = self._call("GET", self._path(kind), query, missing_ok=True)
        return [] if found is None else [item | {"kind": kind} for item in found["items"]]

    def apply(self, body: Object) -> Object:
        """Create the object, or update it even if another manager set its fields. Returns it as the cluster has it."""
        path = self._path(body["kind"], body["metadata"]["name"])
        query = {"fieldManager": _MANAGER, "force": "true", "fieldValidation": "Strict"}
        found = self._call("PATCH", path, query, body, "application/apply-patch+yaml")
        return found or {}

    def scale(self, kind: str, name: str, replicas: int) -> None:
        """Change the number of a workload's pods."""
        body = {"spec": {"replicas": replicas}}
        path = f"{self._path(kind, name)}/scale"
        self._call("PATCH", path, {"fieldManager": _MANAGER}, body, "application/merge-patch+json")

    def delete(self, kind: str, name: str) -> None:
        """Delete an object, and then in the background its dependents; it may be gone already."""
        body = {"propagationPolicy": "Background"}
        self._call("DELETE", self._path(kind, name), {}, body, missing_ok=True)

    def log(self, pod: str, *, lines: int, follow: bool) -> Iterator[str]:
        """Yield the last lines of a pod's output, and, if `follow`, new lines until it ends."""
        query = {"tailLines": str(lines)} | ({"follow": "true"} if follow else {})
        timeout = (_CONNECT_SECONDS, None if follow else _READ_SECONDS)
        with (
            _translated(self.host),
            self._send("GET", f"{self._path('Pod', pod)}/log", query, timeout=timeout) as answer,
        ):
            rest = b""
            for chunk in answer.stream(2**16):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
            if rest:
                yield rest.decode(errors="replace")

    def _path(self, kind: str, name: str = "") -> str:
        where, plural = KINDS[kind]
        return f"/{where}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def _call(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
        missing_ok: bool = False,
    ) -> Object | None:
        try:
            with _translated(self.host):
                return dict(json.loads(self._send(method, path, query or {}, body, content_type).data))
        except _NotThere:
            if missing_ok:
                return None
            raise
        except json.JSONDecodeError as error:
            raise SetupError(f"the server at {self.host} is no Kubernetes API") from error

    def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: Object | None = None,
        content_type: str = "application/json",
        timeout: tuple[float, float | None] = (_CONNECT_SECONDS, _READ_SECONDS),
    ) -> Any:
        return self._client.call_api(
            path,
            method,
            query_params=list(query.items()),
            header_params={"Accept": "application/json, */*", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=timeout,
        )


def _client(context: str) -> Any:
    try:
        from kubernetes.client import ApiClient, Configuration
        from kubernetes.config import ConfigException, load_kube_config
    except ImportError as error:
        raise SetupError(_NO_CLIENT) from error
    configuration = Configuration()
    file = os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")
    try:
        load_kube_config(file, context=context or None, client_configuration=configuration)
    except (ConfigException, OSError, ValueError, TypeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise SetupError(
            f"the kubeconfig {file} cannot be used: {said}; `kubectl config get-contexts` shows it"
        ) from error
    configuration.retries = False  # it would log each retry; callers that can wait retry themselves
    return ApiClient(configuration)


@contextmanager
def _translated(host: str) -> Iterator[None]:
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError, NewConnectionError, TimeoutError

    try:
        yield
    except ApiException as error:
        raise _refusal(host, error.status, _message(error)) from error
    except HTTPError as error:
        # urllib3 reports a refused connection as a timeout too.
        late = isinstance(error, TimeoutError) and not isinstance(error, NewConnectionError)
        reason = "it does not answer" if late else str(error.args[-1]).rpartition(": ")[2]
        raise Unreachable(f"the cluster at {host} cannot be reached: {reason}") from error


def _refusal(host: str, status: int, message: str) -> SetupError:
    if status == 0:
        return Unreachable(f"the cluster at {host} cannot be reached: {message}")
    if status == 401:
        return SetupError(f"the cluster at {host} refuses these credentials: log in anew, or choose another --context")
    if status == 403:
        return SetupError(f"the cluster at {host} does not allow this: {message}")
    if status == 404 and message.startswith("namespaces "):
        return SetupError(f"{message}: choose another --namespace, or `kubectl create namespace` it")
    if status == 404:
        return _NotThere(f"the cluster at {host} does not have this: {message}")
    if status == 429 or status >= 500:
        return Unreachable(f"the cluster at {host} fails: {message} ({status})")
    if "immutable" in message or "updates to statefulset spec" in message:
        message += "; `rungpt deploy remove` it first"
    return SetupError(f"the cluster at {host} refuses this: {message}")


def _message(error: Any) -> str:
    """Return the message in the API's Status object, else the reason of the HTTP status, in one line."""
    try:
        text = str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        text = str(error.reason)
    return " ".join(text.split())
