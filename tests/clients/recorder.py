"""A proxy between a client and the server that keeps the client's requests, to renew `data/requests`."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

KEPT_HEADERS = ("content-encoding", "accept-encoding", "x-api-key", "openai-beta")
LONGEST_TEXT = 300
"""Characters of a text that are kept: the form of a request counts, not its prompts."""
HOP_BY_HOP = ("transfer-encoding", "connection", "keep-alive", "content-length")


class Recorder(ThreadingHTTPServer):
    """A proxy on a free port of 127.0.0.1."""

    daemon_threads = True

    def __init__(self, server: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.server = urlsplit(server).netloc
        self.requests: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def write(self, file: Path, home: Path) -> None:
        """Write one request of each form, in order, one a line, without the path of the client's home."""
        each = {json.dumps(form(request), sort_keys=True): request for request in reversed(self.requests)}
        lines = [json.dumps(request, ensure_ascii=False) for request in reversed(each.values())]
        file.write_text(("[\n" + ",\n".join(lines) + "\n]\n").replace(str(home), "/home/user"))


class _Handler(BaseHTTPRequestHandler):
    server: Recorder
    protocol_version = "HTTP/1.0"  # each answer ends with its connection

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        upstream = http.client.HTTPConnection(self.server.server, timeout=300)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        upstream.request(self.command, self.path, body or None, headers)
        answer = upstream.getresponse()
        self._keep(body, answer.status)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.end_headers()
        while part := answer.read1(65_536):
            self.wfile.write(part)
            self.wfile.flush()
        upstream.close()

    do_GET = do_POST = do_HEAD = do_DELETE = do_OPTIONS = _pass_on

    def _keep(self, body: bytes, status: int) -> None:
        headers = {name: self.headers[name] for name in KEPT_HEADERS if name in self.headers}
        try:
            content = shortened(json.loads(body)) if body else None
        except ValueError:
            content = f"{len(body)} bytes that are no JSON"
        record = {"method": self.command, "path": self.path, "headers": headers, "body": content, "status": status}
        self.server.requests.append(record)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing."""


def shortened(value: Any) -> Any:
    """Return a JSON value with its long texts cut."""
    if isinstance(value, dict):
        return {name: shortened(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shortened(each) for each in value]
    return value[:LONGEST_TEXT] if isinstance(value, str) else value


def form(value: Any) -> Any:
    """Return the form of a JSON value: names and types, and short texts of a kind, such as roles."""
    if isinstance(value, dict):
        return {name: form(each) for name, each in value.items()}
    if isinstance(value, list):
        return [form(each) for each in value]
    kept = value is None or isinstance(value, bool) or (isinstance(value, str) and value.isidentifier())
    return value if kept else type(value).__name__


@contextmanager
def recording(server: str) -> Iterator[Recorder]:
    """Run a recorder before the server at this address."""
    recorder = Recorder(server)
    thread = threading.Thread(target=recorder.serve_forever, daemon=True)
    thread.start()
    try:
        yield recorder
    finally:
        recorder.shutdown()
        recorder.server_close()
        thread.join()
