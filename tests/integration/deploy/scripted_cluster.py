"""Kubernetes API server that stores applied objects but runs no pods: the test sets their states."""

import json
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

TOKEN = "token-of-the-test"
Object = dict[str, Any]
PLURALS = {
    "deployments": "Deployment",
    "statefulsets": "StatefulSet",
    "services": "Service",
    "secrets": "Secret",
    "networkpolicies": "NetworkPolicy",
    "ingresses": "Ingress",
    "poddisruptionbudgets": "PodDisruptionBudget",
    "persistentvolumeclaims": "PersistentVolumeClaim",
    "scaledobjects": "ScaledObject",
    "pods": "Pod",
}


class ScriptedCluster(ThreadingHTTPServer):
    """Server on a free port of 127.0.0.1; it listens while it is used as a context."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.namespaces = {"default"}
        self.groups = {"keda.sh/v1alpha1"}
        self.objects: dict[tuple[str, str], Object] = {}
        self.calls: list[tuple[str, str, dict[str, str], str]] = []
        """Method, path, query and content type of each request."""
        self.refusals: list[tuple[str, str, int, str]] = []
        """Method, part of the path, status and message of coming refusals; each applies once."""
        self.polls: list[Callable[[ScriptedCluster], None]] = []
        """Functions for the polls of the pods: each poll first calls the next one, and the last one repeats."""
        self.logs: dict[str, Iterable[str]] = {}
        self.lock = threading.RLock()
        self._versions = 0

    def __enter__(self) -> "ScriptedCluster":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def write_kubeconfig(self, file: Path, token: str = TOKEN) -> None:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "here", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "here", "user": "me"}}],
        }
        file.write_text(yaml.safe_dump(config))

    def names(self, kind: str) -> list[str]:
        return sorted(name for what, name in self.objects if what == kind)

    def workload(self, component: str) -> Object:
        (found,) = [
            item
            for (kind, _), item in self.objects.items()
            if kind in ("Deployment", "StatefulSet")
            and item["metadata"]["labels"]["app.kubernetes.io/component"] == component
        ]
        return found

    def run(self, component: str, ready: int, *, status: Object | None = None, stamp: str | None = None) -> None:
        """Act as the component's controller: make its pods, `ready` of them ready, the others with this status."""
        keeper = self.workload(component)
        wanted, template = keeper["spec"].get("replicas", 1), keeper["spec"]["template"]
        annotations = {"rungpt/template": stamp} if stamp else template["metadata"].get("annotations", {})
        for key in [key for key, item in self.objects.items() if key[0] == "Pod" and item["of"] == component]:
            del self.objects[key]
        for index in range(wanted):
            name = f"{keeper['metadata']['name']}-{index}"
            waiting = status or {"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}
            serving = {
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"state": {"running": {}}, "restartCount": 0}],
            }
            self.objects["Pod", name] = {
                "of": component,
                "metadata": {"name": name, "labels": template["metadata"]["labels"], "annotations": annotations},
                "status": serving if index < ready else waiting,
            }
        keeper["status"] = {
            "observedGeneration": keeper["metadata"]["generation"],
            "replicas": wanted,
            "updatedReplicas": 0 if stamp else wanted,
            "readyReplicas": ready,
        }

    def change(self, kind: str, body: Object) -> Object:
        """Apply the object; the parts that the server has added stay."""
        key = kind, body["metadata"]["name"]
        old = self.objects.get(key, {"metadata": {}})
        respecified = old.get("spec") != body.get("spec")
        changed = respecified or old.get("data") != body.get("data")
        self._versions += changed
        about = {
            "generation": old["metadata"].get("generation", 0) + respecified,
            "resourceVersion": str(self._versions) if changed else old["metadata"]["resourceVersion"],
        }
        new = {**body, "metadata": {**body["metadata"], **about}}
        self.objects[key] = new | ({"status": old["status"]} if "status" in old else {})
        return self.objects[key]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece: of several, each would wait for the acknowledgement of the one before
    server: ScriptedCluster

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        with self.server.lock:
            self.server.calls.append((self.command, parts.path, query, self.headers.get("Content-Type", "")))
            refused = self._refusal(parts.path)
            if refused is None and parts.path.endswith("/log"):
                lines = self.server.logs.get(parts.path.split("/")[-2])
            elif refused is None:
                status, value = self._found(parts.path, query, body)
        if refused is not None:
            self._send(refused[0], {"kind": "Status", "message": refused[1]})
        elif parts.path.endswith("/log"):
            self._send_log(lines)
        else:
            self._send(status, value)

    do_GET = do_PATCH = do_DELETE = _answer

    def _refusal(self, path: str) -> tuple[int, str] | None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, "Unauthorized"
        for refusal in self.server.refusals:
            if refusal[0] == self.command and refusal[1] in path:
                self.server.refusals.remove(refusal)
                return refusal[2], refusal[3]
        return None

    def _found(self, path: str, query: dict[str, str], body: Object) -> tuple[int, Object]:
        cluster = self.server
        before, _, after = path.partition("/namespaces/")
        group = before.removeprefix("/apis/").removeprefix("/api/")
        if group.startswith("keda.sh") and group not in cluster.groups:
            return 404, {"message": "the server could not find the requested resource"}
        if not after:
            return 200, {"kind": "APIResourceList"}
        namespace, plural, *rest = after.split("/")
        kind = PLURALS[plural]
        if namespace not in cluster.namespaces and self.command == "PATCH":
            return 404, {"message": f'namespaces "{namespace}" not found'}
        if not rest:
            return 200, {"items": self._listed(kind, query)}
        item = cluster.objects.get((kind, rest[0]))
        if rest[1:] == ["scale"] and item is not None:
            item["spec"]["replicas"] = body["spec"]["replicas"]
            return 200, {"kind": "Scale"}
        if self.command == "PATCH":
            return 200, cluster.change(kind, body)
        if item is None:
            return 404, {"message": f'{plural} "{rest[0]}" not found'}
        if self.command == "DELETE":
            del cluster.objects[kind, rest[0]]
        return 200, item

    def _listed(self, kind: str, query: dict[str, str]) -> list[Object]:
        if kind == "Pod" and self.server.polls:
            (self.server.polls.pop(0) if len(self.server.polls) > 1 else self.server.polls[0])(self.server)
        wanted = dict(pair.split("=") for pair in query["labelSelector"].split(","))
        found = [item for (what, _), item in self.server.objects.items() if what == kind]
        return [item for item in found if wanted.items() <= item["metadata"]["labels"].items()]

    def _send(self, status: int, value: Object) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_log(self, lines: Iterable[str] | None) -> None:
        if lines is None:
            self._send(400, {"message": "container is waiting to start: ContainerCreating"})
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            self.wfile.write(b"%x\r\n%s\n\r\n" % (len(line.encode()) + 1, line.encode()))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")
