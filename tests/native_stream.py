"""Reader of a stream of `/generate_stream` over HTTP, for tests."""

import asyncio
import json
from typing import Any

import httpx


async def read_stream(
    client: httpx.AsyncClient, body: dict[str, Any], began: asyncio.Event | None = None
) -> tuple[str, bool, Any]:
    """Return (text, True if it ended properly, the error event if any). `began` is set with the first text."""
    text, finished, error, event = "", False, None, "message"
    async with client.stream("POST", "/generate_stream", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("event:"):
                event = line.removeprefix("event:").strip()
            elif line.startswith("data:"):
                data = json.loads(line.removeprefix("data:"))
                if event == "error":
                    error = data["error"]
                    continue
                text += data["choices"][0]["text"]
                finished = data["choices"][0]["finish_reason"] is not None
                if began is not None:
                    began.set()
    return text, finished, error
