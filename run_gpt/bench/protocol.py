"""The APIs that a server may have: routes, request bodies, and the contents of events and whole answers."""

from dataclasses import dataclass
from typing import Any

from run_gpt.bench.workload import Prompt


@dataclass(frozen=True)
class Api:
    """One API of a server."""

    name: str
    path: str
    """Route of whole answers, and of OpenAI's streams, which the request body selects."""
    chats: bool
    """True for an API that takes chats instead of texts."""
    native: bool
    """True for RunGPT's own APIs."""

    def route(self, *, streamed: bool) -> str:
        """Return the route of a request."""
        return f"{self.path}_stream" if self.native and streamed else self.path

    def body(
        self, prompt: Prompt, streamed: bool, model: str | None, *, exact: bool, extra: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the JSON of a request. `exact` requests exactly `max_tokens` tokens; only native APIs support this."""
        body: dict[str, Any] = {"model": model} if model else {}
        if self.chats:
            body["messages"] = list(prompt.messages)
        else:
            body["prompt"] = prompt.text
        body["max_new_tokens" if self.native else "max_tokens"] = prompt.max_tokens
        if exact:
            body["min_new_tokens"] = prompt.max_tokens
        if streamed and not self.native:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return {**body, **extra}


APIS = {
    api.name: api
    for api in (
        Api("openai-chat", "/v1/chat/completions", chats=True, native=False),
        Api("openai-completions", "/v1/completions", chats=False, native=False),
        Api("chat", "/chat", chats=True, native=True),
        Api("generate", "/generate", chats=False, native=True),
    )
}


@dataclass(frozen=True)
class Event:
    """Contents of an event of a stream, or of a whole answer."""

    text: str = ""
    has_output: bool = False
    """True when the event has text, or a part of a tool call or of the model's reasoning."""
    finished: bool = False
    has_choice: bool = False
    """False for the event that has only the usage."""
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


def read_event(data: Any) -> Event:
    """Read an event or a whole answer of any of the APIs from its JSON. Other JSON gives an empty event."""
    if not isinstance(data, dict):
        return Event()
    if error := data.get("error"):
        return Event(error=error if isinstance(error, dict) else {"message": str(error)})
    usage = data.get("usage") if isinstance(data.get("usage"), dict) else None
    choices = data.get("choices") or []
    choice = choices[0] if choices else {}
    delta = choice.get("delta") or choice.get("message") or {}
    text = choice.get("text") or delta.get("content") or ""
    hidden = any(delta.get(name) for name in ("tool_calls", "reasoning", "reasoning_content"))
    return Event(text, bool(text) or hidden, choice.get("finish_reason") is not None, bool(choices), usage)
