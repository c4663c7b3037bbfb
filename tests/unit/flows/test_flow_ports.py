"""Without these tests, a user whose port is taken could wait for a model to load, and then read a traceback."""

import socket

import pytest

from run_gpt.config import ServeConfig
from run_gpt.errors import PortInUse, SetupError
from run_gpt.flows.ports import check_port, free_ports, is_listening, local_host
from run_gpt.flows.server import resolve


def test_a_taken_port_is_named_with_the_option_that_changes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} is in use; .* --http-port"):
            resolve(ServeConfig(grpc_port=0, http_port=port))
        with pytest.raises(PortInUse, match="--grpc-port"):
            resolve(ServeConfig(grpc_port=port, http_port=0))


def test_a_port_taken_on_all_addresses_is_taken_on_loopback() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server, pytest.raises(PortInUse):
        check_port("127.0.0.1", server.getsockname()[1], "--http-port")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ServeConfig(grpc_port=70000), "70000 is not a port"),
        (ServeConfig(host="192.0.2.1"), "192.0.2.1 is not an address of this machine"),
        (ServeConfig(host="no such host"), "no such address: no such host"),
        (ServeConfig(grpc_port=5, http_port=5), "cannot share port 5"),
        (ServeConfig(replicas=0), "--replicas must be at least 1"),
    ],
)
def test_what_cannot_be_had_is_one_line(config: ServeConfig, words: str) -> None:
    with pytest.raises(SetupError, match=words) as caught:
        resolve(config)
    assert "\n" not in str(caught.value)


def test_port_zero_takes_free_ports() -> None:
    config = resolve(ServeConfig(grpc_port=0, http_port=0))
    assert config.grpc_port != config.http_port
    assert 0 not in (config.grpc_port, config.http_port)


def test_free_ports_differ_and_are_free() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert not any(is_listening("127.0.0.1", port) for port in ports)


def test_a_server_on_all_addresses_is_reached_on_loopback() -> None:
    assert [local_host(host) for host in ("0.0.0.0", "::", "10.1.2.3")] == ["127.0.0.1", "::1", "10.1.2.3"]
