"""The addresses of clients: nobody but a trusted proxy may choose one."""

from typing import Any

import pytest

from run_gpt.errors import SetupError
from run_gpt.gateway.front import front
from run_gpt.gateway.guesses import UNKNOWN
from run_gpt.gateway.open_connections import OpenConnections
from run_gpt.gateway.proxies import MOST_HOPS, Proxies

PROXIES = Proxies(["10.0.0.0/8", "127.0.0.1", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", ["198.51.100.1"], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["203.0.113.9, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["203.0.113.9", "198.51.100.1 , 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("::ffff:10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("fd00::1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        ("10.0.0.1", ["203.0.113.9, nonsense"], UNKNOWN),
        ("10.0.0.1", ["203.0.113.9, _hidden, 10.0.0.2"], UNKNOWN),
        (None, ["198.51.100.1"], UNKNOWN),
        ("10.0.0.1", ["198.51.100.1" + ", 10.0.0.1" * 2 * MOST_HOPS], "10.0.0.1"),
    ],
)
def test_the_client_is_the_last_one_that_is_no_trusted_proxy(
    peer: str | None, forwarded: list[str], client: str
) -> None:
    """A client can write what stands before that, and so blame its wrong keys on another address."""
    assert PROXIES.client(peer, forwarded) == client


def test_by_default_nobody_is_trusted() -> None:
    """Programs on this machine could choose the address of their wrong keys."""
    assert Proxies().client("127.0.0.1", ["198.51.100.1"]) == "127.0.0.1"


@pytest.mark.parametrize("wrong", ["proxy.example", "10.0.0.1/8", "10.0.0.0/40", "", "*"])
def test_a_proxy_that_is_no_address_is_refused_at_the_start(wrong: str) -> None:
    with pytest.raises(SetupError, match="--trusted-proxy"):
        Proxies([wrong])


async def test_the_app_gets_the_client_that_the_proxy_names() -> None:
    scopes = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    headers = [(b"x-forwarded-for", b"198.51.100.1"), (b"x-forwarded-for", b"198.51.100.2")]
    for client in (("10.0.0.1", 5), ("192.0.2.1", 5), None):
        scope = {"type": "http", "path": "/x", "headers": headers, "client": client}
        await front(app, PROXIES)(scope, None, None)  # type: ignore[arg-type]
    assert [scope["client"][0] for scope in scopes] == ["198.51.100.2", "192.0.2.1", UNKNOWN]


def test_the_connections_of_a_proxy_are_not_those_of_one_client() -> None:
    class Connection:
        transport: Any = None

        def __init__(self, address: str):
            self.address = address

        def check(self, now: float) -> None:
            """See Waiting."""

    for address, taken in (("192.0.2.1", 4), ("10.0.0.1", 8)):
        connections = OpenConnections(8, PROXIES.trusts)
        assert sum(connections.add(Connection(address)) for _ in range(9)) == taken
