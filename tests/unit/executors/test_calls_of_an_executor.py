"""Calls that an executor takes: without this check anyone who reaches its port needs no key."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

import run_gpt.process._jina  # noqa: F401  (before jina)
from run_gpt.api.adapters import ListAdaptersRequest, LoadAdapterRequest, UnloadAdapterRequest
from run_gpt.config import AdminConfig
from run_gpt.errors import Forbidden, Unavailable
from run_gpt.executors.causal_lm.jina_server import HEALTH, JINAS, REFLECTION, Calls
from run_gpt.executors.causal_lm.service import ModelService
from run_gpt.link.calling import Link, OtherVersion
from run_gpt.link.frames import METHOD, TOKEN, Start
from run_gpt.link.serving import LinkServer, Reply

SNAPSHOTS = (
    "/jina.JinaExecutorSnapshot/snapshot",
    "/jina.JinaExecutorSnapshotProgress/snapshot_status",
    "/jina.JinaExecutorRestore/restore",
    "/jina.JinaExecutorRestoreProgress/restore_status",
)
OTHERS = (*SNAPSHOTS, "/jina.JinaGatewayDryRunRPC/dry_run", "/made.up/Method", f"{METHOD}/", METHOD.lower())
OK, UNIMPLEMENTED, UNAUTHENTICATED = (
    grpc.StatusCode.OK,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
)


class Everything(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Stand-in for Jina's services: answers each method with what it reads first."""

    def service(self, details: Any) -> Any:
        async def answer(incoming: AsyncIterator[bytes], context: Any) -> None:
            await context.write(await anext(incoming))

        return grpc.stream_stream_rpc_method_handler(answer)


async def link(start: Start, reply: Reply) -> None:
    reply.put(b"answer")


@asynccontextmanager
async def executor(token: str | None) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(interceptors=[Calls({METHOD: LinkServer(link).handler}, token)])
    server.add_generic_rpc_handlers((Everything(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


async def code_of(channel: grpc.aio.Channel, method: str, *metadata: tuple[str, Any]) -> grpc.StatusCode:
    try:
        await channel.unary_unary(method)(b"x", metadata=metadata, timeout=20)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return OK


@pytest.mark.parametrize(
    "metadata",
    [[], [(TOKEN, "")], [(TOKEN, "secreT")], [("authorization", "Bearer secret")], [(f"{TOKEN}-bin", b"secret")]],
    ids=str,
)
async def test_no_call_but_for_health_is_taken_without_the_token(metadata: list[tuple[str, Any]]) -> None:
    async with executor("secret") as channel:
        for method in (METHOD, *JINAS, *REFLECTION, *OTHERS):
            assert await code_of(channel, method, *metadata) is UNAUTHENTICATED, method
        for method in HEALTH:
            assert await code_of(channel, method, *metadata) is OK, method


@pytest.mark.parametrize(("token", "reflection"), [("secret", UNIMPLEMENTED), (None, OK)])
async def test_with_the_token_only_listed_methods_are_taken(token: str | None, reflection: grpc.StatusCode) -> None:
    """Without a token Jina's own gateway may be the caller: it needs reflection, and nobody needs snapshots."""
    async with executor(token) as channel:
        expected = (
            dict.fromkeys(JINAS, OK) | dict.fromkeys(REFLECTION, reflection) | dict.fromkeys(OTHERS, UNIMPLEMENTED)
        )
        found = {method: await code_of(channel, method, (TOKEN, "secret")) for method in expected}
        assert found == expected


async def test_a_gateway_with_the_token_is_answered_and_another_one_is_told_why() -> None:
    async with executor("secret") as channel:
        ours = Link(channel, "secret")
        exchange = await ours.start("/x", b"", request_id="r", trace={})
        await exchange.ended
        assert (exchange.error, exchange.take()) == (None, [b"answer"])
        await ours.close()
        for token in (None, "other"):
            with pytest.raises(OtherVersion, match=r"another token than this gateway: set \$RUNGPT_EXECUTOR_TOKEN"):
                await Link(channel, token).start("/x", b"", request_id="r", trace={})


async def test_an_executor_changes_adapters_only_if_it_was_started_for_that() -> None:
    """Its callers are gateways, and Jina's clients: neither decides what this server allows."""
    changes = [LoadAdapterRequest.parse({"name": "a", "path": "/"}), UnloadAdapterRequest.parse({"name": "a"})]

    class NoModel:
        @property
        def model(self) -> Any:
            raise Unavailable("no model")

    def service(*, allowed: bool) -> ModelService:
        admin = AdminConfig(runtime_adapters=allowed)
        return ModelService(cast("Any", NoModel()), cast("Any", SimpleNamespace()), admin)

    for request in changes:
        with pytest.raises(Forbidden, match="--runtime-adapters"):
            await service(allowed=False).answer(request)
        with pytest.raises(Unavailable):
            await service(allowed=True).answer(request)
    with pytest.raises(Unavailable):
        await service(allowed=False).answer(ListAdaptersRequest.parse({}))
