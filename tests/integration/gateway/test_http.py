"""The HTTP port as a client sees it: shapes, errors, limits, disconnects."""

import asyncio
import gzip
import json
import socket
import time
from typing import Any

import httpx
import pytest
from waiting import wait_until

from run_gpt.api.endpoints import ENDPOINTS


def script(**fields: Any) -> str:
    return json.dumps(fields)


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the server-sent events of a body: (kind, data)."""
    events = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        events.append((fields.get("event", "message"), json.loads(fields["data"])))
    return events


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error


def test_generate_answers(stack: Any) -> None:
    response = httpx.post(f"{stack.http}/generate", json={"prompt": script(words=["a", "b"])})
    assert response.status_code == 200
    answer = response.json()
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("rungpt-")
    assert answer["choices"] == [{"index": 0, "text": "ab", "finish_reason": "stop"}]
    assert answer["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 8},
    }


def test_chat_answers(stack: Any) -> None:
    messages = [{"role": "user", "content": script(words=["a", "b"])}]
    answer = httpx.post(f"{stack.http}/chat", json={"messages": messages, "model": "scripted"}).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "ab"}


@pytest.mark.parametrize("path", ["/generate_stream", "/chat_stream"])
def test_streams_are_server_sent_events(stack: Any, path: str) -> None:
    said = script(words=["a", "b", "c"])
    body = {"prompt": said} if "generate" in path else {"messages": [{"role": "user", "content": said}]}
    response = httpx.post(stack.http + path, json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    assert {kind for kind, _ in events} == {"message"}
    choices = [event["choices"][0] for _, event in events]
    assert "".join(c["text"] if "text" in c else c["delta"]["content"] for c in choices) == "abc"
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert events[-1][1]["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 8},
    }


def test_events_arrive_as_they_are_made(stack: Any) -> None:
    with httpx.stream(
        "POST", f"{stack.http}/generate_stream", json={"prompt": script(words=["a"], then="hang")}, timeout=10
    ) as response:
        lines = response.iter_lines()  # kept: without it, the connection is closed
        assert '"text":"a"' in next(lines)
        assert stack.ready()["in_flight"] == 1, "one request is one, also while it is written"


BAD_BODIES = [
    (b"{", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b'{"prompt": NaN}', "not JSON"),
    (b"[]", "must be a JSON object, got an array"),
    (b'"x"', "must be a JSON object, got a string"),
    (b'{"a":' * 19_000, "nested too deeply"),
    (b'{"prompt":' + b"[" * 49_000 + b"]" * 49_000 + b"}", ""),
    (b"{}", "prompt: this field is required"),
    (b'{"prompt": "x", "colour": 1}', "colour"),
    (b'{"prompt": ""}', "prompt"),
    (b'{"prompt": "\\ud800"}', "prompt"),
    (b'{"prompt": "x", "\\ud800": 1}', ""),
    (b'{"prompt": "x", "temperature": -1}', "temperature"),
    (b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}", ""),
    (b"", "not JSON"),
]


@pytest.mark.parametrize(("body", "says"), BAD_BODIES)
def test_a_bad_body_is_a_400_that_says_why(stack: Any, body: bytes, says: str) -> None:
    response = httpx.post(f"{stack.http}/generate", content=body)
    assert response.status_code == 400
    assert says in error_of(response)["message"]
    assert httpx.get(f"{stack.http}/ready").status_code == 200


@pytest.mark.parametrize("length_is_known", [True, False])
def test_a_body_over_the_limit_is_a_413_with_both_numbers(stack: Any, length_is_known: bool) -> None:
    body = json.dumps({"prompt": "x" * 200_000}).encode()
    content: Any = body if length_is_known else iter([body[:90_000], body[90_000:]])
    response = httpx.post(f"{stack.http}/generate", content=content)
    assert response.status_code == 413
    assert "100000" in error_of(response)["message"]
    assert str(len(body)) in error_of(response)["message"]


def test_a_huge_body_does_not_fill_the_memory(stack: Any) -> None:
    def endless() -> Any:
        for _ in range(2000):
            yield b"x" * 10_000

    try:
        response = httpx.post(f"{stack.http}/generate", content=endless())
    except httpx.WriteError:
        return  # the connection was cut during the write: also an answer
    assert response.status_code == 413


def test_an_unknown_route_and_a_wrong_method_speak_the_same_error_shape(stack: Any) -> None:
    missing = httpx.post(f"{stack.http}/generat", json={})
    assert missing.status_code == 404
    assert "/generate" in error_of(missing)["message"]
    wrong = httpx.get(f"{stack.http}/generate")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert "POST" in error_of(wrong)["message"]


def test_another_model_is_a_404_that_names_the_served_one(stack: Any) -> None:
    response = httpx.post(f"{stack.http}/generate", json={"prompt": script(), "model": "gpt-9"})
    assert response.status_code == 404
    assert "'gpt-9'" in error_of(response)["message"]
    assert "'scripted'" in error_of(response)["message"]


ERRORS = [
    ("invalid_value", 400),
    ("context_length_exceeded", 400),
    ("invalid_api_key", 401),
    ("model_not_found", 404),
    ("request_too_large", 413),
    ("queue_full", 429),
    ("internal_error", 500),
    ("unavailable", 503),
    ("deadline_exceeded", 504),
]


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
@pytest.mark.parametrize(("code", "status"), ERRORS)
def test_an_executors_error_keeps_its_code(stack: Any, path: str, code: str, status: int) -> None:
    error = {"message": "so it is", "code": code, "param": "prompt"}
    response = httpx.post(stack.http + path, json={"prompt": script(words=[], then="error", error=error)})
    assert response.status_code == status
    told = error_of(response)
    assert (told["message"], told["code"], told["param"]) == ("so it is", code, "prompt")
    assert ("retry-after" in response.headers) == (status == 429)


@pytest.mark.parametrize("then", ["raise", "stop silently", "error"])
def test_a_stream_that_fails_ends_with_an_error_event(stack: Any, then: str) -> None:
    error = {"message": "so it is", "code": "internal_error"}
    said = script(words=["a", "b"], then=then, error=error)
    events = events_of(httpx.post(f"{stack.http}/generate_stream", json={"prompt": said}).text)
    assert [kind for kind, _ in events] == ["message"] * (len(events) - 1) + ["error"]
    assert "".join(event["choices"][0]["text"] for _, event in events[:-1]) == "ab"
    assert events[-1][1]["error"]["code"] == "internal_error"


def test_an_exception_in_the_executor_is_a_500(stack: Any) -> None:
    response = httpx.post(f"{stack.http}/generate", json={"prompt": script(then="raise")})
    assert response.status_code == 500
    assert "the script says so" in error_of(response)["message"]


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_a_client_that_disconnects_ends_its_request_at_once(stack: Any, path: str) -> None:
    """Otherwise a closed browser tab keeps a slot busy until the answer is complete."""
    before = len(stack.journal)
    words = ["a"] if path == "/generate_stream" else []
    async with httpx.AsyncClient() as client:
        call = asyncio.create_task(client.post(stack.http + path, json={"prompt": script(words=words, then="hang")}))
        await asyncio.to_thread(wait_until, lambda: len(stack.journal) > before)
        request_id = stack.journal[-1][1]
        gone = time.monotonic()
        call.cancel()
    await asyncio.to_thread(wait_until, lambda: any(line[:2] == ["cancelled", request_id] for line in stack.journal))
    assert time.monotonic() - gone < 2
    await asyncio.to_thread(wait_until, lambda: stack.ready()["in_flight"] == 0)


async def test_a_slow_reader_gets_all_the_text_and_delays_nobody(stack: Any) -> None:
    """Text that comes while the client does not read is merged, and counted to show that none is missing."""
    count = 3000
    async with httpx.AsyncClient(timeout=30) as client:
        request = client.stream("POST", f"{stack.http}/generate_stream", json={"prompt": script(words=count)})
        async with request as response:
            lines = response.aiter_lines()
            first = await anext(lines)
            other = await client.post(f"{stack.http}/generate", json={"prompt": script(words=["x"])})
            assert other.status_code == 200
            rest = [line async for line in lines if line]
    events = [json.loads(line.removeprefix("data: ")) for line in [first, *rest]]
    assert "".join(event["choices"][0]["text"] for event in events) == "".join(f"{i} " for i in range(count))
    assert events[-1]["usage"]["completion_tokens"] == count


def test_the_description_has_the_schemas_and_the_page_needs_no_network(stack: Any) -> None:
    document = httpx.get(f"{stack.http}/openapi.json").json()
    body = document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = document["components"]["schemas"][body["$ref"].rpartition("/")[2]]["properties"]
    assert {"prompt", "max_new_tokens", "max_tokens", "stop"} <= set(fields)
    page = httpx.get(f"{stack.http}/docs").text
    assert "max_new_tokens" in page
    assert "http://" not in page
    assert "https://" not in page


def test_health_and_readiness(stack: Any) -> None:
    assert httpx.get(f"{stack.http}/health").status_code == 200
    status = httpx.get(f"{stack.http}/ready").json()
    assert (status["ready"], status["model"], status["draining"]) == (True, "scripted", False)
    assert status["replicas"]["total"] == 1
    assert status["replicas"]["each"][0]["state"] == "ready"


def test_the_gateway_does_not_import_torch(stack: Any) -> None:
    """A gateway does not need torch, which costs 200 MB and seconds at the start."""
    import psutil

    maps = psutil.Process(stack.processes["gateway"].pid).memory_maps()
    assert not [m.path for m in maps if "libtorch" in m.path]


def test_a_client_that_disconnects_in_its_body_leaves_no_trace(stack: Any) -> None:
    """A log full of tracebacks hides the ones that matter."""
    with socket.create_connection(("127.0.0.1", stack.flow["gateway"]["port"][1])) as half:
        half.sendall(b'POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"prompt":')
    assert httpx.get(f"{stack.http}/ready").status_code == 200
    assert "Traceback" not in stack.log_of("gateway")


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_the_header_of_an_answer_has_the_answers_id(stack: Any, path: str) -> None:
    """A report of an answer by its id and a report by the header must name the same request."""
    response = httpx.post(stack.http + path, json={"prompt": script(words=["a"])})
    answer = response.json() if path == "/generate" else events_of(response.text)[0][1]
    assert response.headers["x-request-id"] == answer["id"]
    named = httpx.post(stack.http + path, json={"prompt": script(words=["a"])}, headers={"X-Request-Id": "mine"})
    assert named.headers["x-request-id"] == "mine"


def raw(stack: Any, sent: bytes) -> bytes:
    """Send bytes, end the sending, and return all that comes back."""
    with socket.create_connection(("127.0.0.1", stack.flow["gateway"]["port"][1]), timeout=20) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        received = b""
        while part := client.recv(65_536):
            received += part
    return received


@pytest.mark.parametrize(("path", "delay"), [("/generate", 0.0), ("/generate", 0.5), ("/generate_stream", 0.5)])
def test_a_client_that_has_ended_its_side_gets_its_answer(stack: Any, path: str, delay: float) -> None:
    body = json.dumps({"prompt": script(words=["a", "b"], delay=delay)}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    received = raw(stack, head.encode() + body)
    assert b"HTTP/1.1 200 OK" in received
    assert b'"stop"' in received
    assert delay or received.startswith(b"HTTP/1.1 200 OK")


def test_pipelined_requests_of_all_kinds_are_whole_and_in_order(stack: Any) -> None:
    """A body after `HEAD`, or a chunk too many, would shift all later answers."""
    said = json.dumps({"prompt": script(words=["a", "b"], delay=0.1)}).encode()
    post = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
    sent = b"HEAD /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n" + post % (b"/generate_stream", len(said), said)
    sent += post % (b"/generat", len(said), said) + post % (b"/generate/", len(said), said)
    received = raw(stack, sent * 5).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    answers = received.split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"200", b"404", b"200"] * 5
    for head, stream, missing, whole in zip(*(answers[i::4] for i in range(4)), strict=True):
        assert head.endswith(b"\r\n\r\n")
        assert stream.endswith(b"\r\n0\r\n\r\n")
        assert json.loads(missing.partition(b"\r\n\r\n")[2])["error"]["code"] == "unknown_endpoint"
        assert json.loads(whole.partition(b"\r\n\r\n")[2])["choices"][0]["text"] == "ab"


@pytest.mark.parametrize(("target", "status"), [(b"http://localhost:1", 200), (b"http://evil.example/v1/models", 403)])
def test_the_host_of_an_absolute_target_is_checked(stack: Any, target: bytes, status: int) -> None:
    received = raw(stack, b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % target)
    assert received.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("length_is_known", [True, False])
def test_the_answer_to_a_body_of_any_size_arrives(stack: Any, length_is_known: bool) -> None:
    """Over eight times the limit, a reset took it away."""
    body = b"x" * 40_000_000
    content: Any = body if length_is_known else iter([body[:20_000_000], body[20_000_000:]])
    assert httpx.post(f"{stack.http}/generate", content=content).status_code == 413


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate, gzip"])
def test_a_body_of_another_coding_is_a_415(stack: Any, encoding: str) -> None:
    response = httpx.post(f"{stack.http}/generate", content=b"\x1f\x8b", headers={"Content-Encoding": encoding})
    assert (response.status_code, error_of(response)["code"]) == (415, "unsupported_encoding")
    assert response.headers["accept-encoding"] == "gzip, deflate"


def test_compressed_bodies_are_read_within_the_limit(stack: Any) -> None:
    said, coded = json.dumps({"prompt": script(words=["a"])}).encode(), {"Content-Encoding": "gzip"}
    assert httpx.post(f"{stack.http}/generate", content=gzip.compress(said), headers=coded).status_code == 200
    bomb = httpx.post(f"{stack.http}/generate", content=gzip.compress(bytes(90_000_000)), headers=coded)
    assert bomb.status_code == 413
    plain = {"Content-Encoding": "identity"}
    assert httpx.post(f"{stack.http}/generate", content=said, headers=plain).status_code == 200


EXTREMES = (None, True, -1, 2**31, 2**63, 10**400, 1e308, "", "\ud800", "x" * 9000, [], [[]], [0] * 999, {}, {"a": {}})


@pytest.mark.parametrize("path", [path for path, endpoint in ENDPOINTS.items() if "{" not in path])
def test_no_value_of_any_field_is_a_500(stack: Any, path: str) -> None:
    endpoint = ENDPOINTS[path]
    whole = {"prompt": script(words=["a"]), "messages": [{"role": "user", "content": script(words=["a"])}]}
    whole |= {
        "texts": ["x"],
        "input": script(words=["a"]),
        "tokens": [1],
        "name": "x",
        "path": "x",
        "model": "scripted",
    }
    fields = {name: value for name, value in whole.items() if name in endpoint.request.model_fields}
    if path == "/tokenize":
        del fields["messages"]
    with httpx.Client(timeout=20) as client:
        for name in [*endpoint.request.model_fields, "unknown"]:
            for value in EXTREMES:
                if name in ("prompt", "input") and value in ("", "x" * 9000, [0] * 999):
                    continue  # a good request, but no script
                body = json.dumps({**fields, name: value})
                response = client.post(stack.http + path, content=body)
                assert response.status_code < 500, f"{name}: {str(value)[:40]}: {response.text[:200]}"
                assert len(response.content) < 20_000


@pytest.mark.parametrize(("code", "status"), ERRORS)
def test_errors_of_messages_have_the_form_of_their_api(stack: Any, code: str, status: int) -> None:
    """Anthropic's clients read the type of an error, and retry by it."""
    error = {"message": "so it is", "code": code}
    asked = {"messages": [{"role": "user", "content": script(words=[], then="error", error=error)}]}
    for stream in (False, True):
        response = httpx.post(f"{stack.http}/v1/messages", json={**asked, "stream": stream})
        assert response.status_code == status
        body = response.json()
        assert (body["type"], body["error"]["message"], "code" in body["error"]) == ("error", "so it is", False)
    begun = {"messages": [{"role": "user", "content": script(words=["a"], then="error", error=error)}], "stream": True}
    kinds = [kind for kind, _ in events_of(httpx.post(f"{stack.http}/v1/messages", json=begun).text)]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-1] == "error"


def test_messages_are_answered_whole_and_streamed(stack: Any) -> None:
    asked = {"model": None, "messages": [{"role": "user", "content": script(words=["a", "b"])}]}
    whole = httpx.post(f"{stack.http}/v1/messages", json=asked).json()
    assert whole["content"] == [{"type": "text", "text": "ab"}]
    events = events_of(httpx.post(f"{stack.http}/v1/messages?beta=true", json={**asked, "stream": True}).text)
    deltas = [event["delta"]["text"] for kind, event in events if kind == "content_block_delta"]
    assert "".join(deltas) == "ab"
    assert [kind for kind, _ in events][-3:] == ["content_block_stop", "message_delta", "message_stop"]
    wrong = httpx.post(f"{stack.http}/v1/messages", json={"messages": []})
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (400, "invalid_request_error")


def test_ollamas_api_is_answered_in_lines(stack: Any) -> None:
    asked = {"model": "scripted:latest", "messages": [{"role": "user", "content": script(words=["a", "b"])}]}
    response = httpx.post(f"{stack.http}/api/chat", json=asked)
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == "ab"
    assert (lines[-1]["done"], lines[-1]["done_reason"]) == (True, "stop")
    whole = httpx.post(f"{stack.http}/api/chat", json={**asked, "stream": False}).json()
    assert whole["message"]["content"] == "ab"
    names = [model["name"] for model in httpx.get(f"{stack.http}/api/tags").json()["models"]]
    assert names == ["scripted:latest"]
    assert httpx.get(f"{stack.http}/api/version").json()["version"]
    wrong = httpx.post(f"{stack.http}/api/chat", json={"model": "other", "messages": asked["messages"]})
    assert wrong.status_code == 404
    assert "other" in wrong.json()["error"]
    failing = [
        {
            "role": "user",
            "content": script(words=["a"], then="error", error={"message": "so it is", "code": "internal_error"}),
        }
    ]
    last = httpx.post(f"{stack.http}/api/chat", json={"messages": failing}).text.splitlines()[-1]
    assert json.loads(last) == {"error": "so it is"}


def test_a_program_that_looks_for_ollama_finds_it(start_stack: Any) -> None:
    stack = start_stack(ollama=True)
    assert httpx.get(stack.http).text == "Ollama is running"
    assert httpx.head(stack.http).status_code == 200
