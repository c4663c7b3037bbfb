"""Owns the manifests of the workloads: the gateways' and executors' pods, and the objects that keep them running."""

from pathlib import PurePosixPath

from run_gpt.config import API_KEY_VARIABLE, EXECUTOR_PORT, EXECUTOR_TLS_VARIABLE, EXECUTOR_TOKEN_VARIABLE
from run_gpt.deploy.deployment import (
    CACHE_PATH,
    EXECUTOR_TLS_PATH,
    GATEWAY_CPUS,
    GATEWAY_MEMORY_GIB,
    GRPC_PORT,
    HTTP_PORT,
    KEYS_PATH,
    Deployment,
    pod_command,
)
from run_gpt.deploy.kubernetes.options import (
    Object,
    Options,
    executors_name,
    gateway_name,
    key_secret,
    keys_secret,
    metadata,
    owned,
    selector,
    token_secret,
)

KEY_ITEM = "key"
TOKEN_ITEM = "token"
WITHDRAW_SECONDS = 5
"""Seconds that a gateway keeps serving before SIGTERM, until no load balancer sends it requests."""

_USER = 10001
"""User id of the image. A cluster accepts only a number as proof that a user is not root, so it is set here too."""
_START_PERIOD = 5


def gateways(deployment: Deployment, options: Options) -> Object:
    """Return the Deployment of the gateways. A new one is ready before an old one ends."""
    name = deployment.name
    env, mounts, volumes = map(list.__add__, _keys(deployment), _executor_tls(options))
    memory = f"{GATEWAY_MEMORY_GIB}Gi"
    alive, ready = ({"httpGet": {"path": path, "port": "http"}, "timeoutSeconds": 5} for path in ("/health", "/ready"))
    container = _container("gateway", deployment) | {
        "env": [*_env(deployment.gateway_env(executors_name(name))), _token(deployment), *env],
        "ports": [
            {"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"},
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
        ],
        "resources": {"requests": {"cpu": f"{GATEWAY_CPUS}", "memory": memory}, "limits": {"memory": memory}},
        "startupProbe": alive | {"periodSeconds": 2, "failureThreshold": 60},
        "livenessProbe": alive | {"periodSeconds": 10},
        "readinessProbe": ready | {"periodSeconds": 2},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(WITHDRAW_SECONDS)]}}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *mounts],
    }
    pod = _pod("gateway", deployment, options, WITHDRAW_SECONDS)
    pod |= {"containers": [container], "volumes": [{"name": "tmp", "emptyDir": {}}, *volumes]}
    spec = {
        "replicas": deployment.gateways,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        **_deployment_spec("gateway", deployment, options, pod),
    }
    about = metadata(gateway_name(name), name, options.namespace, "gateway")
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": about, "spec": spec}


def executors(deployment: Deployment, options: Options) -> Object:
    """Return a Deployment of the executors, or a StatefulSet if each has a persistent volume of its own."""
    name = deployment.name
    volumes = [_cache(options)] if not options.cache_gib else []
    mounts = [{"name": "cache", "mountPath": CACHE_PATH}, {"name": "tmp", "mountPath": "/tmp"}]
    volumes.append({"name": "tmp", "emptyDir": {}})
    if deployment.gpus or deployment.server.tensor_parallel > 1:
        # Processes that share a model communicate through it, and a container's default has 64 MB.
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    tls_env, tls_mounts, tls_volumes = _executor_tls(options)
    mounts, volumes = mounts + tls_mounts, volumes + tls_volumes
    # Clusters ask for gRPC's health without TLS only. An executor opens its port when its model is loaded.
    asked = {"tcpSocket" if tls_env else "grpc": {"port": EXECUTOR_PORT}}
    probe = asked | {"timeoutSeconds": 5}
    starts = options.start_minutes * 60 // _START_PERIOD
    container = _container("executor", deployment) | {
        "env": [*_env(deployment.executor_env(executors_name(name))), _token(deployment), *tls_env],
        "ports": [{"name": "grpc", "containerPort": EXECUTOR_PORT, "protocol": "TCP"}],
        "resources": _resources(deployment),
        "startupProbe": probe | {"periodSeconds": _START_PERIOD, "failureThreshold": starts},
        # Long, since an engine step of a large model takes time; an executor whose engine is dead ends by itself.
        "livenessProbe": probe | {"periodSeconds": 10, "failureThreshold": 6},
        "readinessProbe": probe | {"periodSeconds": 5},
        "volumeMounts": mounts,
    }
    pod = _pod("executor", deployment, options, 0) | {"containers": [container], "volumes": volumes}
    if not options.cache_claim:
        pod["initContainers"] = [_models_of_the_image(deployment)]
    if deployment.gpus:
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if options.node_selector:
        key, _, value = options.node_selector.partition("=")
        pod["nodeSelector"] = {key: value}
    return _keeper(deployment, options, pod)


def _keys(deployment: Deployment) -> tuple[list[Object], list[Object], list[Object]]:
    """Return a gateway's variable with the key, and the mount and the volume of its key file."""
    env, mounts, volumes = [], [], []
    if deployment.server.api_key is not None:
        env.append(_secret_variable(API_KEY_VARIABLE, key_secret(deployment.name), KEY_ITEM))
    if deployment.server.api_key_file is not None:
        # The folder, not the file: the kubelet updates only folders when the Secret changes.
        mounts.append({"name": "keys", "mountPath": str(PurePosixPath(KEYS_PATH).parent), "readOnly": True})
        secret = {"secretName": keys_secret(deployment.name), "optional": False, "defaultMode": 0o440}
        volumes.append({"name": "keys", "secret": secret})
    return env, mounts, volumes


def _executor_tls(options: Options) -> tuple[list[Object], list[Object], list[Object]]:
    """Return the variable, the mount and the volume of the certificate for TLS between gateways and executors."""
    if not options.executor_tls_secret:
        return [], [], []
    # The folder, as for keys: cert-manager renews the certificate.
    secret = {"secretName": options.executor_tls_secret, "optional": False, "defaultMode": 0o440}
    return (
        [{"name": EXECUTOR_TLS_VARIABLE, "value": EXECUTOR_TLS_PATH}],
        [{"name": "executor-tls", "mountPath": EXECUTOR_TLS_PATH, "readOnly": True}],
        [{"name": "executor-tls", "secret": secret}],
    )


def _token(deployment: Deployment) -> Object:
    """Return the variable with the executors' token."""
    return _secret_variable(EXECUTOR_TOKEN_VARIABLE, token_secret(deployment.name), TOKEN_ITEM)


def _secret_variable(name: str, secret: str, item: str) -> Object:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": item, "optional": False}}}


def _keeper(deployment: Deployment, options: Options, pod: Object) -> Object:
    name = executors_name(deployment.name)
    spec = {**_replicas(deployment)}
    kind = "StatefulSet" if options.cache_gib else "Deployment"
    if kind == "StatefulSet":
        spec |= {
            "serviceName": name,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "RollingUpdate"},
            # A replica that autoscaling starts again still has its models; a removed deployment leaves nothing.
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
            **_common_spec("executor", deployment, pod),
            "volumeClaimTemplates": [_claim(deployment, options)],
        }
    else:
        # Spare GPUs are rare: with GPUs the old replica has to end before the new one starts.
        surge = (
            {"maxSurge": 0, "maxUnavailable": "25%"} if deployment.gpus else {"maxSurge": "25%", "maxUnavailable": 0}
        )
        spec |= {
            "strategy": {"type": "RollingUpdate", "rollingUpdate": surge},
            **_deployment_spec("executor", deployment, options, pod),
        }
    labels = metadata(name, deployment.name, options.namespace, "executor")
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": labels, "spec": spec}


def _replicas(deployment: Deployment) -> Object:
    """Return the number of replicas; nothing with autoscaling from the least, which applying again would reset."""
    scaled = deployment.autoscale is not None and deployment.replicas == deployment.autoscale.least
    return {} if scaled else {"replicas": deployment.replicas}


def _deployment_spec(role: str, deployment: Deployment, options: Options, pod: Object) -> Object:
    """Return the spec of a Deployment. A gateway is ready when a replica is, so both get the same deadline."""
    return {"progressDeadlineSeconds": options.start_minutes * 60 + 600, **_common_spec(role, deployment, pod)}


def _common_spec(role: str, deployment: Deployment, pod: Object) -> Object:
    labels = selector(deployment.name, role) | owned(deployment.name)
    return {
        "revisionHistoryLimit": 3,
        "selector": {"matchLabels": selector(deployment.name, role)},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }


def _pod(role: str, deployment: Deployment, options: Options, withdraw_seconds: int) -> Object:
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector(deployment.name, role)},
    }
    pod: Object = {
        "automountServiceAccountToken": False,
        # Otherwise the cluster sets variables for its Services; those of a Service called rungpt would begin like ours.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": deployment.stop_seconds + withdraw_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [spread],
    }
    return pod | ({"imagePullSecrets": [{"name": options.pull_secret}]} if options.pull_secret else {})


def _container(role: str, deployment: Deployment) -> Object:
    return {
        "name": role,
        "image": deployment.image,
        "command": pod_command(role),
        "securityContext": _CLOSED,
        # Puts its last output into its status when it ends with an error.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


_CLOSED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}


def _models_of_the_image(deployment: Deployment) -> Object:
    """Return the init container that copies models baked into the image to the volume, which would hide them."""
    small = {"cpu": "100m", "memory": "256Mi"}
    return {
        "name": "models-of-the-image",
        "image": deployment.image,
        "command": ["sh", "-c", f"test ! -d {CACHE_PATH} || cp -R {CACHE_PATH}/. /volume/"],
        "securityContext": _CLOSED,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {"requests": small, "limits": {"memory": small["memory"]}},
        "volumeMounts": [{"name": "cache", "mountPath": "/volume"}],
    }


def _resources(deployment: Deployment) -> Object:
    """Return the resources, without a CPU limit.

    Threads wait for each other at every layer, so all of them would wait for one that the quota has stopped.
    """
    memory = f"{deployment.memory_gib:g}Gi"
    limits = {"memory": memory} | ({"nvidia.com/gpu": str(deployment.gpus)} if deployment.gpus else {})
    return {"requests": {"cpu": f"{deployment.cpus:g}", "memory": memory}, "limits": limits}


def _cache(options: Options) -> Object:
    if options.cache_claim:
        return {"name": "cache", "persistentVolumeClaim": {"claimName": options.cache_claim}}
    return {"name": "cache", "emptyDir": {}}


def _claim(deployment: Deployment, options: Options) -> Object:
    spec: Object = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": f"{options.cache_gib}Gi"}},
    }
    if options.storage_class:
        spec["storageClassName"] = options.storage_class
    labels = metadata("cache", deployment.name, options.namespace, "executor")["labels"]
    return {"metadata": {"name": "cache", "labels": labels}, "spec": spec}


def _env(variables: dict[str, str]) -> list[Object]:
    """Return the variables, with each `$` doubled: Kubernetes reads `$(NAME)` in a value, and `$$` as `$`.

    HOME is /tmp, since the root file system, with the image's home, is read-only.
    """
    values = variables | {"HOME": "/tmp"}
    return [{"name": name, "value": value.replace("$", "$$")} for name, value in values.items()]
