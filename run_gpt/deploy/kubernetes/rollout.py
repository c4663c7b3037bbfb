"""Owns the rollout of a deployment on its cluster: its ready pods, the troubles of the others, and the wait for all."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from run_gpt.deploy.kubernetes.cluster import Cluster, Unreachable
from run_gpt.deploy.kubernetes.options import Object, selector
from run_gpt.deploy.target import Report
from run_gpt.errors import SetupError

STAMP = "rungpt/template"
"""Annotation that distinguishes the pods of a changed template from earlier ones."""
POLL_SECONDS = 2.0
UNSCHEDULED_SECONDS = 300
"""Seconds that a cluster may take to find a node, which its autoscaler may have to start first."""

_HOPELESS = {
    *("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
    *("CreateContainerConfigError", "CreateContainerError", "RunContainerError"),
}
"""Reasons for a waiting container that do not end by themselves."""
_FAILURES = 30
"""Number of successive polls that the cluster may leave unanswered."""


@dataclass(frozen=True)
class Trouble:
    """Reason why a pod does not serve; `hopeless` when waiting does not help."""

    text: str
    hopeless: bool


@dataclass(frozen=True)
class Part:
    """State of the gateways or of the executors."""

    ready: int
    wanted: int
    done: bool
    """True when all pods are of the last change, and ready."""
    troubles: tuple[Trouble, ...]


@dataclass(frozen=True)
class State:
    """Present state of a deployment."""

    executors: Part
    gateways: Part

    @property
    def done(self) -> bool:
        return self.executors.done and self.gateways.done

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        return (*self.executors.troubles, *self.gateways.troubles)

    def __str__(self) -> str:
        parts = (("replicas", self.executors), ("gateways", self.gateways))
        return ", ".join(f"{part.ready} of {part.wanted} {what}" for what, part in parts) + " ready"


def workload(cluster: Cluster, name: str, component: str) -> Object:
    """Return the object that keeps the `gateway` or `executor` pods running. Raises SetupError if there is none."""
    for kind in ("Deployment", "StatefulSet"):
        for found in cluster.find(kind, selector(name, component)):
            if "deletionTimestamp" not in found["metadata"]:
                return found
    raise SetupError(f"there is no deployment {name} in the namespace {cluster.namespace} of {cluster.host}")


def current_state(cluster: Cluster, name: str) -> State:
    """Return the state of its rollout. Raises SetupError if there is no such deployment."""
    keepers = [workload(cluster, name, component) for component in ("executor", "gateway")]
    pods = cluster.find("Pod", selector(name))
    return State(*(_part(keeper, pods) for keeper in keepers))


def wait(cluster: Cluster, name: str, minutes: int, report: Report) -> None:
    """Return when all pods have the last change and are ready. Raises SetupError when that cannot happen."""
    deadline = time.monotonic() + minutes * 60
    said: list[str] = []
    troubled_since: float | None = None
    while True:
        state = _state_with_retries(cluster, name)
        lines = [str(state), *dict.fromkeys(trouble.text for trouble in state.troubles)]
        for line in lines:
            if line not in said:
                report(line)
        said = lines
        if state.done:
            return
        now = time.monotonic()
        troubled_since = (troubled_since or now) if state.troubles else None
        hopeless = [trouble.text for trouble in state.troubles if trouble.hopeless]
        if hopeless or now > deadline or (troubled_since and now - troubled_since > UNSCHEDULED_SECONDS):
            why = (hopeless or lines[1:] or [f"{lines[0]} after {minutes} minutes"])[0]
            raise SetupError(f"{name} does not serve: {why}; `rungpt deploy logs {name}` shows more")
        time.sleep(POLL_SECONDS)


def _state_with_retries(cluster: Cluster, name: str) -> State:
    """Return the state; retry while the cluster is unreachable, as some are for a moment during a rollout."""
    for _ in range(_FAILURES):
        try:
            return current_state(cluster, name)
        except Unreachable:
            time.sleep(POLL_SECONDS)
    return current_state(cluster, name)


def _part(keeper: Object, pods: list[Object]) -> Part:
    wanted = keeper["spec"].get("replicas", 1)
    status = keeper.get("status", {})
    mine = [
        pod for pod in pods if keeper["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    ]
    living = [pod for pod in mine if "deletionTimestamp" not in pod["metadata"]]
    newest = [pod for pod in living if _stamp(pod) == _stamp(keeper["spec"]["template"])]
    seen = status.get("observedGeneration", 0) >= keeper["metadata"].get("generation", 0)
    changed = status.get("updatedReplicas", 0) >= wanted >= status.get("replicas", 0)
    ready = sum(map(_is_ready, living))
    troubles = [*_refused(status), *(trouble for pod in newest if not _is_ready(pod) for trouble in _troubles(pod))]
    done = seen and changed and status.get("readyReplicas", 0) >= wanted
    return Part(min(ready, wanted), wanted, done, tuple(troubles))


def _stamp(template: Object) -> Any:
    return template["metadata"].get("annotations", {}).get(STAMP)


def _conditions(status: Object) -> dict[str, Object]:
    return {condition["type"]: condition for condition in status.get("conditions", [])}


def _is_ready(pod: Object) -> bool:
    return bool(_conditions(pod.get("status", {})).get("Ready", {}).get("status") == "True")


def _refused(status: Object) -> Iterator[Trouble]:
    """Yield the trouble of pods that were not even created, because of a quota or a policy."""
    failure = _conditions(status).get("ReplicaFailure", {})
    if failure.get("status") == "True":
        yield Trouble(f"pods are refused: {_line(failure.get('message', ''))}", hopeless=False)


def _troubles(pod: Object) -> Iterator[Trouble]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    scheduled = _conditions(status).get("PodScheduled", {})
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        yield Trouble(f"{name} has no node: {_line(scheduled.get('message', ''))}", hopeless=False)
    for container in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        waiting = container.get("state", {}).get("waiting", {})
        reason = waiting.get("reason", "")
        if reason == "CrashLoopBackOff":
            again = container.get("restartCount", 0) >= 2
            yield Trouble(
                f"{name} ended{' again and again' if again else ''}: {_last_words(container)}", hopeless=again
            )
        elif reason in _HOPELESS:
            yield Trouble(f"{name}: {reason}: {_line(waiting.get('message', ''))}", hopeless=True)


def _last_words(container: Object) -> str:
    ended = container.get("lastState", {}).get("terminated", {})
    if ended.get("reason") == "OOMKilled":
        return "it was killed for its memory; give more by --memory"
    return _line(ended.get("message", "")) or f"exit code {ended.get('exitCode', '?')}"


def _line(text: str) -> str:
    """Return the last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
