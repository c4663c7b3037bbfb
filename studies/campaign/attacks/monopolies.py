"""Single requests that cost much: while they run, the gateway and the executors go on with other work."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from run_gpt.client import wire as messages
from studies.campaign import wire
from studies.campaign.finding import Finding
from studies.campaign.site import Site

MOST_SECONDS = 1.0
"""Longest wait for /health or /tokenize. A held event loop makes both wait; a busy machine only a little."""
LATE_SECONDS = 20.0


def _deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema, "b": {"type": "string", "maxLength": 9}}}
    return schema


def _post(path: str, body: Callable[[], dict[str, Any]], count: int = 1) -> Callable[[Site], Awaitable[str]]:
    async def send(site: Site) -> str:
        made = body()
        async with site.client(LATE_SECONDS) as client:
            answers = [_status(client, path, made) for _ in range(count)]
            return " ".join(sorted(set(await asyncio.gather(*answers))))

    return send


async def _status(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> str:
    try:
        return str((await client.post(path, json=body)).status_code)
    except httpx.HTTPError as error:
        return type(error).__name__


async def _documents(site: Site) -> str:
    """Send 30,000 documents in one gRPC message."""
    docs = [messages.document({"prompt": "x", "max_new_tokens": 1})] * 30_000
    data = {"docs": {"docs": docs}}
    message = messages.DataRequest(header={"exec_endpoint": "/generate"}, data=data).SerializeToString()
    async with wire.channel(site) as channel:
        call = channel.unary_unary(wire.UNARY)(message, metadata=wire.metadata(site), timeout=LATE_SECONDS)
        return str((await wire.code_of(call)).name)


_CHAT = {"role": "user", "content": "x"}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
MONOPOLIES: dict[str, Callable[[Site], Awaitable[str]]] = {
    "1.9 million ids": _post("/v1/completions", lambda: {"model": "model", "prompt": [1] * 1_900_000}),
    "4 MB of digits": _post("/generate", lambda: {"prompt": "7" * 4_000_000, "max_new_tokens": 1}),
    "4 MB to tokenise": _post("/tokenize", lambda: {"prompt": "7 " * 2_000_000}),
    "100,000 messages": _post("/chat", lambda: {"messages": [_CHAT] * 100_000}),
    "20,000 tools": _post("/chat", lambda: {"messages": [_CHAT], "tools": [_TOOL] * 20_000}),
    "a deep schema": _post("/generate", lambda: {"prompt": "x", "response_format": _form(_deep(60))}),
    "100,000 biases": _post("/generate", lambda: {"prompt": "x", "logit_bias": {str(i): 1 for i in range(100_000)}}),
    "30,000 documents": _documents,
    "logprobs 20 of 8 x 2,000 tokens": _post(
        "/generate",
        lambda: {"prompt": "x", "min_new_tokens": 2000, "max_new_tokens": 2000, "logprobs": 20},
        count=8,
    ),
}


def _form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}


async def attack(site: Site, seconds: float) -> list[Finding]:
    """Send each request once beside probes of both event loops. `seconds` only bounds the attack."""
    findings = []
    for name, send in MONOPOLIES.items():
        probing = {path: asyncio.ensure_future(_longest(site, path, body)) for path, body in PROBES.items()}
        await asyncio.sleep(0.05)
        status = await send(site)
        longest = {path: await _stopped(probe) for path, probe in probing.items()}
        figure = f"{status}; " + ", ".join(f"{path} after {took:.2f} s" for path, took in longest.items())
        held = max(longest.values()) < site.ease * MOST_SECONDS
        findings.append(Finding(f"no request holds the others: {name}", figure, held))
    return findings


PROBES: dict[str, dict[str, Any] | None] = {"/health": None, "/tokenize": {"prompt": "x"}}


async def _longest(site: Site, path: str, body: dict[str, Any] | None) -> float:
    """Ask again and again until cancelled, and return the longest time that an answer took."""
    longest, start = 0.0, time.monotonic()
    async with site.client(LATE_SECONDS) as client:
        try:
            while True:
                start = time.monotonic()
                await (client.get(path) if body is None else client.post(path, json=body))
                longest = max(longest, time.monotonic() - start)
                await asyncio.sleep(0.01)
        except (asyncio.CancelledError, httpx.HTTPError):
            return max(longest, time.monotonic() - start)


async def _stopped(probe: "asyncio.Future[float]") -> float:
    await asyncio.sleep(0.05)
    probe.cancel()
    return await probe
