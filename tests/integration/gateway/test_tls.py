"""Both ports with a certificate: without TLS a key could be read on the network."""

import json
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import write_certificate
from waiting import wait_until

from run_gpt.client import Client
from run_gpt.errors import InvalidRequest, RunGPTError
from run_gpt.flows.healthcheck import gateway_problem, uses_tls

PROMPT = json.dumps({"words": ["a", "b"]})


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, free_ports: Any, a_stack: Any) -> Iterator[Any]:
    """Yield a gateway with a certificate, in `folder`."""
    folder = tmp_path_factory.mktemp("secure")
    cert, key = write_certificate(folder)
    with a_stack(folder, free_ports(3), 1, {"tls_cert": str(cert), "tls_key": str(key)}, "ready", ca=cert) as running:
        yield running


def endpoints(secure: Any) -> list[str]:
    return [secure.http, f"grpcs://{secure.grpc}"]


def serial(port: int, ca: Path) -> str:
    """Return the number of the certificate that a port shows."""
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["h2", "http/1.1"])
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    with plain, context.wrap_socket(plain, server_hostname="localhost") as connection:
        found = connection.getpeercert()
        assert found is not None
        return str(found["serialNumber"])


def test_our_client_speaks_tls_with_the_certificates_that_it_is_given(
    secure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert = secure.folder / "cert.pem"
    for endpoint in endpoints(secure):
        with Client(ca_file=cert).get_model(endpoint=endpoint) as model:
            assert model.generate(PROMPT).text == "ab"
            assert "".join(event.text for event in model.generate_stream(PROMPT)) == "ab"
        with Client().get_model(endpoint=endpoint) as model, pytest.raises(RunGPTError):
            model.generate(PROMPT, timeout=10)
    monkeypatch.setenv("RUNGPT_CA_FILE", str(cert))
    for endpoint in endpoints(secure):
        with Client().get_model(endpoint=endpoint) as model:
            assert model.generate(PROMPT).text == "ab"
    for bad in (secure.folder / "key.pem", secure.folder / "none.pem"):
        with pytest.raises(InvalidRequest, match="ca_file"):
            Client(ca_file=bad)


def test_no_port_speaks_without_tls(secure: Any) -> None:
    http, grpc = secure.flow["gateway"]["port"][1], secure.flow["gateway"]["port"][0]
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{http}/health", timeout=10)
    with Client().get_model(endpoint=f"grpc://127.0.0.1:{grpc}") as model, pytest.raises(RunGPTError):
        model.generate(PROMPT, timeout=10)
    assert "Handshake" not in secure.log_of("gateway"), "a line for each connection of strangers would fill the log"


def test_the_health_check_asks_over_tls(secure: Any) -> None:
    port = secure.flow["gateway"]["port"][1]
    assert uses_tls(secure.flow)
    assert gateway_problem(port, tls=True) is None
    assert gateway_problem(port) is not None


def test_a_new_certificate_counts_at_once_and_a_wrong_one_never(secure: Any, tmp_path: Path) -> None:
    """This test comes last: the others trust the first certificate."""
    ports = secure.flow["gateway"]["port"]
    before = serial(ports[1], secure.folder / "cert.pem")
    for name in ("cert.pem", "key.pem"):
        shutil.copy(secure.folder / name, tmp_path / f"old-{name}")
    write_certificate(tmp_path)
    (tmp_path / "key.pem").replace(secure.folder / "key.pem")  # not the certificate's yet
    wait_until(lambda: "the certificate that was read before stays" in secure.log_of("gateway"))
    assert {serial(port, tmp_path / "old-cert.pem") for port in ports} == {before}
    shutil.copy(tmp_path / "cert.pem", secure.folder / "cert.pem")
    wait_until(lambda: "has changed: new connections" in secure.log_of("gateway"))
    after = {serial(port, tmp_path / "cert.pem") for port in ports}
    assert len(after) == 1
    assert after != {before}
    for endpoint in endpoints(secure):
        with Client(ca_file=tmp_path / "cert.pem").get_model(endpoint=endpoint) as model:
            assert model.generate(PROMPT).text == "ab"
