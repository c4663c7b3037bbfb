"""Extreme values in every field of every request, and in the headers: none is a fault of the server."""

import itertools
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx

from run_gpt.api.endpoints import ENDPOINTS
from run_gpt.client import wire as messages
from studies.campaign import wire
from studies.campaign.finding import Finding
from studies.campaign.site import Site

NUMBERS = (2**31 - 1, 2**31, 2**32, 2**63, 10**30, -1, -(2**31) - 1, 1e308, 1e-320)
OTHERS: tuple[Any, ...] = ("", "9" * 5000, "\ud800", "\0", [], [[]], [2**31], [None], {}, {"9" * 5000: 1}, True, None)
GRPC_NUMBERS = (2.0**31, 2.0**32, 2.0**63, 1e30, -1.0, -(2.0**31) - 1)
HEADERS: tuple[dict[str, str], ...] = (
    {"origin": "http://["},
    {"origin": "x" * 4000},
    {"host": "["},
    {"host": ""},
    {"x-request-id": "x" * 4000},
    {"authorization": "Bearer " + "x" * 4000},
    {"authorization": "Basic !!!"},
    {"content-type": "x" * 4000},
    {"content-length": "9" * 30},
)
PATHS = [path for path, endpoint in ENDPOINTS.items() if endpoint.request and not path.startswith("/models/")]
"""Paths of requests; those that unload the model are left out."""
LATE_SECONDS = 40.0


def bodies(path: str) -> Iterator[dict[str, Any]]:
    """Yield requests to a path with one extreme value each, in every field."""
    fields = ENDPOINTS[path].request.model_fields
    small: dict[str, Any] = {
        "prompt": "x",
        "messages": [{"role": "user", "content": "x"}],
        "input": "x",
        "max_new_tokens": 1,
        "max_tokens": 1,
        "max_output_tokens": 1,
    }
    base = {name: value for name, value in small.items() if name in fields}
    for name, value in itertools.product(fields, (*NUMBERS, *OTHERS)):
        yield {**base, name: value}


async def attack(site: Site, seconds: float) -> list[Finding]:
    """Send the values in a random order until the time is up or all are sent."""
    wanted = [(path, body) for path in PATHS if "{" not in path for body in bodies(path)]
    random.Random(0).shuffle(wanted)
    deadline, sent, faults = time.monotonic() + 0.7 * seconds, 0, set()
    async with site.client(LATE_SECONDS) as client:
        for path, body in wanted:
            if time.monotonic() > deadline:
                break
            sent += 1
            if fault := await _fault(client, path, body):
                faults.add(f"{path} {_changed(body)}: {fault}")
    headers = [str(one) for one in HEADERS if await _header_fault(site, one)]
    figure = f"{sent} of {len(wanted)} bodies, {len(HEADERS)} headers: {len(faults) + len(headers)} faults"
    shown = "; ".join([*sorted(faults), *headers][:5])[:400]
    http = Finding("no value in a request is a 500", figure + (f", such as {shown}" if shown else ""), not shown)
    return [http, await _over_grpc(site)]


def _changed(body: dict[str, Any]) -> str:
    name = next(reversed(body))
    return f"{name}={json.dumps(body[name])[:20]}"


async def _fault(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> str | None:
    """Return the status from 500 on, or the error without one."""
    try:
        # A stream's status says enough: its connection is closed after that.
        async with client.stream("POST", path, content=json.dumps(body)) as response:
            return str(response.status_code) if response.status_code >= 500 else None
    except httpx.HTTPError as error:
        return type(error).__name__


async def _header_fault(site: Site, headers: dict[str, str]) -> bool:
    """Return True for a status from 500 on, or none in time."""
    connection = await wire.connect(site)
    try:
        await connection.send(wire.post(site, "/tokenize", {"prompt": "x"}, **headers))
        status = await connection.status(10)
        return status is not None and status >= 500
    except TimeoutError:
        return True
    finally:
        connection.close()


async def _over_grpc(site: Site) -> Finding:
    """Send large numbers in every field of a document."""
    codes: dict[str, str] = {}
    async with wire.channel(site) as channel:
        for name, value in itertools.product(ENDPOINTS["/generate"].request.model_fields, GRPC_NUMBERS):
            fields = {"prompt": "x", "max_new_tokens": 1, name: value}
            data = {"docs": {"docs": [messages.document(fields)]}}
            message = messages.DataRequest(header={"exec_endpoint": "/generate"}, data=data).SerializeToString()
            call = channel.unary_unary(wire.UNARY)(message, metadata=wire.metadata(site), timeout=LATE_SECONDS)
            codes[f"{name}={value:g}"] = (await wire.code_of(call)).name
    fine = {grpc.StatusCode.OK.name, grpc.StatusCode.INVALID_ARGUMENT.name, grpc.StatusCode.NOT_FOUND.name}
    bad = [f"{name}: {code}" for name, code in codes.items() if code not in fine]
    figure = f"{len(codes)} messages: {len(bad)} faults" + (f", such as {'; '.join(bad[:5])}" if bad else "")
    return Finding("no number in a gRPC message is an INTERNAL", figure, not bad)
