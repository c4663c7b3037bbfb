"""Names by which requests may call the server: a page whose name was rebound to this machine must get nothing."""

from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from run_gpt.config import GatewayConfig
from run_gpt.errors import SetupError
from run_gpt.gateway.hosts import check_hosts, is_loopback
from run_gpt.gateway.http_access import check_origins, guarded
from run_gpt.gateway.keys import Keys

KEY = "the-key-of-the-test"


async def status(
    headers: list[tuple[str, str]],
    *,
    server: str = "127.0.0.1",
    method: str = "GET",
    path: str = "/generate",
    version: str = "1.1",
    keys: Keys | None = None,
    **settings: Any,
) -> int:
    """Return the status of the answer to a request."""
    app = guarded(PlainTextResponse("x"), GatewayConfig(**settings), keys, lambda record, status: None)
    scope = {
        "type": "http",
        "http_version": version,
        "method": method,
        "path": path,
        "server": (server, 52000),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
    }
    statuses = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    await app(scope, receive, send)
    return int(statuses[0])


OWN = ["127.0.0.1", "127.0.0.1:52000", "localhost:1", "LOCALHOST", "a.localhost", "localhost.", "[::1]:52000"]
FOREIGN = ["evil.example", "evil.example:52000", "localhost.evil.example", "evillocalhost", "127.0.0.1.nip.io", "21307"]
MALFORMED = ["", "[", "[::1", "a b", "a/b", "a:b:c", "user@localhost", "localhost:x", "localhost:123456", "é", "a,b"]


@pytest.mark.parametrize("server", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "127.8.8.8"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD", "TRACE"])
async def test_a_keyless_server_on_loopback_takes_its_own_names_only(server: str, method: str) -> None:
    for path in ("/generate", "/health", "/ready", "/metrics", "/no/such"):
        for host in OWN:
            assert await status([("host", host)], server=server, method=method, path=path) == 200, host
        for host in FOREIGN:
            assert await status([("host", host)], server=server, method=method, path=path) == 403, host
            rebound = [("host", host), ("origin", f"http://{host}")]
            assert await status(rebound, server=server, method=method, path=path) == 403, host


@pytest.mark.parametrize("host", MALFORMED)
async def test_a_malformed_host_is_a_400_on_every_server(host: str) -> None:
    for settings in ({}, {"server": "10.0.0.1"}, {"allowed_hosts": ("*",)}, {"keys": Keys(KEY)}):
        assert await status([("host", host)], **settings) == 400  # type: ignore[arg-type]


async def test_one_host_is_needed_but_in_http_1_0() -> None:
    assert await status([]) == 400
    assert await status([], version="1.0") == 200
    assert await status([("host", "localhost"), ("host", "localhost")]) == 400


async def test_allowed_names_pass_and_then_no_others() -> None:
    for server in ("127.0.0.1", "10.0.0.1"):
        allowed = {"server": server, "allowed_hosts": ("gpt.example",)}
        assert await status([("host", "GPT.example:443")], **allowed) == 200  # type: ignore[arg-type]
        assert await status([("host", "localhost")], **allowed) == 200  # type: ignore[arg-type]
        assert await status([("host", "a.gpt.example")], **allowed) == 403  # type: ignore[arg-type]
        assert await status([("host", "x.example")], server=server, allowed_hosts=("*",)) == 200


async def test_a_server_on_another_interface_or_with_a_key_takes_any_name() -> None:
    assert await status([("host", "gpu-box.lan")], server="10.0.0.1") == 200
    assert await status([("host", "gpu-box.lan")], keys=Keys(KEY)) == 401


@pytest.mark.parametrize("origin", ["http://[", "http://]", "[", "null", "http://a:b", "\xff", "http://" + "[" * 9000])
async def test_an_origin_of_any_form_is_refused(origin: str) -> None:
    """An Origin that could not be parsed was a 500."""
    assert await status([("host", "localhost"), ("origin", origin)]) == 403


async def test_a_page_of_the_server_itself_may_send_requests() -> None:
    for origin in ("http://localhost:52000", "https://localhost:52000"):
        assert await status([("host", "LocalHost:52000"), ("origin", origin)]) == 200


def test_settings_that_never_match_are_refused_at_the_start() -> None:
    check_hosts(["gpt.example", "gpu_box", "[::1]", "*"])
    for name in ("http://a", "a:80", "A.example", "", "a/", "*.a", "["):
        with pytest.raises(SetupError, match="--allowed-host"):
            check_hosts([name])
    for origin in ("http://[", "https://a b", "http://a:x"):
        with pytest.raises(SetupError, match="--cors-origin"):
            check_origins([origin])


def test_addresses_that_are_not_loopback() -> None:
    assert not any(map(is_loopback, ("0.0.0.0", "10.0.0.1", "::", "fe80::1", "testserver", "")))
