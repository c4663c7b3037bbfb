"""Owns the check of a container's health: `python -P -m run_gpt.flows.healthcheck [gateway|executor]`.

It imports neither jina nor torch: an engine of containers runs it every few seconds, on the cores of the model.
"""

import argparse
import sys
from typing import Any

from run_gpt.config import EXECUTOR_PORT, LOOPBACK, ServeConfig
from run_gpt.errors import SetupError
from run_gpt.flows.ports import answers_ok, is_listening
from run_gpt.flows.reading import flow_of_environment
from run_gpt.process.executor_tls import CHANNEL_OPTIONS, executor_tls

_SECONDS = 3.0
_SERVING = b"\x08\x01"
"""HealthCheckResponse with the status SERVING."""


def main() -> int:
    """Return 0 if requests are answered here now; else 1, with the reason on stdout, which `docker inspect` shows."""
    parser = argparse.ArgumentParser(prog="python -m run_gpt.flows.healthcheck", description=__doc__)
    parser.add_argument("role", nargs="?", choices=("gateway", "executor"), help="default: the one that listens here")
    role = parser.parse_args().role
    try:
        problem = problem_of(role, flow_of_environment())
    except SetupError as error:
        problem = error.message
    print(problem or "serving")
    return 1 if problem else 0


def problem_of(role: str | None, flow: dict[str, Any] | None) -> str | None:
    """Return why the gateway or executor of this container does not serve, or None; without a role, check either."""
    http_port, executor_ports = ports_of(flow)
    if role is None:
        role = "gateway" if is_listening(LOOPBACK, http_port) else "executor"
    if role == "gateway":
        return gateway_problem(http_port, tls=uses_tls(flow))
    here = (port for port in executor_ports if is_listening(LOOPBACK, port))
    return executor_problem(next(here, executor_ports[0]))


def ports_of(flow: dict[str, Any] | None) -> tuple[int, list[int]]:
    """Return the gateway's HTTP port and all executors' ports in this container's Flow; the defaults without a Flow.

    A container runs one executor, and the Flow does not say which one.
    """
    if flow is None:
        return ServeConfig.http_port, [EXECUTOR_PORT]
    gateway = flow["gateway"]
    ports = [port for executor in flow["executors"] for port in executor["port"]]
    return gateway["port"][gateway["protocol"].index("http")], ports


def uses_tls(flow: dict[str, Any] | None) -> bool:
    """Return True when the gateway of this Flow has a certificate."""
    settings = {} if flow is None else flow["gateway"]["uses"].get("with", {})
    return settings.get("tls_cert") is not None


def gateway_problem(port: int, *, tls: bool = False) -> str | None:
    """Return why a gateway on this machine does not serve, or None. Asks its `/ready`, which needs no key."""
    if answers_ok(LOOPBACK, port, "/ready", tls=tls):
        return None
    return f"not ready on port {port}" if is_listening(LOOPBACK, port) else f"nothing listens on port {port}"


def executor_problem(port: int) -> str | None:
    """Return why an executor on this machine does not serve, or None. Asks gRPC's standard health service.

    An executor opens its port when the model is loaded.
    """
    if not is_listening(LOOPBACK, port):
        return f"nothing listens on port {port}: the model is loading"
    import grpc

    tls, address, options = executor_tls(), f"{LOOPBACK}:{port}", [("grpc.enable_http_proxy", 0)]
    with (
        grpc.insecure_channel(address, options=options)
        if tls is None
        else grpc.secure_channel(address, tls.channel_credentials(), options=[*options, *CHANNEL_OPTIONS])
    ) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")  # bytes in and out: saves importing protobuf
        try:
            answer = check(b"", timeout=_SECONDS)
        except grpc.RpcError as error:
            return f"no answer on port {port}: {error.code().name}"
    return None if answer == _SERVING else f"not serving on port {port}"


if __name__ == "__main__":
    sys.exit(main())
