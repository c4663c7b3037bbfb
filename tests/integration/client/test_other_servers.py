"""Servers that are not RunGPT, or send nonsense. Users must get one line with the endpoint, not a traceback."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from run_gpt import errors
from run_gpt.client import Client

HTML = b"<html>\n<body>It works!</body></html>"
EVENT = b'{"id":"1","created":1,"model":"m","usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2},'
EVENT += b'"choices":[{"index":0,"text":"hi","finish_reason":null}]}'


@pytest.fixture
def answering() -> Iterator:
    """Yield `answering(status, type, body)`, which starts a server that always answers so and returns its URL."""
    servers = []

    def start(status: int, kind: str, body: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _ask(url, call):
    with Client().get_model(endpoint=url) as model:
        return list(getattr(model, call)("hi", timeout=20))


@pytest.mark.parametrize("call", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (200, "text/html", HTML),
        (502, "text/html", HTML),
        (404, "application/json", b'{"detail": "Not Found"}'),
        (302, "text/plain", b""),
        (500, "application/json", b"[]"),
        (200, "application/json", b"[]"),
        (200, "application/json", b'{"choices": [{}]}'),
        (200, "text/plain", b"\xff\xfe"),
    ],
)
def test_an_answer_that_is_not_ours_names_endpoint_and_what_came(answering, status, kind, body, call):
    url = answering(status, kind, body)
    with pytest.raises(errors.InternalError, match=url) as raised:
        _ask(url, call)
    assert "\n" not in str(raised.value)
    assert str(status) in str(raised.value) or status == 200


@pytest.mark.parametrize("event", [b"{", b"[]", b'"text"', b'{"choices": 3}'])
def test_an_event_that_is_not_ours(answering, event):
    url = answering(200, "text/event-stream", b"data: " + event + b"\n\n")
    with pytest.raises(errors.InternalError, match=url):
        _ask(url, "generate_stream")


def test_a_stream_that_breaks_off(answering):
    url = answering(200, "text/event-stream; charset=utf-8", b"data: " + EVENT + b"\n\ndata: {")
    with pytest.raises(errors.InternalError, match="complete"):
        _ask(url, "generate_stream")


def test_an_error_with_an_unknown_code_is_an_internal_error(answering):
    url = answering(418, "application/json", b'{"error": {"message": "I am a teapot", "code": "teapot"}}')
    with pytest.raises(errors.InternalError, match="teapot"):
        _ask(url, "generate")


def test_a_path_before_the_routes_is_kept(answering):
    url = answering(200, "application/json", EVENT) + "/behind/a/proxy"
    with Client().get_model(endpoint=url) as model:
        assert model.generate("hi").text == "hi"
