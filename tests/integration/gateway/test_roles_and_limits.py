"""Roles and limits of keys on both ports of a real gateway, and what an address with wrong keys gets."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

# isort: off
import run_gpt.process._jina  # noqa: F401  (before jina)

# isort: on
import grpc
import httpx
import pytest
from docarray import DocList
from jina.proto import jina_pb2_grpc
from jina.types.request.data import DataRequest
from waiting import wait_until

from run_gpt.api import documents
from run_gpt.api.schema import GenerateRequest
from run_gpt.client import Client
from run_gpt.errors import AuthenticationError, Forbidden, RateLimited, RequestError

ROLES = {"boss": "role=admin", "old": "", "user": "role=user", "eye": "role=monitor"}
LIMITED = {
    "one": "role=user requests=1",
    "few": "role=user tokens=20",
    "cut": "role=user tokens=12",
    "two": "requests=2",
}
RIGHTS = ROLES | LIMITED
CHANGES: dict[str, Callable[[Any], Any]] = {
    "/adapters/load": lambda model: model.load_adapter("a", "b"),
    "/adapters/unload": lambda model: model.unload_adapter("a"),
    "/models/load": lambda model: model.load(),
    "/models/unload": lambda model: model.unload(),
}


def key_of(name: str) -> str:
    return f"the-key-of-{name}"


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key_of(name)}"}


def script(**fields: Any) -> str:
    return json.dumps(fields)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, free_ports: Any, a_stack: Any) -> Iterator[Any]:
    """Yield a gateway with a key for each entry of RIGHTS."""
    folder = tmp_path_factory.mktemp("roles")
    (folder / "keys").write_text("".join(f"{name}: {key_of(name)} {rights}\n" for name, rights in RIGHTS.items()))
    settings = {"api_key_file": str(folder / "keys"), "runtime_adapters": True, "log_requests": True}
    with a_stack(folder, free_ports(3), 1, settings, "ready") as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def open_model(gateway: Any, request: pytest.FixtureRequest) -> Any:
    """Return `open_model(name)`: the model as the holder of this key sees it, over one of the ports."""
    endpoint = gateway.http if request.param == "http" else f"grpc://{gateway.grpc}"

    def opened(name: str) -> Any:
        return Client(key_of(name)).get_model("scripted", endpoint=endpoint)

    return opened


def refusal(call: Callable[[], Any]) -> RequestError | None:
    """Return the error of a call, if it has one."""
    try:
        call()
    except RequestError as error:
        return error
    return None


@pytest.mark.parametrize("path", CHANGES)
def test_only_an_admin_changes_what_is_served(open_model: Any, path: str) -> None:
    for name in ROLES:
        with open_model(name) as model:
            error = refusal(lambda model=model: CHANGES[path](model))
        if name in ("user", "eye"):
            assert isinstance(error, Forbidden), name
            assert f"role={'monitor' if name == 'eye' else 'user'}" in error.message
        else:
            assert not isinstance(error, Forbidden), name


def test_a_monitor_sends_no_requests_and_the_others_do(open_model: Any) -> None:
    for name in ROLES:
        with open_model(name) as model:
            calls = [
                lambda model=model: model.generate(script(words=["a"])),
                lambda model=model: list(model.generate_stream(script(words=["a"]))),
                lambda model=model: model.chat([{"role": "user", "content": script(words=["a"])}]),
            ]
            assert [isinstance(refusal(call), Forbidden) for call in calls] == [name == "eye"] * 3, name


def test_roles_hold_for_openais_routes_and_for_metrics(gateway: Any) -> None:
    body = {"prompt": script(words=["a"]), "max_tokens": 3}
    for name in ROLES:
        with httpx.Client(base_url=gateway.http, headers=bearer(name)) as client:
            assert client.post("/v1/completions", json=body).status_code == (403 if name == "eye" else 200)
            assert client.get("/v1/models").status_code == 200
            for method in ("GET", "HEAD"):
                assert client.request(method, "/metrics").status_code == (403 if name == "user" else 200), name


def test_workers_addresses_are_for_holders_of_keys(gateway: Any) -> None:
    address = f"127.0.0.1:{gateway.flow['executors'][0]['port'][0]}"
    for headers in ({}, {"Authorization": "Bearer wrong-key"}, {"Authorization": "Basic"}):
        answer = httpx.get(f"{gateway.http}/ready", headers=headers)
        assert (answer.status_code, answer.json()["replicas"]) == (200, {"ready": 1, "total": 1})
        assert address not in answer.text
    known = httpx.get(f"{gateway.http}/ready", headers=bearer("user")).json()
    assert [replica["address"] for replica in known["replicas"]["each"]] == [address]


@contextmanager
def hanging(gateway: Any, name: str) -> Iterator[None]:
    """Run a stream that does not end."""
    body = {"prompt": script(words=["a"], then="hang")}
    with httpx.stream("POST", f"{gateway.http}/generate_stream", json=body, headers=bearer(name)) as response:
        lines = response.iter_lines()  # without a name it would end, and the request with it
        next(lines)
        yield


def test_a_key_has_no_more_requests_at_once_than_its_limit(gateway: Any, open_model: Any) -> None:
    words = script(words=["a"])
    with open_model("one") as model, open_model("two") as other:
        with hanging(gateway, "one"):
            for call in (lambda: model.generate(words), lambda: list(model.generate_stream(words))):
                error = refusal(call)
                assert isinstance(error, RateLimited)
                assert "requests=1" in error.message
            assert other.generate(words).text == "a"
            answer = httpx.post(f"{gateway.http}/v1/completions", json={"prompt": words}, headers=bearer("one"))
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert int(answer.headers["retry-after"]) >= 1
            assert httpx.get(f"{gateway.http}/v1/models", headers=bearer("one")).status_code == 200
        assert wait_until(lambda: refusal(lambda: model.generate(words)) is None)


async def test_the_documents_of_one_message_have_their_turns(gateway: Any) -> None:
    """With a 429 a client with more documents than its limit would never get an answer."""
    kind = documents.document_class(GenerateRequest)
    request = DataRequest()
    request.header.exec_endpoint = "/generate"
    request.data.docs = DocList[kind]([kind(prompt=script(words=[str(i)])) for i in range(5)])
    metadata = (("authorization", bearer("one")["Authorization"]),)
    async with grpc.aio.insecure_channel(gateway.grpc) as channel:
        stub = jina_pb2_grpc.JinaSingleDataRequestRPCStub(channel)
        answer = await stub.process_single_data(request, metadata=metadata)
        assert len(answer.proto.data.docs.docs) == 5


async def test_a_refusal_over_grpc_says_when_to_try_again(gateway: Any) -> None:
    kind = documents.document_class(GenerateRequest)
    request = DataRequest()
    request.header.exec_endpoint = "/generate"
    request.data.docs = DocList[kind]([kind(prompt=script(words=["a"]))])
    metadata = (("authorization", bearer("one")["Authorization"]),)
    with hanging(gateway, "one"):
        async with grpc.aio.insecure_channel(gateway.grpc) as channel:
            stub = jina_pb2_grpc.JinaSingleDataRequestRPCStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.process_single_data(request, metadata=metadata)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(raised.value.trailing_metadata()["retry-after"]) >= 1


def test_a_key_that_has_used_its_tokens_waits_and_the_metrics_show_each_key(gateway: Any) -> None:
    """The prompt of a script has 9 tokens. A stream that is cut counts what had come by then."""
    body = {"prompt": script(words=["a"] * 20)}
    with httpx.Client(base_url=gateway.http, headers=bearer("few")) as client:
        assert client.post("/generate", json=body).status_code == 200
        for path in ("/generate", "/generate_stream", "/v1/completions"):
            answer = client.post(path, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert 1 <= int(answer.headers["retry-after"]) <= 31
    with Client(key_of("few")).get_model(endpoint=f"grpc://{gateway.grpc}") as model, pytest.raises(RateLimited):
        model.generate(body["prompt"])
    stream = {"prompt": script(words=["a"] * 5, then="hang")}
    with httpx.stream("POST", f"{gateway.http}/generate_stream", json=stream, headers=bearer("cut")) as response:
        lines = response.iter_lines()
        while '"completion_tokens":5' not in next(lines):
            pass

    def metrics() -> str:
        return httpx.get(f"{gateway.http}/metrics", headers=bearer("eye")).text

    wait_until(lambda: 'key_in_flight{key="cut"} 0' in metrics())
    assert httpx.post(f"{gateway.http}/generate", json=body, headers=bearer("cut")).status_code == 429
    found = {match[1]: float(match[2]) for match in re.finditer(r"^rungpt_gateway_(key_\S+) (\S+)$", metrics(), re.M)}
    assert found['key_tokens_total{key="few"}'] == 29
    assert found['key_tokens_total{key="cut"}'] == 14
    assert found['key_limit{key="few",limit="tokens"}'] == 20
    assert found['key_limited_total{key="few",limit="tokens"}'] == 4
    assert found['key_limit{key="one",limit="requests"}'] == 1
    assert found['key_in_flight{key="few"}'] == 0


def test_wrong_keys_are_answered_ever_later_and_right_ones_as_before(gateway: Any) -> None:
    """The client of the wrong keys has an address of its own, and stands with it in the log."""

    def taken(name: str, address: str) -> float:
        with httpx.Client(transport=httpx.HTTPTransport(local_address=address)) as client:
            before = time.monotonic()
            client.get(f"{gateway.http}/v1/models", headers=bearer(name))
            return time.monotonic() - before

    taken("user", "127.0.0.7")
    wrong = [taken(f"nobody-{i}", "127.0.0.7") for i in range(9)]
    assert min(wrong[:5]) < 0.5 < wrong[-1], wrong
    assert min(taken("user", "127.0.0.7") for _ in range(3)) < 0.5
    assert min(taken("old", "127.0.0.8") for _ in range(3)) < 0.5
    lines = [line for line in gateway.log_of("gateway").splitlines() if "/v1/models 401" in line]
    assert len([line for line in lines if line.endswith("error=invalid_api_key address=127.0.0.7")]) == 9
    assert "127.0.0.7 has sent 5 wrong keys" in gateway.log_of("gateway")
    assert "address=127.0.0.8" not in gateway.log_of("gateway")


def test_a_wrong_key_over_grpc_has_its_address_in_the_log_and_its_delay(gateway: Any) -> None:
    with Client("wrong-key-7").get_model(endpoint=f"grpc://{gateway.grpc}") as model:
        before = time.monotonic()
        for _ in range(8):
            with suppress(AuthenticationError):
                model.generate("x")
        assert time.monotonic() - before > 0.5
    ends = re.compile(r"gRPC \S+ UNAUTHENTICATED .* error=invalid_api_key address=(127\.0\.0\.1|::1)$", re.M)
    assert wait_until(lambda: len(ends.findall(gateway.log_of("gateway"))) >= 8)
