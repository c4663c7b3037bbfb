"""The executor's endpoints on the inner wire: native requests in, answers and pieces out."""

import asyncio
from typing import cast

from pydantic import BaseModel, ValidationError

from run_gpt.api import check
from run_gpt.api.answers import Answer
from run_gpt.api.endpoints import ENDPOINTS, MODEL_ENDPOINTS
from run_gpt.api.json_text import check_size
from run_gpt.api.pieces import Whole
from run_gpt.api.request import AnyRequest, invalid_request
from run_gpt.api.schema import GenerateRequest, Request
from run_gpt.errors import UnknownEndpoint
from run_gpt.executors.causal_lm.service import ModelService
from run_gpt.link.frames import Start
from run_gpt.link.serving import Handle, Reply
from run_gpt.process import request_ids, tenants

SMALL = 16 * 1024
"""Most bytes of a request that is read on the event loop, in a few milliseconds."""


class LinkEndpoints:
    """Handler of requests over the inner wire, which `service` answers (see link.serving.Handle)."""

    def __init__(self, service: ModelService):
        self._service = service
        self._handlers: dict[str, Handle] = {
            "/status": self._status,
            "/metrics": self._metrics,
            "/load": self._load,
            "/unload": self._unload,
            check.PATH: self._check,
        }
        for endpoint in MODEL_ENDPOINTS:
            self._handlers[endpoint.path] = self._answer if endpoint.event is None else self._stream

    async def __call__(self, start: Start, reply: Reply) -> None:
        """Answer a request. Raises a RequestError."""
        request_ids.current.set(start.request_id)
        tenants.current.set(start.tenant)
        if (handle := self._handlers.get(start.path)) is None:
            raise UnknownEndpoint(f"an executor has no endpoint {start.path!r}")
        await handle(start, reply)

    async def _answer(self, start: Start, reply: Reply) -> None:
        request = await _read(start)
        answer, parts = await self._service.answer_in_parts(request, start.trace)
        held = [answer]
        del answer
        json = await asyncio.to_thread(_written, held) if len(start.body) > SMALL else _written(held)
        reply.put(Whole(json, parts) if parts else json)

    async def _stream(self, start: Start, reply: Reply) -> None:
        await self._service.stream(cast("Request", await _read(start)), reply.put, start.trace)

    async def _check(self, start: Start, reply: Reply) -> None:
        requests = _prompts(start) if len(start.body) <= SMALL else await asyncio.to_thread(_prompts, start)
        await self._service.check(requests)
        reply.put(b"{}")

    async def _status(self, start: Start, reply: Reply) -> None:
        reply.put(_json(self._service.status()))

    async def _metrics(self, start: Start, reply: Reply) -> None:
        reply.put(self._service.host.metrics().encode())

    async def _load(self, start: Start, reply: Reply) -> None:
        async for status in self._service.load():
            reply.put(_json(status))

    async def _unload(self, start: Start, reply: Reply) -> None:
        reply.put(_json(await self._service.unload()))


def _prompts(start: Start) -> list[GenerateRequest]:
    try:
        return check.PromptsCheck.model_validate_json(start.body).requests()
    except ValidationError as error:
        raise invalid_request(error) from None


async def _read(start: Start) -> AnyRequest:
    """Read a request that its gateway has checked. Raises InvalidRequest for one that this version does not know."""
    return _parse(start) if len(start.body) <= SMALL else await asyncio.to_thread(_parse, start)


def _parse(start: Start) -> AnyRequest:
    if len(start.body) > SMALL:
        check_size(start.body.decode(), "the request")
    try:
        return ENDPOINTS[start.path].request.model_validate_json(start.body)
    except ValidationError as error:
        raise invalid_request(error) from None


def _written(held: list[Answer]) -> bytes:
    """Return the JSON of the answer in `held`, and free its objects: that takes as long as to write them."""
    return held.pop().to_json().encode()


def _json(body: BaseModel) -> bytes:
    return body.model_dump_json().encode()
