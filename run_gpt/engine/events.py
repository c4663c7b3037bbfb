"""Events on their way: those that wait are merged, and `EventStream` is what reads them one after the other."""

import asyncio
from collections.abc import AsyncIterator

from run_gpt.engine.request import TokenEvent, TokenLogprob
from run_gpt.errors import RequestError


class News:
    """What is new of one request and not yet told: the events of each sequence as one, and the end."""

    def __init__(self) -> None:
        self.ended = False
        self.error: RequestError | None = None
        self._events: dict[int, TokenEvent | _Merged] = {}

    def add(self, event: TokenEvent) -> None:
        """Add an event, behind the earlier ones of its sequence."""
        earlier = self._events.get(event.index)
        if earlier is None:
            self._events[event.index] = event
        elif isinstance(earlier, TokenEvent):
            self._events[event.index] = merged = _Merged(earlier)
            merged.add(event)
        else:
            earlier.add(event)

    def end(self, error: RequestError | None) -> None:
        """Note that nothing comes after this."""
        self.ended, self.error = True, error

    def events(self) -> list[TokenEvent]:
        """One event for each sequence of which there is something new."""
        return [event if isinstance(event, TokenEvent) else event.joined() for event in self._events.values()]


class _Merged:
    """Events of one sequence as one; each more costs the same, however long the answer is by then."""

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
        )


class EventStream:
    """An Outlet whose events one task reads; what comes while that is busy is merged into one for each sequence."""

    def __init__(self) -> None:
        self.over = False
        """The request has ended; the reader may still have to hear of it."""
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
        """Yield what comes, until the end. Raises the error that the request ended with."""
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
