"""A server that answers at scripted times, so that measurements can be compared with what it did."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class Script:
    """Behaviour of the server. `behaviours` applies to the first, second, ... request, cyclically."""

    ttft: float = 0.02
    gap: float = 0.002
    tokens: int = 5
    per_event: int = 1
    """Number of tokens in each event."""
    usage: bool = True
    behaviours: tuple[str, ...] = ("ok",)
    slots: int = 1000
    """Number of requests that are answered at the same time; others wait."""
    together: int = 0
    """Number of requests that must be in flight before the first is answered."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    most_in_flight: int = 0
    url: str = ""

    @property
    def counts(self) -> dict[str, Any]:
        """Usage of an answer."""
        counts = {"prompt_tokens": 7, "completion_tokens": self.tokens, "total_tokens": 7 + self.tokens}
        return counts | {"prompt_tokens_details": {"cached_tokens": 2}}


class _Server:
    def __init__(self, script: Script):
        self.script, self.in_flight, self.free = script, 0, asyncio.Semaphore(script.slots)
        self.all_here = asyncio.Event()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client closed the connection
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(h.split(":")[1]) for h in head.split("\r\n") if h.lower().startswith("content-length")), 0)
        body = await reader.readexactly(length)
        if head.startswith("GET /v1/models"):
            _whole(writer, 200, {"object": "list", "data": [{"id": "scripted"}]})
            return True
        arrived = asyncio.get_running_loop().time()
        script = self.script
        behaviour = script.behaviours[len(script.bodies) % len(script.behaviours)]
        script.bodies.append(json.loads(body))
        script.headers.append(head)
        self.in_flight += 1
        script.most_in_flight = max(script.most_in_flight, self.in_flight)
        if self.in_flight >= script.together:
            self.all_here.set()
        try:
            await self.all_here.wait()
            async with self.free:
                start = arrived if script.slots >= 1000 else asyncio.get_running_loop().time()
                return await self._answer(writer, behaviour, start, head)
        finally:
            self.in_flight -= 1

    async def _answer(self, writer: asyncio.StreamWriter, behaviour: str, start: float, head: str) -> bool:
        if behaviour == "reset":
            return False
        if behaviour.isdecimal():
            _whole(writer, int(behaviour), {"error": {"message": f"said so to {head}", "code": "scripted"}})
            return True
        if behaviour != "hang" and not self.script.bodies[-1].get("stream"):
            return await self._whole_answer(writer, behaviour, start)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        if behaviour == "hang":
            await asyncio.sleep(30)
        script = self.script
        _event(writer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for i in range(script.tokens // script.per_event):
            await asyncio.sleep(start + script.ttft + i * script.gap - asyncio.get_running_loop().time())
            _event(writer, {"choices": [{"delta": {"content": "word " * script.per_event}}]})
            if behaviour == "cut" and i == 1:
                return False
            if behaviour == "error" and i == 1:
                _event(writer, {"error": {"message": "it broke", "code": "internal_error"}})
                break
        else:
            _event(writer, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
            if script.usage:
                _event(writer, {"choices": [], "usage": script.counts})
            _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        return True

    async def _whole_answer(self, writer: asyncio.StreamWriter, behaviour: str, start: float) -> bool:
        script = self.script
        due = start + script.ttft + (script.tokens // script.per_event - 1) * script.gap
        await asyncio.sleep(due - asyncio.get_running_loop().time())
        choice = {"message": {"content": "word " * script.tokens}, "finish_reason": "stop"}
        answer = {"choices": [choice], "usage": script.counts} if script.usage else {"choices": [choice]}
        error = {"error": {"message": "it broke", "code": "internal_error"}}
        _whole(writer, 200, error if behaviour == "error" else answer)
        return True


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def _event(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    _chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")


def _whole(writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)


@contextmanager
def running(script: Script) -> Iterator[Script]:
    """Run a server with the script on 127.0.0.1, in its own thread; its address is in `url`."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        async with await asyncio.start_server(_Server(script).handle, "127.0.0.1", 0) as server:
            script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            ready.set()
            await stop.wait()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        assert ready.wait(10)
        yield script
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Script]]:
    """Yield a function: `scripted(ttft=0.3)` returns the script of a running server."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running(Script(**settings)))
