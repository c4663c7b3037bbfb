"""Scripted server: the real playground over an OpenAI endpoint, with a test in control of every byte."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from uvicorn import Config, Server
from waiting import wait_until

from run_gpt.gateway.playground import playground_files

DONE = b"data: [DONE]\n\n"
Script = Callable[[dict[str, Any]], "AsyncIterator[bytes] | Response"]


def event(data: Any, kind: str = "") -> bytes:
    """Return a server-sent event."""
    return (f"event: {kind}\n" if kind else "").encode() + b"data: " + json.dumps(data).encode() + b"\n\n"


def piece(text: str | None = None, finish: str | None = None) -> bytes:
    """Return an event with a piece of the answer, as OpenAI's endpoint sends it."""
    delta = {} if text is None else {"content": text}
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": None})


def thought(text: str) -> bytes:
    """Return an event with a piece of the model's thinking."""
    delta = {"reasoning_content": text, "reasoning": text}
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}], "usage": None})


def usage(tokens: int) -> bytes:
    """Return the event with the number of tokens."""
    counts = {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens}
    return event({"choices": [], "usage": counts})


def saying(*texts: str, finish: str = "stop") -> Script:
    """Return a script that answers with these pieces."""

    async def script(_: dict[str, Any]) -> AsyncIterator[bytes]:
        for text in texts:
            yield piece(text)
            await asyncio.sleep(0.01)  # so that the pieces have a rate
        yield piece(finish=finish)
        yield usage(len(texts))
        yield DONE

    return lambda request: script(request)


def refusing(status: int, message: str, param: str | None = None, **headers: str) -> Script:
    """Return a script that answers with an error."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": "invalid_value"}
    return lambda _: JSONResponse({"error": error}, status, headers)


async def loaded(_: dict[str, Any]) -> AsyncIterator[bytes]:
    """Yield the load events of a model that is already in memory."""
    yield event({"state": "loaded"})


class ScriptedServer:
    """Server: `script` answers the next requests, `requests` has those that came, `running` counts the unfinished."""

    def __init__(self) -> None:
        self.models: list[str] | Response = ["scripted"]
        self.states: dict[str, str] = {}
        """States of the models that are not in memory."""
        self.script: Script = saying("Hello", " there")
        self.load: Script = loaded
        self.loads: list[str] = []
        """Models whose load was requested."""
        self.requests: list[dict[str, Any]] = []
        self.running = 0
        self.go_on = threading.Event()
        self.url = ""

    async def wait(self) -> None:
        """Wait, in a script, until the test calls `go_on.set()`."""
        while not self.go_on.is_set():
            await asyncio.sleep(0.01)

    def app(self) -> FastAPI:
        app = FastAPI()
        for path, function in playground_files().items():
            app.add_route(path, function)

        @app.get("/health")
        async def health() -> Any:
            return {"status": "alive"}

        @app.get("/v1/models")
        async def models() -> Any:
            if isinstance(self.models, Response):
                return self.models
            cards = [{"id": name, "state": self.states.get(name, "loaded")} for name in self.models]
            return {"object": "list", "data": cards}

        @app.post("/models/load")
        async def load(request: Request) -> Response:
            body = await request.json()
            self.loads.append(body["model"])
            return StreamingResponse(self._counted(self.load(body)), media_type="text/event-stream")

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            self.requests.append(await request.json())
            answer = self.script(self.requests[-1])
            if isinstance(answer, Response):
                return answer
            return StreamingResponse(self._counted(answer), media_type="text/event-stream")

        outer = FastAPI()
        outer.mount("/prefix", app)  # as behind a proxy
        outer.mount("/", app)
        return outer

    async def _counted(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self.running += 1
        try:
            async for each in events:
                yield each
        finally:
            self.running -= 1


@contextmanager
def open_scripted_server(port: int) -> Iterator[ScriptedServer]:
    """Run a scripted server on this port of 127.0.0.1, in a thread."""
    scripted = ScriptedServer()
    scripted.url = f"http://127.0.0.1:{port}"
    # Scripts cut connections by failing, on purpose.
    config = Config(scripted.app(), host="127.0.0.1", port=port, log_level="critical", timeout_graceful_shutdown=1)
    server = Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield scripted
    finally:
        scripted.go_on.set()
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def half_an_answer(scripted: ScriptedServer, before: str = "") -> Script:
    """Return a script that waits in the middle of its answer until the test calls `go_on.set()`."""

    async def script(_: dict[str, Any]) -> AsyncIterator[bytes]:
        yield piece(f"{before}Half an ")
        await scripted.wait()
        yield piece("answer.")
        yield piece(finish="stop")
        yield usage(2)
        yield DONE

    return script
