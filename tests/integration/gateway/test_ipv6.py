"""Without these tests a server could be unreachable in a network with IPv6 only, for every `--host`."""

import socket
from typing import Any

import httpx
import pytest

from run_gpt.client import Client


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(("host", "reached_at"), [("::1", ["[::1]"]), ("::", ["[::1]", "127.0.0.1"])])
def test_http_and_grpc_listen_on_an_ipv6_address(
    stack: Any, bare_stack: Any, free_ports: Any, host: str, reached_at: list[str]
) -> None:
    grpc, http = free_ports(2)
    bare_stack.flow = stack.flow | {"gateway": stack.flow["gateway"] | {"host": host, "port": [grpc, http]}}
    bare_stack.start("gateway")
    if host == "::":  # the address that the stack uses
        bare_stack.wait_ready(1)
    else:
        transport = httpx.HTTPTransport(retries=100)  # with a growing pause
        with httpx.Client(transport=transport, timeout=60) as client:
            assert client.get(f"http://[::1]:{http}/ready").status_code == 200
    for address in reached_at:
        for endpoint in (f"http://{address}:{http}", f"grpc://{address}:{grpc}"):
            with Client().get_model(endpoint=endpoint) as model:
                assert model.generate('{"words": ["hello"]}').text == "hello"
