"""TLS between a gateway and its executors: only a certificate of the authority opens an executor's port."""

import os
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from certificates import write_executor_tls
from waiting import wait_until

from run_gpt.flows import healthcheck
from run_gpt.process.executor_tls import CHANNEL_OPTIONS, ExecutorTLS, executor_tls

HEALTH = "/grpc.health.v1.Health/Check"
OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]


def asked(channel: Any) -> Any:
    """Return the answer to a call that needs no token, or the code of its refusal."""
    with channel:
        try:
            return channel.unary_unary(HEALTH)(b"", timeout=10)
        except grpc.RpcError as error:
            return error.code()


def secure(address: str, *parts: bytes) -> Any:
    credentials = grpc.ssl_channel_credentials(*parts)
    return grpc.secure_channel(address, credentials, options=[*OPTIONS, *CHANNEL_OPTIONS])


def test_executors_take_calls_of_certificates_of_their_authority_only(
    tmp_path: Path, start_stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = write_executor_tls(tmp_path / "tls"), write_executor_tls(tmp_path / "other")
    stack = start_stack(env={"RUNGPT_EXECUTOR_TLS": str(folder)})
    assert httpx.post(f"{stack.http}/generate", json={"prompt": "{}"}, timeout=30).status_code == 200
    address = f"127.0.0.1:{stack.flow['executors'][0]['port'][0]}"
    ours, theirs = ExecutorTLS(folder), ExecutorTLS(other)
    refused = grpc.StatusCode.UNAVAILABLE
    assert asked(grpc.insecure_channel(address, options=OPTIONS)) == refused
    assert asked(secure(address, ours.current()[0])) == refused, "no certificate"
    assert asked(secure(address, ours.current()[0], *theirs.current()[1:])) == refused, "another authority's"
    assert asked(secure(address, theirs.current()[0], *ours.current()[1:])) == refused, "the caller checks, too"
    assert asked(secure(address, *ours.current())) == b"\x08\x01"

    monkeypatch.setenv("RUNGPT_EXECUTOR_TLS", str(folder))
    executor_tls.cache_clear()
    try:
        assert healthcheck.executor_problem(int(address.split(":")[1])) is None
    finally:
        monkeypatch.undo()
        executor_tls.cache_clear()

    for name in ("ca.crt", "tls.crt", "tls.key"):  # the authority itself is another one: all connections are anew
        os.replace(other / name, folder / name)
    stack.kill("executor0")
    stack.start("executor", "0")
    wait_until(lambda: httpx.post(f"{stack.http}/generate", json={"prompt": "{}"}, timeout=30).status_code == 200, 60)
    assert asked(secure(address, *theirs.current())) == b"\x08\x01"
