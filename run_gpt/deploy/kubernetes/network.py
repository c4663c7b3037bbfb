"""Owns the manifests of the network (Services, Ingress, NetworkPolicies), disruption budgets and autoscaling."""

import math

from run_gpt.config import EXECUTOR_PORT
from run_gpt.deploy.deployment import GRPC_PORT, HTTP_PORT, Deployment
from run_gpt.deploy.kubernetes.options import Object, Options, executors_name, gateway_name, metadata, selector
from run_gpt.flows.traces import trace_options


def services(deployment: Deployment, options: Options) -> list[Object]:
    """Return the Service of the gateways and the headless Service of the executors.

    The headless one includes pods that are not ready: the gateways check the state of each themselves.
    """
    name = deployment.name
    gateways = {
        "type": options.service_type,
        "selector": selector(name, "gateway"),
        "ports": [_port("grpc", GRPC_PORT, "kubernetes.io/h2c"), _port("http", HTTP_PORT, "http")],
    }
    pods = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": selector(name, "executor"),
        "ports": [_port("grpc", EXECUTOR_PORT, "kubernetes.io/h2c")],
    }
    return [
        _object("v1", "Service", metadata(name, name, options.namespace, "gateway"), gateways),
        _object("v1", "Service", metadata(executors_name(name), name, options.namespace, "executor"), pods),
    ]


def ingresses(deployment: Deployment, options: Options) -> list[Object]:
    """Return an Ingress for HTTP, if a host was given. The Ingress API has no gRPC: each controller has its own way."""
    if not options.ingress_host:
        return []
    backend = {"service": {"name": deployment.name, "port": {"name": "http"}}}
    spec: Object = {"ingressClassName": options.ingress_class} if options.ingress_class else {}
    if options.tls_secret:
        spec["tls"] = [{"hosts": [options.ingress_host], "secretName": options.tls_secret}]
    paths = [{"path": "/", "pathType": "Prefix", "backend": backend}]
    spec["rules"] = [{"host": options.ingress_host, "http": {"paths": paths}}]
    about = metadata(deployment.name, deployment.name, options.namespace, "gateway")
    seconds = str(math.ceil(deployment.server.request_timeout))
    # The gateway has its own limits; those of ingress-nginx are lower, 60 seconds and 1 MB. Others ignore this.
    about["annotations"] = {
        "nginx.ingress.kubernetes.io/proxy-read-timeout": seconds,
        "nginx.ingress.kubernetes.io/proxy-send-timeout": seconds,
        "nginx.ingress.kubernetes.io/proxy-body-size": str(deployment.server.max_body_bytes),
    }
    return [_object("networking.k8s.io/v1", "Ingress", about, spec)]


def policies(deployment: Deployment, options: Options) -> list[Object]:
    """Return the NetworkPolicies of gateways and executors.

    Gateways accept all clients. Executors accept gateways only, and may connect to any host on port 443 for the model.
    Both may connect to any host on the port of the trace collector, if there is one.
    """
    name, tcp = deployment.name, {"protocol": "TCP"}
    # A policy applies to the port of a name server's pod, which is 5353 on OpenShift.
    dns = {"ports": [{"protocol": kind, "port": port} for kind in ("UDP", "TCP") for port in (53, 5353)]}
    endpoint = deployment.server.trace_endpoint
    traces = [] if endpoint is None else [{"ports": [tcp | {"port": trace_options(endpoint)["traces_exporter_port"]}]}]
    pods = {role: [{"podSelector": {"matchLabels": selector(name, role)}}] for role in ("gateway", "executor")}
    gateway = {
        "ingress": [{"ports": [tcp | {"port": GRPC_PORT}, tcp | {"port": HTTP_PORT}]}],
        "egress": [dns, {"to": pods["executor"], "ports": [tcp | {"port": EXECUTOR_PORT}]}, *traces],
    }
    executor = {
        "ingress": [{"from": pods["gateway"], "ports": [tcp | {"port": EXECUTOR_PORT}]}],
        "egress": [dns, {"ports": [tcp | {"port": 443}]}, *traces],
    }
    return [
        _object(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            metadata(what, name, options.namespace, role),
            {
                "podSelector": {"matchLabels": selector(name, role)},
                "policyTypes": ["Ingress", "Egress"],
                **rules,
            },
        )
        for what, role, rules in (
            (gateway_name(name), "gateway", gateway),
            (executors_name(name), "executor", executor),
        )
    ]


def budgets(deployment: Deployment, options: Options) -> list[Object]:
    """Return the PodDisruptionBudgets. While nodes are drained, one pod of each role may be down.

    Otherwise the node of a single pod could never be drained.
    """
    name = deployment.name
    return [
        _object(
            "policy/v1",
            "PodDisruptionBudget",
            metadata(what, name, options.namespace, role),
            {
                "maxUnavailable": 1,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": selector(name, role)},
            },
        )
        for what, role in ((gateway_name(name), "gateway"), (executors_name(name), "executor"))
    ]


def scalers(deployment: Deployment, options: Options) -> list[Object]:
    """Return KEDA's ScaledObject, if the deployment scales by load: its target is a number of requests per replica.

    KEDA polls the gateways. While they do not answer, the number of replicas stays: so there is no `fallback`, which
    would change it. One gateway is polled by its Service, with any version of KEDA; several need KEDA 2.20.
    """
    scale, name = deployment.autoscale, executors_name(deployment.name)
    if scale is None:
        return []
    trigger = {
        "url": f"http://{deployment.name}.{options.namespace}.svc:{HTTP_PORT}/ready",
        "valueLocation": "in_flight",
        "targetValue": str(scale.in_flight),
    }
    if deployment.gateways > 1:
        trigger |= {"aggregateFromKubeServiceEndpoints": "true", "aggregationType": "sum"}
    kind = "StatefulSet" if options.cache_gib else "Deployment"
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": kind, "name": name},
        "minReplicaCount": scale.least,
        "maxReplicaCount": scale.most,
        "triggers": [{"type": "metrics-api", "metadata": trigger}],
    }
    return [
        _object(
            "keda.sh/v1alpha1", "ScaledObject", metadata(name, deployment.name, options.namespace, "executor"), spec
        )
    ]


def _object(version: str, kind: str, about: Object, spec: Object) -> Object:
    return {"apiVersion": version, "kind": kind, "metadata": about, "spec": spec}


def _port(name: str, number: int, protocol: str) -> Object:
    return {"name": name, "port": number, "targetPort": name, "protocol": "TCP", "appProtocol": protocol}
