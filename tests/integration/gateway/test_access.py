"""Access to both ports of a real gateway: every route and every method, with a key and without."""

import asyncio
import base64
import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# isort: off
import run_gpt.process._jina  # noqa: F401  (before jina)

# isort: on
import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from jina.proto import jina_pb2, jina_pb2_grpc
from jina.types.request.data import SingleDocumentRequest
from waiting import wait_until

from run_gpt.api import documents as d
from run_gpt.api.schema import GenerateRequest
from run_gpt.client import Client
from run_gpt.config import GatewayConfig
from run_gpt.errors import AuthenticationError
from run_gpt.gateway.http import build_app
from run_gpt.gateway.http_access import OPEN_ROUTES
from run_gpt.gateway.legacy import METHOD as LEGACY_METHOD
from run_gpt.gateway.legacy import LegacyRequest
from run_gpt.gateway.rpc import Servicer

OWN, ALICE, WRONG = "own-key-of-the-test", "alices-key-of-the-test", "a-key-that-is-wrong"
BEARER = {"Authorization": f"Bearer {OWN}"}
LIMIT = 100_000
ORIGIN = "https://app.example.com"

SERVICE: Any = SimpleNamespace(config=GatewayConfig())
ROUTES = sorted((method, route.path) for route in build_app(SERVICE).routes for method in route.methods - {"HEAD"})
KEYED_ROUTES = [(method, path) for method, path in ROUTES if path not in OPEN_ROUTES]
OPEN_METHODS = {"/jina.JinaGatewayDryRunRPC/dry_run"}
METHODS = {
    f"/{handler.service_name()}/{path.rpartition('/')[2]}": method
    for handler in Servicer(SERVICE).handlers()
    for path, method in handler._method_handlers.items()
}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, free_ports: Any, a_stack: Any) -> Iterator[Any]:
    """Yield a gateway with two keys, one origin and a log of requests."""
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "keys").write_text(f"alice: {ALICE}\n")
    settings = {
        "max_body_bytes": LIMIT,
        "api_key_file": str(folder / "keys"),
        "require_key": True,
        "cors_origins": [ORIGIN],
        "log_requests": True,
        "trusted_proxies": ["127.0.2.0/24"],
    }
    with a_stack(folder, free_ports(3), 1, settings, "ready", {"RUNGPT_API_KEY": OWN}) as running:
        yield running


def basic(key: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'anybody:{key}'.encode()).decode()}"}


def script(**fields: Any) -> dict[str, str]:
    return {"prompt": json.dumps(fields)}


def check_refused(response: httpx.Response) -> None:
    assert response.status_code == 401, response.text
    answer = response.json()
    if response.url.path.startswith("/api/"):
        assert "key" in answer["error"]
    elif response.url.path.startswith("/v1/messages"):
        assert (answer["type"], answer["error"]["type"]) == ("error", "authentication_error")
    else:
        error = answer["error"]
        assert (error["type"], error["code"], error["param"]) == ("authentication_error", "invalid_api_key", None)
    assert response.headers["www-authenticate"] == "Bearer"
    assert WRONG not in response.text


@pytest.mark.parametrize(
    ("method", "path"),
    [*KEYED_ROUTES, ("POST", "/nowhere"), ("POST", "/health"), ("GET", "/ready/x"), ("GET", "//health")],
)
def test_every_route_needs_a_key(keyed: Any, method: str, path: str) -> None:
    """The routes come from the app itself, so that routes added later are tested, too."""
    body = b"{}" if method == "POST" else None
    # From an address of its own: too many wrong keys from one would wait.
    address = f"127.0.1.{KEYED_ROUTES.index((method, path)) + 1 if (method, path) in KEYED_ROUTES else 200 + len(path)}"
    transport = httpx.HTTPTransport(local_address=address)
    with httpx.Client(base_url=keyed.http, transport=transport) as client:
        for headers in ({}, {"Authorization": f"Bearer {WRONG}"}, {"Authorization": OWN}, basic(WRONG), basic("")):
            check_refused(client.request(method, path, content=body, headers=headers))
        for headers in (BEARER, {"Authorization": f"Bearer {ALICE}"}, basic(OWN), {"X-Api-Key": ALICE}):
            assert client.request(method, path, content=body, headers=headers).status_code != 401


def test_the_table_of_routes_is_the_whole_app() -> None:
    """Otherwise the test above could pass without any routes."""
    assert {("POST", "/generate"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/metrics")} <= set(KEYED_ROUTES)
    assert {path for _, path in ROUTES} - {path for _, path in KEYED_ROUTES} == set(OPEN_ROUTES)
    assert len(METHODS) >= 6


@pytest.mark.parametrize("path", OPEN_ROUTES)
def test_health_needs_no_key(keyed: Any, path: str) -> None:
    """A supervisor that restarts an unhealthy server has no key."""
    assert httpx.get(keyed.http + path).status_code == 200
    assert httpx.get(keyed.http + path, headers={"Authorization": f"Bearer {WRONG}"}).status_code == 200
    assert httpx.get(f"{keyed.http}{path}/").status_code == 200
    assert httpx.head(keyed.http + path).status_code == 200


@pytest.mark.parametrize("key", [OWN, ALICE])
def test_answers_and_streams_come_with_a_key(keyed: Any, key: str) -> None:
    """Streams come event by event: the checks before the app must not buffer them."""
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.post(f"{keyed.http}/generate", json=script(words=["a", "b"]), headers=headers)
    assert answer.json()["choices"][0]["text"] == "ab"
    body = script(words=["a"], then="hang")
    with httpx.stream("POST", f"{keyed.http}/generate_stream", json=body, headers=headers, timeout=10) as response:
        assert '"text":"a"' in next(response.iter_lines())


@pytest.mark.parametrize(("peer", "logged"), [("127.0.2.1", "203.0.113.7"), ("127.0.3.1", "127.0.3.1")])
def test_only_a_trusted_proxy_names_the_address_of_a_wrong_key(keyed: Any, peer: str, logged: str) -> None:
    """A client could blame its guesses on others, and make them wait."""
    headers = {"Authorization": f"Bearer {WRONG}", "X-Forwarded-For": "203.0.113.9, 203.0.113.7", "X-Request-Id": peer}
    with httpx.Client(transport=httpx.HTTPTransport(local_address=peer)) as client:
        assert client.get(f"{keyed.http}/v1/models/", headers=headers).status_code == 401
    wait_until(lambda: f"client_id={peer} " in keyed.log_of("gateway"))
    (line,) = [line for line in keyed.log_of("gateway").splitlines() if f"client_id={peer} " in line]
    assert line.endswith(f"address={logged}")
    assert " GET /v1/models 401 " in line


def test_a_browser_is_asked_for_the_key_as_a_password(keyed: Any) -> None:
    html = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    asked = httpx.get(f"{keyed.http}/docs", headers=html)
    assert asked.status_code == 401
    assert asked.headers["www-authenticate"].startswith('Basic realm="RunGPT"')
    page = httpx.get(f"{keyed.http}/docs", headers=html | basic(OWN))
    assert page.headers["content-type"].startswith("text/html")


def test_a_page_of_another_site_cannot_send_requests(keyed: Any, stack: Any) -> None:
    """Otherwise any page that a user visits could send requests in their name: by Basic, or to a keyless server."""

    def ask(origin: str, headers: dict[str, str]) -> int:
        body = script(words=["a"])
        return httpx.post(f"{keyed.http}/generate", json=body, headers={"Origin": origin, **headers}).status_code

    assert ask("https://evil.example", basic(OWN)) == 403
    assert ask("null", basic(OWN)) == 403
    assert ask(keyed.http, basic(OWN)) == 200
    assert ask(ORIGIN, basic(OWN)) == 200
    assert ask("https://evil.example", BEARER) == 403
    refused = httpx.post(f"{stack.http}/generate", json=script(words=["a"]), headers={"Origin": ORIGIN})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    assert "--cors-origin" in refused.json()["error"]["message"]
    assert httpx.post(f"{stack.http}/generate", json=script(), headers={"Origin": stack.http}).status_code == 200


@pytest.mark.parametrize("length_is_known", [True, False])
def test_a_refused_body_is_read_within_the_limit_or_not_at_all(keyed: Any, length_is_known: bool) -> None:
    """Clients without a key must not be able to keep a server reading."""
    small = b"x" * (LIMIT - 1)
    with httpx.Client() as client:
        for _ in range(2):  # on one connection: no part of the first body may end up in the second
            check_refused(client.post(f"{keyed.http}/generate", content=small if length_is_known else iter([small])))
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(5000):
            sent += 10_000
            yield b"x" * 10_000

    headers = {"Content-Length": "50000000"} if length_is_known else {}
    try:
        response = httpx.post(f"{keyed.http}/generate", content=endless(), headers=headers)
        assert response.status_code == 401
        assert response.headers["connection"] == "close"
    except (httpx.WriteError, httpx.ReadError):
        pass  # the connection was cut during the write
    assert sent < 50_000_000


def test_a_client_that_waits_for_a_word_is_refused_before_it_sends_its_body(keyed: Any) -> None:
    with socket.create_connection(("127.0.0.1", keyed.flow["gateway"]["port"][1]), timeout=10) as half:
        half.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n")
        assert half.recv(1000).startswith(b"HTTP/1.1 401")


# gRPC


async def end_of(keyed: Any, method: str, metadata: Any) -> Any:
    """Return the error that a call of `method` with an empty message ends with, or None."""
    streaming = method == REFLECTION or (method in METHODS and METHODS[method].request_streaming)
    async with grpc.aio.insecure_channel(keyed.grpc) as channel:
        if streaming:
            call: Any = channel.stream_stream(method)(iter([b""]), metadata=metadata, timeout=20)
        else:
            call = channel.unary_stream(method)(b"", metadata=metadata, timeout=20)
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            return error
    return None


WAYS = {"bearer": f"Bearer {OWN}", "bare": OWN, "named": f"Bearer {ALICE}"}
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


async def test_every_method_needs_a_key(keyed: Any) -> None:
    """The methods come from the servicer itself, so that methods added later are tested, too."""
    methods = {*METHODS, REFLECTION, "/no.such/method"} - OPEN_METHODS
    await asyncio.gather(*(check_method(keyed, method) for method in methods))  # wrong keys wait, beside each other


async def check_method(keyed: Any, method: str) -> None:
    for metadata in ((), (("authorization", f"Bearer {WRONG}"),), (("authorization", ""),)):
        error = await end_of(keyed, method, metadata)
        assert error.code() == grpc.StatusCode.UNAUTHENTICATED
        assert json.loads(error.trailing_metadata()["rungpt-error"])["code"] == "invalid_api_key"
        assert WRONG not in str(error)
    for sent in (*(("authorization", value) for value in WAYS.values()), ("x-api-key", ALICE)):
        error = await end_of(keyed, method, (sent,))
        assert error is None or error.code() != grpc.StatusCode.UNAUTHENTICATED


async def test_health_and_dry_run_need_no_key(keyed: Any) -> None:
    empty = jina_pb2.google_dot_protobuf_dot_empty__pb2.Empty()
    async with grpc.aio.insecure_channel(keyed.grpc) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert (await jina_pb2_grpc.JinaGatewayDryRunRPCStub(channel).dry_run(empty)).code == 0


async def test_reflection_answers_with_a_key(keyed: Any) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async with grpc.aio.insecure_channel(keyed.grpc) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        async for answer in stub.ServerReflectionInfo(iter([request]), metadata=(("authorization", WAYS["bearer"]),)):
            assert "jina.JinaRPC" in [service.name for service in answer.list_services_response.service]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_our_client_sends_its_token(keyed: Any, protocol: str) -> None:
    endpoint = keyed.http if protocol == "http" else f"grpc://{keyed.grpc}"
    with Client(ALICE).get_model(endpoint=endpoint) as model:
        assert model.generate(script(words=["a", "b"])["prompt"]).text == "ab"
        events = model.generate_stream(script(words=["a", "b"])["prompt"])
        assert "".join(event.text for event in events) == "ab"
    for token in (None, WRONG):
        with Client(token).get_model(endpoint=endpoint) as model:
            with pytest.raises(AuthenticationError):
                model.generate("x")
            with pytest.raises(AuthenticationError):
                list(model.generate_stream("x"))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(("key", "name"), [(OWN, "default"), (ALICE, "alice")])
def test_the_name_of_the_key_goes_with_each_request(keyed: Any, protocol: str, key: str, name: str) -> None:
    """Replicas reuse prompts within a key: without the name one user could read another's prompts."""
    endpoint = keyed.http if protocol == "http" else f"grpc://{keyed.grpc}"
    prompt = script(words=["$tenant"])["prompt"]
    with Client(key).get_model(endpoint=endpoint) as model:
        assert model.generate(prompt, cache_salt="s").text == name
        assert "".join(event.text for event in model.generate_stream(prompt)) == name
        assert model.chat([{"role": "user", "content": prompt}]).text == name
    if protocol == "http":
        headers = {"Authorization": f"Bearer {key}"}
        fields = {"prompt": [prompt, prompt], "cache_salt": "s"}
        answer = httpx.post(f"{keyed.http}/v1/completions", json=fields, headers=headers).json()
        assert [choice["text"] for choice in answer["choices"]] == [name, name]


async def test_an_older_client_sends_its_token_alone(keyed: Any) -> None:
    """inference-client 0.0.8 puts the token into the metadata without `Bearer`."""
    request = LegacyRequest()
    request.header.exec_endpoint = "/generate"
    request.data.docs.docs.add(id=b"0" * 32).tags.update(script(words=["a", "b"]))
    async with grpc.aio.insecure_channel(keyed.grpc) as channel:
        call = channel.stream_stream(LEGACY_METHOD)(
            iter([request.SerializeToString()]), metadata=(("authorization", OWN),)
        )
        (answer,) = [LegacyRequest.FromString(message) async for message in call]
    assert answer.data.docs.docs[0].tags["generated_text"] == "ab"
    refused = await end_of(keyed, LEGACY_METHOD, (("authorization", WRONG),))
    assert refused.code() == grpc.StatusCode.UNAUTHENTICATED


# The log


def lines_of(keyed: Any) -> list[str]:
    """Return the log's lines of requests, without the time."""
    lines = keyed.log_of("gateway").splitlines()
    return [match[1] for line in lines if (match := re.fullmatch(r"\d{4}-\d\d-\d\d \S+ ((?:GET|POST|gRPC) .*)", line))]


def new_line(keyed: Any, before: int, begins: str) -> str:
    """Return the first new line with this beginning; the line of an earlier test's request may come late."""
    lines: list[str] = wait_until(lambda: [line for line in lines_of(keyed)[before:] if line.startswith(begins)])
    return lines[0]


@pytest.mark.parametrize(
    ("path", "body", "headers", "expected"),
    [
        ("/generate", script(words=["a"]), BEARER, r"200 \d+\.\d{3}s key=default id=rungpt-[0-9a-f]{24}"),
        ("/generate_stream", script(words=["a"]), basic(ALICE), r"200 \d+\.\d{3}s key=alice id=rungpt-\S+"),
        ("/generate", {}, BEARER, r"400 \d+\.\d{3}s key=default id=\S+ error=invalid_value"),
        ("/generate", {}, {}, r"401 \d+\.\d{3}s id=\S+ error=invalid_api_key address=127\.0\.0\.1"),
        (
            "/generate_stream",
            script(words=["a"], then="raise"),
            BEARER,
            r"200 \S+s key=default id=\S+ error=internal_error",
        ),
        ("/a%0Ab", {}, BEARER, r"404 \S+s key=default id=\S+ error=unknown_endpoint"),
    ],
)
def test_an_http_request_is_one_line(keyed: Any, path: str, body: Any, headers: dict[str, str], expected: str) -> None:
    before = len(lines_of(keyed))
    httpx.post(keyed.http + path, json=body, headers=headers)
    line = new_line(keyed, before, f"POST {path} ")
    assert re.fullmatch(rf"POST {path} {expected}", line), line


def test_a_cancelled_stream_is_distinguished_from_a_whole_one(keyed: Any) -> None:
    before = len(lines_of(keyed))
    body = script(words=["a"], then="hang")
    with httpx.stream("POST", f"{keyed.http}/generate_stream", json=body, headers=BEARER, timeout=10) as response:
        next(response.iter_lines())
    assert new_line(keyed, before, "POST /generate_stream ").endswith("error=cut_off")


async def test_a_grpc_call_is_one_line(keyed: Any) -> None:
    request = SingleDocumentRequest()
    request.header.exec_endpoint = "/generate_stream"
    request.document_cls = d.document_class(GenerateRequest)

    async def stream(metadata: Any, prompt: str, *, leave: bool = False) -> str:
        before = len(lines_of(keyed))
        request.data.doc = d.document_class(GenerateRequest)(prompt=prompt)
        async with grpc.aio.insecure_channel(keyed.grpc) as channel:
            call = jina_pb2_grpc.JinaSingleDocumentRequestRPCStub(channel).stream_doc(request, metadata=metadata)
            with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                async for _ in call:
                    if leave:
                        call.cancel()
        return (await asyncio.to_thread(new_line, keyed, before, f"gRPC {METHOD} ")).removeprefix(f"gRPC {METHOD} ")

    METHOD = "/jina.JinaSingleDocumentRequestRPC/stream_doc"
    bearer = (("authorization", WAYS["named"]),)
    good = script(words=["a"])["prompt"]
    facts = r"key=alice endpoint=/generate_stream"
    assert re.fullmatch(rf"OK \S+s {facts} id=rungpt-\S+", await stream(bearer, good))
    refused = r"UNAUTHENTICATED \S+s id=\S+ error=invalid_api_key address=127\.0\.0\.1"
    assert re.fullmatch(refused, await stream((), good))
    failing = script(then="error", words=[], error={"message": "x", "code": "queue_full"})["prompt"]
    assert re.fullmatch(rf"RESOURCE_EXHAUSTED \S+s {facts} id=\S+ error=queue_full", await stream(bearer, failing))
    hanging = script(words=["a"], then="hang")["prompt"]
    assert re.fullmatch(rf"CANCELLED \S+s {facts} id=\S+", await stream(bearer, hanging, leave=True))


def test_probes_are_not_in_the_log_and_nothing_is_unless_asked_for(keyed: Any, stack: Any) -> None:
    for url in (keyed.http, stack.http):
        httpx.get(f"{url}/health")
        httpx.get(f"{url}/docs", headers=BEARER)
    wait_until(lambda: any("GET /docs" in line for line in lines_of(keyed)))
    assert not any(line.startswith(("GET /health ", "GET /ready ")) for line in lines_of(keyed))
    assert lines_of(stack) == []


# The origins of web pages

PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}


def test_a_page_of_an_allowed_origin_may_send_requests(keyed: Any) -> None:
    allowed = httpx.options(f"{keyed.http}/generate", headers=PREFLIGHT)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "x-stainless-os" in allowed.headers["access-control-allow-headers"]
    for headers, status in ((BEARER, 200), ({}, 401)):
        answer = httpx.post(f"{keyed.http}/generate", json=script(), headers={"Origin": ORIGIN, **headers})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == ORIGIN, "or the page could not read why it was refused"


def test_a_page_of_another_origin_may_not(keyed: Any) -> None:
    other = {**PREFLIGHT, "Origin": "https://evil.example"}
    assert "access-control-allow-origin" not in httpx.options(f"{keyed.http}/generate", headers=other).headers
    answer = httpx.post(f"{keyed.http}/generate", json=script(), headers={**BEARER, "Origin": "https://evil.example"})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_no_origin_is_allowed_by_default(stack: Any) -> None:
    for response in (
        httpx.options(f"{stack.http}/generate", headers=PREFLIGHT),
        httpx.post(f"{stack.http}/generate", json=script(), headers={"Origin": ORIGIN}),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_any_origin_is_allowed_if_configured(start_stack: Any) -> None:
    stack = start_stack(cors_origins=["*"])
    assert httpx.options(f"{stack.http}/generate", headers=PREFLIGHT).headers["access-control-allow-origin"] == "*"
    answer = httpx.post(f"{stack.http}/generate", json=script(), headers={"Origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers


# The keys while the server runs


async def test_keys_change_under_load_and_no_request_is_lost(start_stack: Any, tmp_path: Path) -> None:
    """A key can be replaced while it is in use: the new one is added first, then the old one is removed."""
    file, new = tmp_path / "keys", "alices-new-key-of-the-test"
    file.write_text(f"alice: {ALICE}\n")
    stack = start_stack(api_key_file=str(file))
    statuses: list[int] = []
    key, stop = ALICE, asyncio.Event()

    async def ask(client: httpx.AsyncClient) -> None:
        while not stop.is_set():
            headers = {"Authorization": f"Bearer {key}"}
            answer = await client.post(f"{stack.http}/generate", json=script(words=["a"], delay=0.01), headers=headers)
            statuses.append(answer.status_code)

    def write(text: str) -> None:
        (tmp_path / "next").write_text(text)
        (tmp_path / "next").replace(file)

    async def status(of: str) -> int:
        return (await client.get(stack.http, headers={"Authorization": f"Bearer {of}"})).status_code

    async def until(of: str, wanted: int) -> None:
        async with asyncio.timeout(20):
            while await status(of) != wanted:
                await asyncio.sleep(0.05)  # between two polls of the condition

    async with httpx.AsyncClient(timeout=30) as client, asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(ask(client))
        write(f"alice: {ALICE}\nalice-2: {new}\n")
        await until(new, 200)
        key = new
        write(f"alice-2: {new}\n")
        # Requests sent with the old key have ended by the time that this many others have.
        await until(ALICE, 401)
        write("alice-2")  # half a file changes nothing
        await until(new, 200)
        seen = len(statuses)
        async with asyncio.timeout(20):
            while len(statuses) < seen + 40 or "write NAME: KEY" not in stack.log:
                await asyncio.sleep(0.05)  # between two polls of the condition
        stop.set()
    assert set(statuses) == {200}
    assert stack.log.count("write NAME: KEY") == 1
    file.write_text("# nobody\n")
    async with httpx.AsyncClient() as client:
        await until(new, 401)
        assert (await client.get(f"{stack.http}/health")).status_code == 200
    assert not [secret for secret in (ALICE, new) if secret in stack.log]


def test_a_flow_that_must_have_a_key_does_not_start_without_one(start_stack: Any) -> None:
    """`jina flow --uses FILE` of a Flow with a key must not run open because a variable is missing."""
    with pytest.raises(AssertionError, match="must not start without a key: set RUNGPT_API_KEY"):
        start_stack(require_key=True)


@pytest.mark.parametrize(
    ("settings", "env", "says"),
    [
        ({}, {"RUNGPT_API_KEY": ""}, "RUNGPT_API_KEY: a key has"),
        ({"api_key_file": "/no/such/file"}, {}, "/no/such/file cannot be read"),
        ({"cors_origins": ["app.example.com"]}, {}, "--cors-origin app.example.com"),
    ],
)
def test_a_gateway_with_a_setting_that_cannot_be_says_so_in_a_line(
    start_stack: Any, settings: dict[str, Any], env: dict[str, str], says: str
) -> None:
    with pytest.raises(AssertionError, match=re.escape(says)) as raised:
        start_stack(env=env, **settings)
    assert "Traceback" not in str(raised.value)


def test_no_key_is_in_a_log_or_a_command_line(keyed: Any) -> None:
    """This test comes last, after all requests above."""
    assert not [key for key in (OWN, ALICE, WRONG) if key in keyed.log]
    for process in keyed.processes.values():
        arguments = psutil.Process(process.pid).cmdline()
        assert not [key for key in (OWN, ALICE) if key in " ".join(arguments)]
