"""Stand-in for Jina Cloud's API on 127.0.0.1: the calls that jcloud 0.3 makes, and the faults that a test scripts."""

import email.parser
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import yaml

TOKEN = "token-of-the-test"


@dataclass
class StandInFlow:
    """Flow on the stand-in."""

    spec: dict[str, Any]
    phases: list[str]
    """Phases that successive polls see; the last one stays."""

    def next_phase(self) -> str:
        return self.phases.pop(0) if len(self.phases) > 1 else self.phases[0]


@dataclass
class Script:
    """Behaviour of the stand-in, and the calls that it got."""

    errors: list[str] = field(default_factory=list)
    """Errors that `validate` finds."""
    phases: list[str] = field(default_factory=lambda: ["Pending", "Starting", "Serving"])
    """Phases of a new or changed Flow."""
    reason: str = ""
    """Reason for the state of a Flow."""
    status: int = 0
    """Status of the answer to every call, if not 0."""
    body: bytes = b'{"error": "no credit"}'
    """Body of the answer with `status`."""
    dropped: int = 0
    """Number of polls of a Flow whose connection is closed."""
    flows: dict[str, StandInFlow] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    """Calls as `METHOD PATH?QUERY`, in order."""


class StandIn(ThreadingHTTPServer):
    """Server of the stand-in; each test replaces `script`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = Script()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    @property
    def script(self) -> Script:
        return cast("StandIn", self.server).script

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        script, path = self.script, urlsplit(self.path)
        script.calls.append(f"{self.command} {self.path}")
        if script.status:
            self._answer(script.status, script.body)
        elif self.headers.get("authorization") != TOKEN:
            self._answer(401, {"error": "invalid token"})
        elif self.command == "GET" and path.path.startswith("/flows/") and script.dropped:
            script.dropped -= 1
            self.close_connection = True
        else:
            self._answer(*self._route(path.path, parse_qs(path.query), body))

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        flows = self.script.flows
        if (self.command, path) == ("POST", "/flows/validate"):
            self._spec(body)
            return 200, {"errors": self.script.errors}
        if (self.command, path) == ("POST", "/flows"):
            spec = self._spec(body)
            flow_id = f"{spec['jcloud']['name']}-{len(flows):010x}"
            flows[flow_id] = StandInFlow(spec, list(self.script.phases))
            return 201, {"id": flow_id, "status": {"phase": "Pending"}}
        if (self.command, path) == ("GET", "/flows"):
            phases = query["phase"][0].split(",")
            return 200, {"flows": [self._shown(i) for i, flow in flows.items() if flow.phases[0] in phases]}
        match = re.fullmatch(r"/flows/([^/:]+)(.*)", path)
        if match is None or match[1] not in flows:
            return 404, {"error": "Flow not found"}
        return self._of_one(match[1], match[2], query, body)

    def _of_one(self, flow_id: str, rest: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        flow = self.script.flows[flow_id]
        if (self.command, rest) == ("GET", ""):
            return 200, self._shown(flow_id, flow.next_phase())
        if (self.command, rest) == ("PUT", ""):
            flow.spec, flow.phases = self._spec(body), ["Updating", "Starting", *self.script.phases[-1:]]
            return 202, {"id": flow_id}
        if (self.command, rest) == ("DELETE", ""):
            flow.phases = ["Serving", "Deleted"]
            return 200, {"id": flow_id}
        if self.command == "GET" and rest.endswith("/logs"):
            pod = rest.removesuffix("/logs").rpartition("/")[2].replace("_", "-") + "-7d9f"
            return 200, {"logs": {pod: "loading\nserving\n"}}
        if self.command == "PUT" and (match := re.fullmatch(r"/executors/(\w+):scale", rest)):
            executor = next(e for e in flow.spec["executors"] if e["name"] == match[1])
            executor["replicas"], flow.phases = int(query["replicas"][0]), ["Updating", "Serving"]
            return 202, {"id": flow_id}
        return 404, {"error": f"no such route: {self.command} {rest}"}

    def _spec(self, body: bytes) -> dict[str, Any]:
        """Return the Flow in the field `spec`; assert that Jina Cloud could run it: images, names, whole numbers."""
        head = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
        (part,) = email.parser.BytesParser().parsebytes(head + body).get_payload()
        assert part.get_param("name", header="content-disposition") == "spec"
        spec = cast("dict[str, Any]", yaml.safe_load(part.get_payload(decode=True)))
        for pod in (spec["gateway"], *spec["executors"]):
            assert pod["uses"].startswith("docker://")
            assert all(isinstance(value, str) for value in pod["env"].values())
            assert pod["replicas"] >= 1
        return spec

    def _shown(self, flow_id: str, phase: str | None = None) -> dict[str, Any]:
        flow = self.script.flows[flow_id]
        status: dict[str, Any] = {"phase": phase or flow.phases[0]}
        if status["phase"] == "Serving":
            host = f"{flow_id}.example.com"
            status["endpoints"] = {"gateway (grpc)": f"grpcs://{host}", "gateway (http)": f"https://http-{host}"}
        if self.script.reason:
            status["conditions"] = [{"type": "Ready", "status": "False", "message": self.script.reason}]
        return {"id": flow_id, "status": status, "spec": flow.spec, "ctime": "2026-01-01T00:00:00+00:00"}

    def _answer(self, status: int, answer: Any) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json" if data[:1] == b"{" else "text/html")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
