"""Without these tests, a deployment could stop halfway, wait for ever, or end in a traceback. The real client runs
against a scripted API server."""

import base64
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted_cluster import ScriptedCluster

from run_gpt.config import ServeConfig
from run_gpt.deploy import Autoscale, Deployment, Endpoints
from run_gpt.deploy.kubernetes import Kubernetes, logs, rollout, target
from run_gpt.errors import SetupError

KEY = "secret-key-of-the-test"
PLAIN = Deployment(server=ServeConfig(api_key=KEY, replicas=2), name="chat", memory_gib=2)
SCALED = replace(PLAIN, server=ServeConfig(api_key=KEY), autoscale=Autoscale(least=1, most=8))
FORWARD = "from outside the cluster: kubectl --namespace default port-forward service/chat 52000 51000"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(logs, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(target, "ADDRESS_SECONDS", 0.1)


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    return tmp_path / "kubeconfig"


@pytest.fixture
def cluster(kubeconfig: Path) -> Iterator[ScriptedCluster]:
    """Yield a cluster on which all pods serve at the first poll, unless the test changes it."""
    with ScriptedCluster() as cluster:
        cluster.write_kubeconfig(kubeconfig)
        cluster.polls = [serving]
        yield cluster


def serving(cluster: ScriptedCluster) -> None:
    for component in ("executor", "gateway"):
        cluster.run(component, cluster.workload(component)["spec"].get("replicas", 1))


def waiting(reason: str, message: str, **more: Any) -> dict[str, Any]:
    """Return the status of a pod whose container does not start."""
    return {"containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}, **more}]}


def failing(status: dict[str, Any]) -> Callable[[ScriptedCluster], None]:
    def happens(cluster: ScriptedCluster) -> None:
        cluster.run("executor", 0, status=status)
        cluster.run("gateway", 0)

    return happens


def deploy(deployment: Deployment = PLAIN, **options: Any) -> tuple[Endpoints, list[str]]:
    said: list[str] = []
    return Kubernetes(**options).deploy(deployment, said.append), said


def stamp(cluster: ScriptedCluster, component: str) -> str:
    return str(cluster.workload(component)["spec"]["template"]["metadata"]["annotations"]["rungpt/template"])


def test_it_applies_all_and_waits_until_all_serves(cluster: ScriptedCluster) -> None:
    def first(cluster: ScriptedCluster) -> None:
        cluster.run("executor", 1)
        cluster.run("gateway", 0)

    cluster.polls = [first, serving]
    endpoints, said = deploy()
    assert endpoints == Endpoints(http="http://chat.default.svc:52000", grpc="grpc://chat.default.svc:51000")
    assert said == [
        f"applied 10 objects in the namespace default of {cluster.url}",
        "1 of 2 replicas, 0 of 1 gateways ready",
        "2 of 2 replicas, 1 of 1 gateways ready",
        FORWARD,
    ]
    applied = [call for call in cluster.calls if call[0] == "PATCH"]
    assert applied[0][1].endswith("/secrets/chat-key"), "a gateway that starts before its key fails"
    for _, _, query, content_type in applied:
        assert content_type == "application/apply-patch+yaml"
        assert query == {"fieldManager": "rungpt", "force": "true", "fieldValidation": "Strict"}
    secret = cluster.objects["Secret", "chat-key"]["data"]
    assert {name: base64.b64decode(value).decode() for name, value in secret.items()} == {"key": KEY}
    assert not [item for key, item in cluster.objects.items() if key[0] != "Secret" and KEY in str(item)]


def test_what_a_changed_deployment_no_longer_has_is_deleted(cluster: ScriptedCluster) -> None:
    deploy(ingress_host="chat.example.com", cache_gib=3)
    other = {"metadata": {"name": "other", "labels": {"app.kubernetes.io/instance": "other"}}}
    cluster.objects["Secret", "other"] = other
    _, said = deploy(replace(PLAIN, server=ServeConfig(replicas=2)))
    assert [line for line in said if line.startswith("Warning: it requires no key")]
    assert {line for line in said if line.startswith("deleted")} == {
        "deleted Ingress chat, which it no longer has",
        "deleted StatefulSet chat-executors, which it no longer has",
        "deleted Secret chat-key, which it no longer has",
    }
    assert cluster.names("Secret") == ["chat-token", "other"]
    assert cluster.names("Deployment") == ["chat-executors", "chat-gateway"]


def test_the_executors_token_is_made_once(cluster: ScriptedCluster) -> None:
    """Another one would cut gateways that run off from executors that start."""

    def token() -> str:
        deploy()
        return base64.b64decode(cluster.objects["Secret", "chat-token"]["data"]["token"]).decode()

    first = token()
    assert len(first) >= 40
    assert token() == first


def test_new_keys_reach_the_gateways(cluster: ScriptedCluster, tmp_path: Path) -> None:
    """A changed key file needs no new gateways; a changed key in the environment does. Executors stay."""
    file = tmp_path / "keys"

    def stamps(key: str, keys: str) -> tuple[str, str]:
        file.write_text(keys)
        deploy(replace(PLAIN, server=ServeConfig(api_key=key, api_key_file=file)))
        assert base64.b64decode(cluster.objects["Secret", "chat-keys"]["data"]["keys"]).decode() == keys
        return stamp(cluster, "gateway"), stamp(cluster, "executor")

    first = stamps(KEY, "alice: 12345678")
    assert stamps(KEY, "alice: 12345678") == first
    assert stamps(KEY, "alice: 87654321") == first
    changed = stamps(KEY + "2", "alice: 87654321")
    assert changed[0] != first[0]
    assert changed[1] == first[1]


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (
            waiting("ImagePullBackOff", 'Back-off pulling image "rungpt:0"'),
            'chat-executors-0: ImagePullBackOff: Back-off pulling image "rungpt:0"',
        ),
        (
            waiting(
                "CrashLoopBackOff",
                "back-off 20s",
                restartCount=2,
                lastState={"terminated": {"exitCode": 3, "message": "loading\nrungpt: there is no model x\n\n"}},
            ),
            "chat-executors-0 ended again and again: rungpt: there is no model x",
        ),
        (
            waiting(
                "CrashLoopBackOff", "", restartCount=5, lastState={"terminated": {"exitCode": 1, "reason": "OOMKilled"}}
            ),
            "it was killed for its memory; give more by --memory",
        ),
        (
            waiting("CreateContainerConfigError", 'secret "chat-key" not found'),
            'CreateContainerConfigError: secret "chat-key" not found',
        ),
    ],
)
def test_what_cannot_come_ends_the_wait_with_its_reason(
    cluster: ScriptedCluster, status: dict[str, Any], says: str
) -> None:
    cluster.polls = [failing(status)]
    with pytest.raises(SetupError) as caught:
        deploy()
    assert caught.value.message.startswith("chat does not serve: ")
    assert says in caught.value.message
    assert caught.value.message.endswith("; `rungpt deploy logs chat` shows more")
    assert "\n" not in caught.value.message
    found = Kubernetes().status("chat")
    assert (found.phase, found.ready, found.wanted) == ("failed", 0, 2)
    assert any(says in note for note in found.notes)


def test_a_pod_without_a_node_is_reported_and_waited_for_some_time(
    cluster: ScriptedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster may be starting a node for the pod."""
    nowhere = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": nowhere}
    cluster.polls = [failing({"conditions": [condition]})] * 3 + [serving]
    _, said = deploy()
    assert said.count(f"chat-executors-0 has no node: {nowhere}") == 1
    cluster.objects.clear()
    cluster.polls = [failing({"conditions": [condition]})]
    monkeypatch.setattr(rollout, "UNSCHEDULED_SECONDS", 0.05)
    with pytest.raises(SetupError, match="chat does not serve: chat-executors-0 has no node: 0/3 nodes"):
        deploy()


def test_pods_that_a_quota_forbids_are_reported(cluster: ScriptedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(cluster: ScriptedCluster) -> None:
        failing({})(cluster)
        condition = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: cpu"}
        cluster.workload("executor")["status"]["conditions"] = [condition]

    cluster.polls = [forbidden]
    monkeypatch.setattr(rollout, "UNSCHEDULED_SECONDS", 0.05)
    with pytest.raises(SetupError, match="pods are refused: exceeded quota: cpu"):
        deploy()


def test_pods_of_the_last_try_do_not_fail_this_one(cluster: ScriptedCluster) -> None:
    """The broken pods still exist when a user repairs a broken deployment."""

    def old_ones(cluster: ScriptedCluster) -> None:
        status = waiting("CrashLoopBackOff", "", restartCount=9)
        cluster.run("executor", 0, status=status, stamp="of-the-last-try")
        cluster.run("gateway", 0)

    cluster.polls = [old_ones, old_ones, serving]
    endpoints, _ = deploy()
    assert endpoints.http is not None


def test_a_cluster_that_stops_answering_for_a_moment_does_not_end_the_wait(cluster: ScriptedCluster) -> None:
    cluster.refusals = [("GET", "/pods", 503, "etcd leader changed"), ("GET", "/pods", 429, "too many requests")]
    deploy()
    assert cluster.refusals == []


def test_pods_that_never_get_ready_end_the_wait(cluster: ScriptedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.polls = [failing({"containerStatuses": [{"state": {"running": {}}}]})]
    monkeypatch.setattr(rollout.time, "monotonic", iter(range(0, 10**6, 30)).__next__)
    with pytest.raises(SetupError, match="0 of 2 replicas, 0 of 1 gateways ready after 2 minutes"):
        deploy(start_minutes=2)


def test_the_address_of_a_load_balancer(cluster: ScriptedCluster) -> None:
    _, said = deploy(service_type="LoadBalancer")
    assert said[-1].startswith("the load balancer has no address yet")
    assert Kubernetes().status("chat").endpoints == Endpoints()
    for point, host in (
        ({"ip": "10.1.2.3"}, "10.1.2.3"),
        ({"hostname": "a.b"}, "a.b"),
        ({"ip": "fd00::1"}, "[fd00::1]"),
    ):
        cluster.objects["Service", "chat"]["status"] = {"loadBalancer": {"ingress": [point]}}
        assert deploy(service_type="LoadBalancer")[0] == Endpoints(
            http=f"http://{host}:52000", grpc=f"grpc://{host}:51000"
        )


def test_the_host_of_an_ingress(cluster: ScriptedCluster) -> None:
    endpoints, _ = deploy(ingress_host="chat.example.com")
    assert endpoints.http == "http://chat.example.com"
    endpoints, _ = deploy(ingress_host="chat.example.com", tls_secret="tls")
    assert endpoints == Endpoints(http="https://chat.example.com", grpc="grpc://chat.default.svc:51000")


def test_status(cluster: ScriptedCluster) -> None:
    deploy()
    found = Kubernetes().status("chat")
    assert (found.phase, found.ready, found.wanted, found.notes) == ("serving", 2, 2, (FORWARD,))
    cluster.polls = [failing({})]
    assert Kubernetes().status("chat").phase == "starting"
    cluster.polls = [serving]
    Kubernetes().scale("chat", 0, lambda line: None)
    assert Kubernetes().status("chat").phase == "stopped"


def test_scale(cluster: ScriptedCluster) -> None:
    deploy()
    said: list[str] = []
    Kubernetes().scale("chat", 5, said.append)
    assert said == ["chat goes from 2 replicas to 5"]
    assert cluster.workload("executor")["spec"]["replicas"] == 5


def test_load_decides_the_number_of_replicas_with_autoscaling(cluster: ScriptedCluster) -> None:
    deploy(SCALED)
    assert cluster.names("ScaledObject") == ["chat-executors"]
    cluster.workload("executor")["spec"]["replicas"] = 6  # the load has asked for it
    with pytest.raises(SetupError, match="chat scales by load: deploy it with another --autoscale"):
        Kubernetes().scale("chat", 2, lambda line: None)
    deploy(SCALED)
    assert cluster.workload("executor")["spec"]["replicas"] == 6
    _, said = deploy()
    assert "deleted ScaledObject chat-executors, which it no longer has" in said
    assert cluster.workload("executor")["spec"]["replicas"] == 2


def test_without_keda_nothing_is_applied(cluster: ScriptedCluster) -> None:
    cluster.groups.clear()
    with pytest.raises(SetupError, match="has no KEDA, which --autoscale needs: install it from"):
        deploy(SCALED)
    assert cluster.objects == {}
    deploy()


def test_remove_leaves_nothing_of_it_and_all_of_the_others(cluster: ScriptedCluster) -> None:
    deploy(replace(PLAIN, name="other"))
    others = {key for key in cluster.objects if key[0] != "Pod"}
    cluster.polls = [lambda cluster: None]
    cluster.objects.update({key: item for key, item in cluster.objects.items() if key[0] == "Pod"})
    labels = {"app.kubernetes.io/name": "rungpt", "app.kubernetes.io/managed-by": "rungpt"}
    volume = {"metadata": {"name": "cache-chat-0", "labels": labels | {"app.kubernetes.io/instance": "chat"}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "wait", lambda *_: None)
        deploy(cache_gib=3)
    cluster.objects["PersistentVolumeClaim", "cache-chat-0"] = volume
    said: list[str] = []
    Kubernetes().remove("chat", said.append)
    assert {key for key in cluster.objects if key[0] != "Pod"} == others
    assert "deleted PersistentVolumeClaim cache-chat-0" in said
    assert "deleted Secret chat-key" in said
    with pytest.raises(SetupError, match="there is no deployment chat in the namespace default"):
        Kubernetes().remove("chat", said.append)


def test_logs_of_all_pods(cluster: ScriptedCluster) -> None:
    deploy()
    cluster.logs = {"chat-executors-0": ["loading", "ready ü"], "chat-gateway-0": ["listening"]}
    lines = list(Kubernetes().logs("chat", follow=False, lines=7))
    assert lines == [
        "chat-executors-0 loading",
        "chat-executors-0 ready ü",
        f"chat-executors-1 has no output: the cluster at {cluster.url} refuses this: container is waiting to start: "
        "ContainerCreating",
        "chat-gateway-0 listening",
    ]
    assert {call[2]["tailLines"] for call in cluster.calls if call[1].endswith("/log")} == {"7"}


def test_logs_are_followed_to_pods_that_come_later(cluster: ScriptedCluster) -> None:
    deploy()
    streams: dict[str, queue.Queue[str]] = {f"chat-{name}": queue.Queue() for name in ("executors-0", "executors-1")}
    cluster.logs = {name: iter(stream.get, "") for name, stream in streams.items()}
    cluster.logs["chat-gateway-0"] = []
    cluster.workload("executor")["spec"]["replicas"] = 1
    lines = Kubernetes().logs("chat", follow=True, lines=7)
    streams["chat-executors-0"].put("first")
    assert next(lines) == "chat-executors-0 first"
    streams["chat-executors-1"].put("second")
    cluster.workload("executor")["spec"]["replicas"] = 2
    assert next(lines) == "chat-executors-1 second"
    streams["chat-executors-0"].put("third")
    assert next(lines) == "chat-executors-0 third"

    def gone(cluster: ScriptedCluster) -> None:
        for key in [key for key in cluster.objects if key[0] == "Pod"]:
            del cluster.objects[key]

    cluster.polls = [gone]
    for stream in streams.values():
        stream.put("")
    assert list(lines) == []


@pytest.mark.parametrize("name", ["nobody", "a,b", "../secrets"])
def test_what_is_not_there_is_one_line(cluster: ScriptedCluster, name: str) -> None:
    cluster.polls = []
    says = "there (is no deployment|are no pods of) nobody" if name == "nobody" else "NAME .*: up to 63 of a-z 0-9"
    kubernetes = Kubernetes()
    calls: tuple[Callable[[], object], ...] = (
        lambda: kubernetes.status(name),
        lambda: list(kubernetes.logs(name, follow=False, lines=1)),
        lambda: list(kubernetes.logs(name, follow=True, lines=1)),
        lambda: kubernetes.scale(name, 1, lambda line: None),
        lambda: kubernetes.remove(name, lambda line: None),
    )
    for call in calls:
        with pytest.raises(SetupError, match=says):
            call()


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        (
            ("PATCH", "/secrets/", 403, "secrets is forbidden: User me"),
            "does not allow this: secrets is forbidden: User",
        ),
        (("PATCH", "/services/", 422, "Service is invalid:\n  spec.x"), "refuses this: Service is invalid: spec.x"),
        (("PATCH", "/deployments/", 422, "spec.selector: field is immutable"), "`rungpt deploy remove` it first"),
        (("PATCH", "/services/", 500, "etcd is gone"), r"fails: etcd is gone \(500\)"),
    ],
)
def test_a_refusal_is_one_line(cluster: ScriptedCluster, refusal: tuple[str, str, int, str], says: str) -> None:
    cluster.refusals = [refusal]
    with pytest.raises(SetupError, match=says) as caught:
        deploy()
    assert "\n" not in caught.value.message
    assert KEY not in caught.value.message


def test_a_missing_namespace_is_one_line(cluster: ScriptedCluster) -> None:
    with pytest.raises(SetupError, match='namespaces "llm" not found: choose another --namespace, or `kubectl create'):
        deploy(namespace="llm")


def test_refused_credentials_are_one_line(cluster: ScriptedCluster, kubeconfig: Path) -> None:
    cluster.write_kubeconfig(kubeconfig, token="wrong")
    with pytest.raises(SetupError, match="refuses these credentials: log in anew, or choose another --context"):
        deploy()


def test_a_context_that_is_not_there_is_one_line(cluster: ScriptedCluster) -> None:
    with pytest.raises(SetupError, match=r"cannot be used: .*Expected object with name other in"):
        deploy(context="other")
    deploy(context="test")


@pytest.mark.parametrize("text", [None, "", "{", "[]", "clusters: 7"])
def test_a_kubeconfig_that_is_none_is_one_line(kubeconfig: Path, text: str | None) -> None:
    if text is not None:
        kubeconfig.write_text(text)
    with pytest.raises(SetupError, match=f"the kubeconfig {kubeconfig} cannot be used: ") as caught:
        deploy()
    assert "\n" not in caught.value.message


def test_a_missing_client_is_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes.client", None)
    with pytest.raises(SetupError, match=r"pip install 'rungpt\[kubernetes\]'"):
        deploy()


def test_an_unreachable_cluster_is_one_line_of_the_command(kubeconfig: Path) -> None:
    with ScriptedCluster() as cluster:
        cluster.write_kubeconfig(kubeconfig)
    done = subprocess.run(
        [sys.executable, "-m", "run_gpt.cli", "deploy", "status", "chat", "--cloud", "kubernetes"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"rungpt: the cluster at {cluster.url} cannot be reached: [Errno 111] Connection refused"
    ]


def test_a_server_that_is_no_cluster_is_one_line(cluster: ScriptedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripted_cluster.json.dumps", lambda value: "<html>")
    with pytest.raises(SetupError, match="is no Kubernetes API"):
        Kubernetes().status("chat")
