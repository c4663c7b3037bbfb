"""The calls of a model, the same for one in this process and for one behind a server.

A subclass supplies two coroutines: `_answer` and `_stream`. The eight public calls, sync and async, for one prompt or
several, are written here once.
"""

import asyncio
import queue
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, aclosing, suppress
from typing import Any, Self, cast, overload

from anyio.from_thread import BlockingPortal, start_blocking_portal

from run_gpt.api.schema import (
    Answer,
    AnyAnswer,
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    Completion,
    GenerateRequest,
    Message,
    Request,
)

Messages = str | Sequence[Message | dict[str, str]]


class LanguageModel(ABC):
    """Generate and chat. `parameters` are those of `run_gpt.api.schema.Parameters`, in either spelling.

    Every call raises InvalidRequest for a parameter that is wrong and DeadlineExceeded after `timeout` seconds.
    A stream that is not read to its end is cancelled when its iterator is closed.
    """

    _portal_context: AbstractContextManager[BlockingPortal] | None = None
    _portal: BlockingPortal | None = None

    @abstractmethod
    async def _answer(self, request: Request, timeout: float | None) -> Answer:
        """The whole answer to one request."""

    @abstractmethod
    def _stream(self, request: Request, timeout: float | None) -> AsyncIterator[Answer]:
        """The events of one streamed answer."""

    @abstractmethod
    async def aclose(self) -> None:
        """End what the model holds; see `close`."""

    @overload
    async def agenerate(self, prompt: str, *, timeout: float | None = None, **parameters: Any) -> Completion: ...
    @overload
    async def agenerate(
        self, prompt: Sequence[str], *, timeout: float | None = None, **parameters: Any
    ) -> list[Completion]: ...
    async def agenerate(
        self, prompt: str | Sequence[str], *, timeout: float | None = None, **parameters: Any
    ) -> Completion | list[Completion]:
        """Continue `prompt`: a Completion, or one for each of a list of prompts, which run together."""
        requests = [GenerateRequest.parse({**parameters, "prompt": text}) for text in _as_list(prompt)]
        answers = cast("list[Completion]", await _all([self._answer(request, timeout) for request in requests]))
        return answers[0] if isinstance(prompt, str) else answers

    async def agenerate_stream(
        self, prompt: str | Sequence[str], *, timeout: float | None = None, **parameters: Any
    ) -> AsyncIterator[Completion]:
        """Continue `prompt`, yielding what is new as it comes.

        Of several prompts the events come mixed: prompt i has the choices i * n up to i * n + n - 1.
        """
        requests = [GenerateRequest.parse({**parameters, "prompt": text}, stream=True) for text in _as_list(prompt)]
        streams = [cast("AsyncIterator[Completion]", self._stream(request, timeout)) for request in requests]
        async with aclosing(_merged(streams, requests[0].sequences)) as events:
            async for event in events:
                yield event

    async def achat(self, messages: Messages, *, timeout: float | None = None, **parameters: Any) -> ChatCompletion:
        """Answer the last of `messages`: a list of {"role", "content"}, or a text, which is one user message."""
        request = ChatRequest.parse({**parameters, "messages": _as_messages(messages)})
        return cast("ChatCompletion", await self._answer(request, timeout))

    async def achat_stream(
        self, messages: Messages, *, timeout: float | None = None, **parameters: Any
    ) -> AsyncIterator[ChatCompletionChunk]:
        """Answer the last of `messages`, yielding what is new as it comes."""
        request = ChatRequest.parse({**parameters, "messages": _as_messages(messages)}, stream=True)
        async with aclosing(cast("Any", self._stream(request, timeout))) as events:
            async for event in events:
                yield event

    @overload
    def generate(self, prompt: str, *, timeout: float | None = None, **parameters: Any) -> Completion: ...
    @overload
    def generate(
        self, prompt: Sequence[str], *, timeout: float | None = None, **parameters: Any
    ) -> list[Completion]: ...
    def generate(
        self, prompt: str | Sequence[str], *, timeout: float | None = None, **parameters: Any
    ) -> Completion | list[Completion]:
        """See `agenerate`."""
        return self._call(self.agenerate, prompt, timeout, parameters)

    def generate_stream(
        self, prompt: str | Sequence[str], *, timeout: float | None = None, **parameters: Any
    ) -> Iterator[Completion]:
        """See `agenerate_stream`."""
        return self._iterate(self.agenerate_stream(prompt, timeout=timeout, **parameters))

    def chat(self, messages: Messages, *, timeout: float | None = None, **parameters: Any) -> ChatCompletion:
        """See `achat`."""
        return self._call(self.achat, messages, timeout, parameters)

    def chat_stream(
        self, messages: Messages, *, timeout: float | None = None, **parameters: Any
    ) -> Iterator[ChatCompletionChunk]:
        """See `achat_stream`."""
        return self._iterate(self.achat_stream(messages, timeout=timeout, **parameters))

    def close(self) -> None:
        """End what the model holds: its engine or its connections, and its thread. The model answers no more."""
        if self._portal_context is None:
            asyncio.run(self.aclose())
            return
        self._blocking_portal().call(self.aclose)
        self._portal_context.__exit__(None, None, None)
        self._portal_context = self._portal = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _blocking_portal(self) -> BlockingPortal:
        """The event loop, in a thread of its own, on which the sync calls run."""
        if self._portal is None:
            self._portal_context = start_blocking_portal("asyncio")
            self._portal = self._portal_context.__enter__()
        return self._portal

    def _call(self, method: Any, subject: Any, timeout: float | None, parameters: dict[str, Any]) -> Any:
        async def run() -> Any:
            return await method(subject, timeout=timeout, **parameters)

        return self._blocking_portal().call(run)

    def _iterate(self, events: AsyncIterator[AnyAnswer]) -> Iterator[AnyAnswer]:
        """The events, sync: one task of the loop reads them all, since a generator must not change its task."""
        arrived: queue.SimpleQueue[AnyAnswer | BaseException | None] = queue.SimpleQueue()

        async def read() -> None:
            try:
                async with aclosing(cast("Any", events)):
                    async for event in events:
                        arrived.put(event)
            except Exception as error:  # raised again below, in the caller's thread
                arrived.put(error)
            else:
                arrived.put(None)

        reading = self._blocking_portal().start_task_soon(read)
        try:
            while (item := arrived.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            reading.cancel()
            with suppress(CancelledError):
                reading.result()


def _as_list(prompt: str | Sequence[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)


def _as_messages(messages: Messages) -> list[dict[str, Any]]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    return [m.model_dump() if isinstance(m, Message) else m for m in messages]


async def _all(calls: list[Any]) -> list[Any]:
    """All results in order; the first error cancels the rest and is raised as it is."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _merged(streams: list[AsyncIterator[Completion]], sequences: int) -> AsyncIterator[Completion]:
    """The events of all streams as they come, with each stream's choices renumbered."""
    arrived: asyncio.Queue[tuple[int, Completion | BaseException | None]] = asyncio.Queue()

    async def read(i: int, stream: AsyncIterator[Completion]) -> None:
        try:
            async with aclosing(cast("Any", stream)):
                async for event in stream:
                    arrived.put_nowait((i, event))
        except Exception as error:  # raised again below, in the consumer's task
            arrived.put_nowait((i, error))
        else:
            arrived.put_nowait((i, None))

    tasks = [asyncio.create_task(read(i, stream)) for i, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            i, item = await arrived.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                for choice in item.choices:
                    choice.index += i * sequences
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
