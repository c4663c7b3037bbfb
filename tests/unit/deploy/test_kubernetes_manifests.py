"""Without these tests, a cluster could refuse the manifests, or run pods that no client reaches, or that lose running
requests when they end."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import kubernetes_validate.utils
import pytest
import yaml
from pydantic import BaseModel, ValidationError

from run_gpt.config import ServeConfig
from run_gpt.deploy import Autoscale, Deployment
from run_gpt.deploy.kubernetes import Kubernetes
from run_gpt.deploy.kubernetes.network import policies
from run_gpt.errors import SetupError
from run_gpt.flows.pod import gateway_arguments

Object = dict[str, Any]
KEY = "secret-key-of-the-test"
VERSIONS = ("1.27", "1.30", "1.33", "1.37")

SERVER = ServeConfig(api_key=KEY, request_timeout=90.5, max_body_bytes=10_000_000)
OTHERS: dict[str, tuple[Kubernetes, Deployment]] = {
    "ingress": (
        Kubernetes(
            namespace="llm",
            ingress_host="chat.example.com",
            ingress_class="nginx",
            tls_secret="chat-tls",
            pull_secret="pull",
            node_selector="nvidia.com/gpu.product=L4",
            start_minutes=10,
        ),
        Deployment(server=SERVER, image="example/rungpt:1.2.3", memory_gib=3, name="chat", gpus=1),
    ),
    "storage": (
        Kubernetes(service_type="LoadBalancer", cache_gib=200, storage_class="fast"),
        Deployment(
            server=ServeConfig(api_key=KEY, replicas=3),
            image="example/rungpt:1.2.3",
            memory_gib=3,
            gateways=2,
            autoscale=Autoscale(least=1, most=5),
        ),
    ),
    "shared": (
        Kubernetes(cache_claim="models", executor_tls_secret="inner-tls"),
        Deployment(server=ServeConfig(tensor_parallel=2), image="example/rungpt:1.2.3", memory_gib=3, open=True),
    ),
}


@pytest.fixture(params=["autoscale", "gpu", "key", "plain", *sorted(OTHERS)])
def rendered(request: pytest.FixtureRequest, deployments: dict[str, Deployment]) -> tuple[Deployment, list[Object]]:
    """Return each deployment in turn, with its objects as the file has them."""
    name = request.param
    target, deployment = OTHERS[name] if name in OTHERS else (Kubernetes(), deployments[name])
    return deployment, objects(target, deployment)


@pytest.fixture(autouse=True, scope="module")
def read_schemas_once() -> Iterator[None]:
    """Cache the schemas: the validator would read megabytes of them for each object."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubernetes_validate.utils, "schema_contents", cache(kubernetes_validate.utils.schema_contents))
        yield


def objects(target: Kubernetes, deployment: Deployment) -> list[Object]:
    (text,) = target.render(deployment).values()
    return list(yaml.safe_load_all(text))


def one(found: list[Object], kind: str, suffix: str = "") -> Object:
    (match,) = [item for item in found if item["kind"] == kind and item["metadata"]["name"].endswith(suffix)]
    return match


def workloads(found: list[Object]) -> tuple[Object, Object]:
    """Return the executors' and the gateways' workload."""
    made = {item["metadata"]["name"].rpartition("-")[2]: item for item in found if "template" in item["spec"]}
    return made["executors"], made["gateway"]


def pod(item: Object) -> Object:
    return dict(item["spec"]["template"]["spec"])


def container(item: Object) -> Object:
    (found,) = pod(item)["containers"]
    return dict(found)


def expanded(value: str, variables: dict[str, str]) -> str:
    """Expand a variable's value as Kubernetes does."""

    def replaced(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replaced, value)


def unknown_fields(model: Any, written: Any) -> list[str]:
    """Return the fields that a cloudcoil model does not know: it ignores such fields, and a cluster drops them."""
    if isinstance(model, BaseModel):
        fields = {info.alias or name: name for name, info in type(model).model_fields.items()}
        unknown = [name for name in written if name not in fields]
        return unknown + [
            f"{name}.{inner}"
            for name, value in written.items()
            if name in fields
            for inner in unknown_fields(getattr(model, fields[name]), value)
        ]
    if isinstance(model, list):
        return [name for item, value in zip(model, written, strict=True) for name in unknown_fields(item, value)]
    return []


def test_the_files_are_those_that_were_read(
    deployments: dict[str, Deployment], check_golden: Callable[[str, dict[str, dict[str, str]]], None]
) -> None:
    rendered = {name: Kubernetes().render(deployment) for name, deployment in deployments.items()}
    check_golden("kubernetes", rendered | {name: made.render(of) for name, (made, of) in OTHERS.items()})


@pytest.mark.parametrize("version", VERSIONS)
def test_a_cluster_takes_every_object_to_the_last_field(
    rendered: tuple[Deployment, list[Object]], version: str
) -> None:
    for item in rendered[1]:
        if item["kind"] != "ScaledObject":
            assert kubernetes_validate.validate(item, version, strict=True) == version


@pytest.fixture(scope="module")
def scaled_object() -> type[BaseModel]:
    """Return KEDA's schema. Its module takes seconds to import, in each worker that collects the tests."""
    from cloudcoil.models.keda.v1alpha1 import ScaledObject

    return ScaledObject


def test_a_wrong_field_would_be_seen(scaled_object: type[BaseModel]) -> None:
    """The tests above and below are worthless if the validators accept everything."""
    found = objects(*OTHERS["storage"])
    service = one(found, "Service", "smollm2")
    service["spec"]["ports"][0]["appProtokol"] = "http"
    with pytest.raises(kubernetes_validate.ValidationError, match="appProtokol"):
        kubernetes_validate.validate(service, "1.33", strict=True)
    scaled = one(found, "ScaledObject")
    scaled["spec"]["triggers"][0]["metadatum"] = {}
    assert unknown_fields(scaled_object.model_validate(scaled), scaled) == ["spec.triggers.metadatum"]
    scaled["spec"]["minReplicaCount"] = "many"
    with pytest.raises(ValidationError, match="minReplicaCount"):
        scaled_object.model_validate(scaled)


def test_keda_takes_the_scaled_object(
    rendered: tuple[Deployment, list[Object]], scaled_object: type[BaseModel]
) -> None:
    deployment, found = rendered
    scaled = [item for item in found if item["kind"] == "ScaledObject"]
    assert bool(scaled) == (deployment.autoscale is not None)
    for item in scaled:
        assert unknown_fields(scaled_object.model_validate(item), item) == []
        target = item["spec"]["scaleTargetRef"]
        assert one(found, target["kind"], target["name"])["apiVersion"] == target["apiVersion"]
        (trigger,) = item["spec"]["triggers"]
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        asked = re.fullmatch(r"http://([a-z0-9-]+)\.([a-z0-9-]+)\.svc:(\d+)/ready", trigger["metadata"]["url"])
        assert asked is not None
        service = one(found, "Service", asked[1])
        assert service["metadata"]["namespace"] == asked[2]
        assert int(asked[3]) in [port["port"] for port in service["spec"]["ports"]]
        assert ("aggregationType" in trigger["metadata"]) == (deployment.gateways > 1)


def test_every_selector_finds_the_pods_that_it_is_for(rendered: tuple[Deployment, list[Object]]) -> None:
    _, found = rendered
    executors, gateways = ({**item["spec"]["template"]["metadata"]["labels"]} for item in workloads(found))
    for item in found:
        spec = item["spec"]
        selectors = [spec.get("selector"), spec.get("podSelector")]
        for labels in [s.get("matchLabels", s) for s in selectors if s]:
            own = executors if item["metadata"]["labels"]["app.kubernetes.io/component"] == "executor" else gateways
            other = gateways if own is executors else executors
            assert labels.items() <= own.items()
            assert not labels.items() <= other.items()
        if item["kind"] == "NetworkPolicy":
            peers = [peer for rule in spec["ingress"] for peer in rule.get("from", [])]
            peers += [peer for rule in spec["egress"] for peer in rule.get("to", [])]
            for peer in peers:
                assert (
                    peer["podSelector"]["matchLabels"].items()
                    <= (gateways if item["metadata"]["name"].endswith("executors") else executors).items()
                )


def test_every_port_and_volume_that_is_named_is_there(rendered: tuple[Deployment, list[Object]]) -> None:
    _, found = rendered
    executors, gateways = workloads(found)
    for item in (executors, gateways):
        ports = {port["name"]: port["containerPort"] for port in container(item)["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            how = container(item)[probe]
            if numbered := how.get("grpc") or how.get("tcpSocket"):
                assert numbered["port"] in ports.values()
            else:
                assert how["httpGet"]["port"] in ports
        volumes = {volume["name"] for volume in pod(item)["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])}
        for each in (*pod(item)["containers"], *pod(item).get("initContainers", [])):
            assert {mount["name"] for mount in each["volumeMounts"]} <= volumes
        assert "/tmp" in [mount["mountPath"] for mount in container(item)["volumeMounts"]]
    for service in (item for item in found if item["kind"] == "Service"):
        own = executors if service["spec"].get("clusterIP") == "None" else gateways
        ports = {port["name"]: port["containerPort"] for port in container(own)["ports"]}
        assert all(ports[port["targetPort"]] == port["port"] for port in service["spec"]["ports"])
    for ingress in (item for item in found if item["kind"] == "Ingress"):
        backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
        names = [port["name"] for port in one(found, "Service", backend["name"])["spec"]["ports"]]
        assert backend["port"]["name"] in names


def test_the_gateways_find_the_pods_by_the_headless_service(rendered: tuple[Deployment, list[Object]]) -> None:
    """Pods that are not ready are included: the pool checks each itself, and a draining one finishes its requests."""
    deployment, found = rendered
    executors, gateways = workloads(found)
    headless = one(found, "Service", "-executors")["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["publishNotReadyAddresses"] is True
    for item in (executors, gateways):
        variables = {env["name"]: env.get("value", "") for env in container(item)["env"]}
        flow = expanded(variables["RUNGPT_FLOW"], variables | {"odd": "lost"})
        assert flow == deployment.flow(f"{deployment.name}-executors")
        assert f"grpc://{deployment.name}-executors:51001" in " ".join(gateway_arguments(yaml.safe_load(flow)))
    assert executors["spec"].get("serviceName", f"{deployment.name}-executors") == f"{deployment.name}-executors"


def test_running_requests_finish_before_a_container_is_killed(rendered: tuple[Deployment, list[Object]]) -> None:
    deployment, found = rendered
    executors, gateways = workloads(found)
    command = container(gateways)["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    assert pod(gateways)["terminationGracePeriodSeconds"] >= deployment.drain_seconds + int(command[1]) + 10
    assert pod(executors)["terminationGracePeriodSeconds"] >= deployment.drain_seconds + 10
    assert gateways["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_a_large_model_has_the_time_that_it_was_given() -> None:
    for minutes in (10, 60, 600):
        target, deployment = Kubernetes(start_minutes=minutes), OTHERS["shared"][1]
        executors, gateways = workloads(objects(target, deployment))
        probe = container(executors)["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] == minutes * 60
        assert all(item["spec"]["progressDeadlineSeconds"] > minutes * 60 for item in (executors, gateways))


def test_the_pods_pass_the_strictest_of_kubernetes_pod_security_standards(
    rendered: tuple[Deployment, list[Object]],
) -> None:
    for item in workloads(rendered[1]):
        assert pod(item)["securityContext"]["runAsNonRoot"] is True
        assert pod(item)["securityContext"]["runAsUser"] > 0
        assert pod(item)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod(item)["automountServiceAccountToken"] is False
        assert all(volume.keys() & {"emptyDir", "secret", "persistentVolumeClaim"} for volume in pod(item)["volumes"])
        for each in (*pod(item)["containers"], *pod(item).get("initContainers", [])):
            assert each["securityContext"]["allowPrivilegeEscalation"] is False
            assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert each["securityContext"]["readOnlyRootFilesystem"] is True
            assert each["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert "memory" in each["resources"]["limits"]


def test_gateways_and_executors_have_the_certificate_between_them() -> None:
    cloud, deployment = OTHERS["shared"]
    found = [one for text in cloud.render(deployment).values() for one in yaml.safe_load_all(text)]
    for item in workloads(found):
        (volume,) = [one for one in pod(item)["volumes"] if one["name"] == "executor-tls"]
        assert volume["secret"] == {"secretName": "inner-tls", "optional": False, "defaultMode": 0o440}
        (mount,) = [one for one in container(item)["volumeMounts"] if one["name"] == "executor-tls"]
        env = {one["name"]: one.get("value") for one in container(item)["env"]}
        assert env["RUNGPT_EXECUTOR_TLS"] == mount["mountPath"]
        assert mount["readOnly"]


def test_only_gateways_have_keys_and_only_from_a_secret(rendered: tuple[Deployment, list[Object]]) -> None:
    deployment, found = rendered
    executors, gateways = workloads(found)
    assert not [one for one in pod(executors)["volumes"] if "secret" in one and one["name"] != "executor-tls"]
    of_executors, of_gateways = (
        {env["name"]: env["valueFrom"]["secretKeyRef"] for env in container(item)["env"] if "valueFrom" in env}
        for item in (executors, gateways)
    )
    token = {"name": f"{deployment.name}-token", "key": "token", "optional": False}
    assert of_executors == {"RUNGPT_EXECUTOR_TOKEN": token}
    assert of_gateways.pop("RUNGPT_EXECUTOR_TOKEN") == token
    assert bool(of_gateways) == (deployment.server.api_key is not None)
    assert all(source["optional"] is False for source in of_gateways.values())
    mounts = [mount for mount in container(gateways)["volumeMounts"] if mount["name"] == "keys"]
    assert bool(mounts) == (deployment.server.api_key_file is not None)
    for mount in mounts:  # with subPath the mount would never follow a change of the Secret
        assert mount == {"name": "keys", "mountPath": "/etc/rungpt/keys", "readOnly": True}


def test_the_file_says_how_its_secrets_are_made(keys_file: Path) -> None:
    server = ServeConfig(api_key=KEY, api_key_file=keys_file)
    (text,) = Kubernetes().render(Deployment(server=server, name="chat", memory_gib=2)).values()
    assert 'printf %s "$RUNGPT_API_KEY" | kubectl --namespace default create secret generic chat-key' in text
    assert "kubectl --namespace default create secret generic chat-keys --from-file=keys=FILE" in text
    assert "| kubectl --namespace default create secret generic chat-token --from-file=token=/dev/stdin" in text
    assert KEY not in text


def test_gpus_need_none_to_spare_and_their_nodes_may_be_marked() -> None:
    target, deployment = OTHERS["ingress"]
    executors, _ = workloads(objects(target, deployment))
    assert container(executors)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert executors["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": "25%"}
    assert pod(executors)["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod(executors)["nodeSelector"] == {"nvidia.com/gpu.product": "L4"}
    assert pod(executors)["imagePullSecrets"] == [{"name": "pull"}]


@pytest.mark.parametrize(("replicas", "written"), [(1, None), (3, 3)])
def test_who_applies_the_file_again_does_not_undo_what_the_load_asked_for(replicas: int, written: int | None) -> None:
    deployment = Deployment(
        server=ServeConfig(replicas=replicas), memory_gib=3, open=True, autoscale=Autoscale(least=1, most=5)
    )
    executors, _ = workloads(objects(Kubernetes(), deployment))
    assert executors["spec"].get("replicas") == written


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"namespace": "a/b"}, "--namespace a/b"),
        ({"tls_secret": "x"}, "--tls-secret is for an Ingress: give --ingress-host"),
        ({"ingress_class": "x"}, "--ingress-class is for an Ingress"),
        ({"storage_class": "x"}, "give --cache-gib"),
        ({"cache_gib": 3, "cache_claim": "x"}, "give one of the two"),
        ({"cache_gib": -1}, "--cache-gib must be at least 0"),
        ({"start_minutes": 0}, "--start-minutes at least 1"),
        ({"node_selector": "gpu"}, "write KEY=VALUE"),
        ({"service_type": "NodePort"}, "ClusterIP or LoadBalancer"),
    ],
)
def test_options_that_do_not_go_together_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SetupError, match=says):
        Kubernetes(**settings)


@pytest.mark.parametrize(
    ("target", "who"),
    [
        (Kubernetes(service_type="LoadBalancer"), "anyone who reaches the load balancer"),
        (Kubernetes(ingress_host="chat.example.com"), "anyone who reaches chat.example.com"),
    ],
)
def test_without_a_key_it_is_not_opened_to_the_world(target: Kubernetes, who: str) -> None:
    with pytest.raises(SetupError, match=f"{who} could use this model"):
        target.render(Deployment(server=ServeConfig(), memory_gib=2))


def test_without_a_key_every_pod_of_the_cluster_can_use_it_and_it_says_so() -> None:
    plain = Deployment(server=ServeConfig(), memory_gib=2)
    warning = "# Warning: it requires no key: every pod of the cluster can use it"
    assert warning in Kubernetes().render(plain)["kubernetes.yaml"]
    for closed in (replace(plain, open=True), replace(plain, server=ServeConfig(api_key="a-key-of-a-test"))):
        assert "Warning" not in Kubernetes().render(closed)["kubernetes.yaml"]


def test_the_policies_let_spans_out_to_the_collector() -> None:
    """Without the rule the spans would be dropped, and only the sender's log would show it."""
    server = ServeConfig(trace_endpoint="otel.observability:4317")
    deployment = Deployment(server=server, image="example/rungpt:1", memory_gib=3, open=True)
    open_ports = [
        [rule["ports"][0]["port"] for rule in policy["spec"]["egress"] if "to" not in rule]
        for policy in policies(deployment, Kubernetes())
    ]
    assert open_ports == [[53, 4317], [53, 443, 4317]]
