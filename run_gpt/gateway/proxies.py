"""The addresses of clients behind proxies that the server trusts."""

from collections.abc import Iterable, Sequence
from ipaddress import ip_address, ip_network

from run_gpt.errors import SetupError
from run_gpt.gateway.guesses import client_address

FORWARDED = "x-forwarded-for"
"""Header, and key of gRPC's metadata, with the addresses that a request came through, the client's first."""
MOST_HOPS = 16
"""Most proxies in a row that are looked at."""


class Proxies:
    """Proxies whose word about their clients' addresses is taken: IP addresses, or networks such as 10.0.0.0/8.

    Raises SetupError for a text that is neither.
    """

    def __init__(self, trusted: Sequence[str] = ()):
        try:
            self._networks = [ip_network(address) for address in trusted]
        except ValueError as error:
            raise SetupError(f"--trusted-proxy: {error}: give an address or a network, such as 10.0.0.0/8") from None

    def trusts(self, address: str) -> bool:
        """Return True for the IP address of a trusted proxy, in any form."""
        try:
            parsed = ip_address(client_address(address))
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)

    def client(self, peer: str | None, forwarded: Iterable[str]) -> str:
        """Return the address of a client: that of the connection's `peer`, or the one that a trusted proxy names.

        `forwarded`: values of the header FORWARDED. The last address in it that is no trusted proxy is the client's:
        everybody may write what stands before it.
        """
        address = client_address(peer)
        for hop in reversed(",".join(forwarded).rsplit(",", MOST_HOPS)[-MOST_HOPS:]):
            if not hop.strip() or not self.trusts(address):
                break
            address = client_address(_host(hop.strip()))
        return address


def _host(hop: str) -> str:
    """Return the address in an entry, which some proxies write with its port."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
