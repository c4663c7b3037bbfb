"""Owns the joined output of a deployment's pods."""

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

from run_gpt.deploy.kubernetes.cluster import Cluster
from run_gpt.deploy.kubernetes.options import Object, selector
from run_gpt.errors import SetupError

LOOK_SECONDS = 2.0
"""Seconds between two polls for new pods."""

Run = tuple[str, int]
"""Name of a pod and the number of restarts of its container; each such pair has one output stream."""


def read(cluster: Cluster, name: str, lines: int) -> Iterator[str]:
    """Yield the last lines of each pod in turn, prefixed with the pod's name. Raises SetupError if there is no pod."""
    for pod in _pods(cluster, name):
        about = pod["metadata"]["name"]
        try:
            yield from (f"{about} {line}" for line in cluster.log(about, lines=lines, follow=False))
        except SetupError as error:  # a pod that has not started has no output; the others have
            yield f"{about} has no output: {error.message}"


def follow(cluster: Cluster, name: str, lines: int) -> Iterator[str]:
    """Yield the last lines of each pod and new lines as they come, also from new pods, until no pod is left."""
    came: queue.Queue[str] = queue.Queue()
    readers: dict[Run, threading.Thread] = {}
    pods, looked = _pods(cluster, name), time.monotonic()
    while pods or not came.empty() or any(reader.is_alive() for reader in readers.values()):
        for run in map(_run, pods):
            if run is not None and run not in readers:
                readers[run] = threading.Thread(target=_copy, args=(cluster, run[0], lines, came), daemon=True)
                readers[run].start()
        with suppress(queue.Empty):
            yield came.get(timeout=LOOK_SECONDS / 4)
        if time.monotonic() - looked >= LOOK_SECONDS:
            pods, looked = cluster.find("Pod", selector(name)), time.monotonic()


def _copy(cluster: Cluster, pod: str, lines: int, came: "queue.Queue[str]") -> None:
    try:
        for line in cluster.log(pod, lines=lines, follow=True):
            came.put(f"{pod} {line}")
    except SetupError as error:
        came.put(f"{pod} {error.message}")


def _pods(cluster: Cluster, name: str) -> list[Object]:
    pods = cluster.find("Pod", selector(name))
    if not pods:
        raise SetupError(f"there are no pods of {name} in the namespace {cluster.namespace} of {cluster.host}")
    return pods


def _run(pod: Object) -> Run | None:
    """Return the pod's name and restarts; None if it has not started, since its output cannot be read yet."""
    containers = pod.get("status", {}).get("containerStatuses", [])
    restarts = sum(one.get("restartCount", 0) for one in containers)
    begun = containers and all("waiting" not in one.get("state", {}) for one in containers)
    return (pod["metadata"]["name"], restarts) if begun or restarts else None
