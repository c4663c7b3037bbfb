"""Events between engine and reader: waiting ones are merged, and `EventStream` yields them one after the other."""

import asyncio
from collections.abc import AsyncIterator

from run_gpt.engine.request import TokenEvent, TokenLogprob
from run_gpt.errors import RequestError


class News:
    """Undelivered news of one request: the events of each sequence merged into one, and the end."""

    def __init__(self) -> None:
        self.ended = False
        self.error: RequestError | None = None
        self._events: dict[int, TokenEvent | _Merged] = {}

    def add(self, event: TokenEvent) -> None:
        """Add an event after the earlier ones of its sequence."""
        earlier = self._events.get(event.index)
        if earlier is None:
            self._events[event.index] = event
        elif isinstance(earlier, TokenEvent):
            self._events[event.index] = merged = _Merged(earlier)
            merged.add(event)
        else:
            earlier.add(event)

    def end(self, error: RequestError | None) -> None:
        """Record the end: nothing comes after it."""
        self.ended, self.error = True, error

    def events(self) -> list[TokenEvent]:
        """Return one event for each sequence that has news."""
        return [event if isinstance(event, TokenEvent) else event.joined() for event in self._events.values()]


class _Merged:
    """Merged events of one sequence. Each addition costs the same for any length of the answer so far."""

    def __init__(self, first: TokenEvent):
        self._last = first
        self._tokens = first.tokens
        self._texts = [first.text]
        self._logprobs: list[TokenLogprob] = [*first.logprobs]
        self._prompt_logprobs = first.prompt_logprobs

    def add(self, event: TokenEvent) -> None:
        self._last = event
        self._tokens += event.tokens
        self._texts.append(event.text)
        self._logprobs += event.logprobs
        self._prompt_logprobs += event.prompt_logprobs

    def joined(self) -> TokenEvent:
        last = self._last
        return TokenEvent(
            last.index,
            "".join(self._texts),
            self._tokens,
            last.finish_reason,
            tuple(self._logprobs),
            last.cached_tokens,
            last.embedding,
            self._prompt_logprobs,
            last.timing,
            last.token_ids,
            last.stop,
        )


class EventStream:
    """Outlet whose events one task reads. Events that arrive while it is busy are merged into one per sequence."""

    def __init__(self) -> None:
        self.over = False
        """True when the request has ended; the reader may not have got the end yet."""
        self._news = News()
        self._arrived = asyncio.Event()

    def receive(self, event: TokenEvent) -> None:
        """See Outlet."""
        self._news.add(event)
        self._arrived.set()

    def ended(self, error: RequestError | None) -> None:
        """See Outlet."""
        self.over = True
        self._news.end(error)
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Yield events until the end. Raises the error that the request ended with."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            news, self._news = self._news, News()
            for event in news.events():
                yield event
            if news.ended:
                if news.error is not None:
                    raise news.error
                return
