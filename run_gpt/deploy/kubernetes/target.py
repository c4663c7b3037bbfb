"""Owns the target `kubernetes`: applies deployments to a cluster, watches, scales and removes them."""

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from secrets import token_urlsafe

from run_gpt.deploy.deployment import GRPC_PORT, HTTP_PORT, Deployment
from run_gpt.deploy.kubernetes import logs, manifests, rollout
from run_gpt.deploy.kubernetes.cluster import KINDS, MADE, Cluster
from run_gpt.deploy.kubernetes.options import Object, Options, check_label, key_secret, owned, token_secret
from run_gpt.deploy.target import Endpoints, Phase, Report, Status
from run_gpt.errors import SetupError

ADDRESS_SECONDS = 180
"""Seconds that a cluster may take to give a Service of the type LoadBalancer its address."""

_KEDA = "keda.sh/v1alpha1"


@dataclass(frozen=True, kw_only=True)
class Kubernetes(Options):
    """Target for one namespace of the kubeconfig's cluster."""

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return the manifests as one file. Raises SetupError."""
        return {manifests.FILE: manifests.text(deployment, self)}

    def deploy(self, deployment: Deployment, report: Report) -> Endpoints:
        """Apply all objects, delete those that the deployment no longer has, and return when the last change serves."""
        objects = manifests.manifests(deployment, self)
        cluster = self._cluster()
        secrets = manifests.secrets(deployment, self.namespace, _token(cluster, deployment.name))
        if warning := manifests.warning(deployment):
            report(warning)
        if deployment.autoscale is not None:
            _require_keda(cluster)
            _keep_number(cluster, objects)
        versions = {}
        for secret in secrets:
            applied = cluster.apply(secret)
            versions[secret["metadata"]["name"]] = applied.get("metadata", {}).get("resourceVersion")
        _stamp(objects, versions.get(key_secret(deployment.name)))
        for item in objects:
            cluster.apply(item)
        report(f"applied {len(objects) + len(secrets)} objects in the namespace {self.namespace} of {cluster.host}")
        _prune(cluster, deployment.name, [*objects, *secrets], report)
        rollout.wait(cluster, deployment.name, self.start_minutes, report)
        return _endpoints_when_known(cluster, deployment.name, report)

    def status(self, name: str) -> Status:
        """Return the status of its pods. Raises SetupError if there is no such deployment."""
        cluster = self._cluster(name)
        state = rollout.current_state(cluster, name)
        endpoints, hint = _endpoints(cluster, name)
        notes = list(dict.fromkeys(trouble.text for trouble in state.troubles))
        return Status(
            name=name,
            phase=_phase(state),
            ready=state.executors.ready,
            wanted=state.executors.wanted,
            endpoints=endpoints,
            notes=(*notes, *([hint] if hint else [])),
        )

    def logs(self, name: str, *, follow: bool, lines: int) -> Iterator[str]:
        """Return the output of all its pods, each line prefixed with its pod's name."""
        return (logs.follow if follow else logs.read)(self._cluster(name), name, lines)

    def scale(self, name: str, replicas: int, report: Report) -> None:
        """Change the number of executors. Raises SetupError if the deployment scales by load."""
        cluster = self._cluster(name)
        executors = rollout.workload(cluster, name, "executor")
        if cluster.find("ScaledObject", owned(name)):
            raise SetupError(
                f"{name} scales by load: deploy it with another --autoscale, or without, to change its replicas"
            )
        cluster.scale(executors["kind"], executors["metadata"]["name"], replicas)
        report(f"{name} goes from {executors['spec'].get('replicas', 1)} replicas to {replicas}")

    def remove(self, name: str, report: Report) -> None:
        """Delete all objects with its labels, including keys and volumes. Its pods finish their running requests."""
        cluster = self._cluster(name)
        found = [(kind, item) for kind in KINDS if kind != "Pod" for item in cluster.find(kind, owned(name))]
        if not found:
            raise SetupError(f"there is no deployment {name} in the namespace {self.namespace} of {cluster.host}")
        for kind, item in found:
            cluster.delete(kind, item["metadata"]["name"])
            report(f"deleted {kind} {item['metadata']['name']}")

    def _cluster(self, name: str | None = None) -> Cluster:
        if name is not None:
            check_label("NAME", name)
        return Cluster(self.namespace, self.context)


def _token(cluster: Cluster, name: str) -> str:
    """Return the executors' token that the cluster has, so that running pods stay, or a new one."""
    if (secret := cluster.get("Secret", token_secret(name))) is None:
        return token_urlsafe(32)
    return base64.b64decode(secret["data"][manifests.TOKEN_ITEM]).decode()


def _require_keda(cluster: Cluster) -> None:
    if not cluster.has(_KEDA):
        raise SetupError(
            f"the cluster at {cluster.host} has no KEDA, which --autoscale needs: install it from https://keda.sh, or "
            "leave --autoscale out"
        )


def _keep_number(cluster: Cluster, objects: list[Object]) -> None:
    """Keep the present number of executors, if there are any: with autoscaling, load decides it."""
    for item in objects:
        scaled = item["metadata"]["labels"]["app.kubernetes.io/component"] == "executor"
        if scaled and item["kind"] in ("Deployment", "StatefulSet"):
            present = cluster.get(item["kind"], item["metadata"]["name"])
            if present is not None:
                item["spec"]["replicas"] = present["spec"].get("replicas", 1)


def _stamp(objects: list[Object], key_version: str | None) -> None:
    """Annotate each pod template with a hash, so that new pods can be recognised.

    A gateway reads its key at its start, so its hash includes the key: the version of its Secret, not a hash of the
    key, from which a short key could be guessed.
    """
    for item in objects:
        template = item["spec"].get("template")
        if template is not None:
            gateway = item["metadata"]["labels"]["app.kubernetes.io/component"] == "gateway"
            content = json.dumps([template, key_version if gateway else None], sort_keys=True)
            stamp = hashlib.sha256(content.encode()).hexdigest()[:16]
            template["metadata"]["annotations"] = {rollout.STAMP: stamp}


def _prune(cluster: Cluster, name: str, objects: list[Object], report: Report) -> None:
    kept = {(item["kind"], item["metadata"]["name"]) for item in objects}
    for kind in MADE:
        for item in cluster.find(kind, owned(name)):
            if (kind, item["metadata"]["name"]) not in kept:
                cluster.delete(kind, item["metadata"]["name"])
                report(f"deleted {kind} {item['metadata']['name']}, which it no longer has")


def _phase(state: rollout.State) -> Phase:
    if state.executors.wanted == 0:
        return "stopped"
    if state.executors.ready and state.gateways.ready:
        return "serving"
    return "failed" if any(trouble.hopeless for trouble in state.troubles) else "starting"


def _endpoints_when_known(cluster: Cluster, name: str, report: Report) -> Endpoints:
    deadline = time.monotonic() + ADDRESS_SECONDS
    while True:
        endpoints, hint = _endpoints(cluster, name)
        if endpoints.http is not None or time.monotonic() > deadline:
            if hint:
                report(hint)
            return endpoints
        time.sleep(rollout.POLL_SECONDS)


def _endpoints(cluster: Cluster, name: str) -> tuple[Endpoints, str]:
    """Return the URLs for requests, and a hint about them, which may be empty."""
    service = cluster.get("Service", name)
    if service is None:
        return Endpoints(), f"the Service {name} does not exist: deploy it again"
    ingress = cluster.get("Ingress", name)
    host = f"{name}.{cluster.namespace}.svc"
    if service["spec"].get("type") == "LoadBalancer":
        points = service.get("status", {}).get("loadBalancer", {}).get("ingress", [])
        host = next((point.get("hostname") or point.get("ip", "") for point in points), "")
        hint = "" if host else "the load balancer has no address yet: `rungpt deploy status` shows it when it has"
    else:
        forward = f"kubectl --namespace {cluster.namespace} port-forward service/{name} {HTTP_PORT} {GRPC_PORT}"
        hint = f"from outside the cluster: {forward}"
    host = f"[{host}]" if ":" in host else host
    endpoints = Endpoints(http=f"http://{host}:{HTTP_PORT}", grpc=f"grpc://{host}:{GRPC_PORT}") if host else Endpoints()
    if ingress is None:
        return endpoints, hint
    scheme = "https" if ingress["spec"].get("tls") else "http"
    return Endpoints(http=f"{scheme}://{ingress['spec']['rules'][0]['host']}", grpc=endpoints.grpc), hint
