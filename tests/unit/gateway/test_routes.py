"""The HTTP app's routes as clients of other servers write them: HEAD, slashes at the end, near misses."""

from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from run_gpt.config import GatewayConfig
from run_gpt.gateway.front import PAGES, front
from run_gpt.gateway.http import build_app
from run_gpt.gateway.http_access import guarded
from run_gpt.gateway.proxies import Proxies
from run_gpt.gateway.service import Service


class Pool:
    """A pool with the model `org/name` in memory."""

    ready = sure = (object(),)
    replicas = (
        SimpleNamespace(
            state="ready",
            loads=False,
            status=SimpleNamespace(
                aliases=["short"], adapters=["lora"], precision="fp32", sampling={}, memory=1, why=None
            ),
        ),
    )
    adapters = SimpleNamespace(applied=list)
    model, context_length, watched = "org/name", 96, True


def client(**config: Any) -> httpx.AsyncClient:
    settings = GatewayConfig(**config)
    app = guarded(build_app(Service([Pool()], settings)), settings, None, lambda *_: None)  # type: ignore[list-item]
    return httpx.AsyncClient(transport=httpx.ASGITransport(front(app, Proxies())), base_url="http://localhost")


PATHS = sorted(
    route.path
    for route in build_app(SimpleNamespace(config=GatewayConfig())).routes  # type: ignore[arg-type]
    if "GET" in route.methods and "{" not in route.path and route.path not in ("/adapters", "/metrics")
)


@pytest.mark.parametrize(
    "path", [*PATHS, "/v1/models/org/name", "/v1/models/org%2Fname", "/v1/models/short", "/v1/models/lora"]
)
async def test_head_and_a_slash_at_the_end_are_the_same_route(path: str) -> None:
    async with client() as asking:
        plain = await asking.get(path)
        head = await asking.head(path)
        assert (head.status_code, told(head)) == (plain.status_code, told(plain))
        assert head.headers.get("content-length", "0") == str(len(plain.content))
        if path.rstrip("/") not in PAGES:
            slashed = await asking.get(f"{path}/")
            assert (slashed.status_code, slashed.content) == (plain.status_code, plain.content)


def told(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name != "x-request-id"}


@pytest.mark.parametrize("page", PAGES)
async def test_a_page_with_a_slash_leads_to_the_page(page: str) -> None:
    """Its links are relative, and would lead to nothing."""
    async with client() as asking:
        leads = await asking.get(f"{page}/")
        assert (leads.status_code, leads.headers["location"]) == (308, f"..{page}")


async def test_models_their_other_names_and_their_adapters_are_listed() -> None:
    async with client() as asking:
        models = (await asking.get("/v1/models")).json()["data"]
    assert [(model["id"], model["root"], model["parent"]) for model in models] == [
        ("org/name", "org/name", None),
        ("short", "org/name", None),
        ("lora", "org/name", "org/name"),
    ]


async def test_the_version_is_told() -> None:
    async with client() as asking:
        answer = (await asking.get("/version")).json()
    assert set(answer) == {"name", "version", "api"}


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/v1/chat", "/chat"),
        ("/V1/Models", "/v1/models"),
        ("//v1//models", "/v1/models"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/healthz", "/health"),
        ("/v1/models//", None),
    ],
)
async def test_a_path_that_is_no_route_names_the_near_one(path: str, meant: str | None) -> None:
    async with client() as asking:
        answer = await asking.get(path)
    if meant is None:
        assert answer.status_code == 200
        return
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], set(error)) == (
        404,
        "unknown_endpoint",
        {"message", "type", "param", "code"},
    )
    assert f"did you mean {meant}" in error["message"]


async def test_a_path_far_from_every_route_gets_the_list() -> None:
    async with client() as asking:
        answer = await asking.get("/" + "x" * 5000)
    assert "/v1/chat/completions, " in answer.json()["error"]["message"]
    assert len(answer.content) < 2000


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("POST", "/v1/models/org/name", "GET, HEAD"), ("PUT", "/chat", "POST")]
)
async def test_a_wrong_method_names_the_right_ones(method: str, path: str, allowed: str) -> None:
    async with client() as asking:
        answer = await asking.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert allowed in answer.json()["error"]["message"]
