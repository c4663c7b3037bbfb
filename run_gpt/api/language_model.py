"""The calls of a model, the same for one in this process and for one behind a server.

A subclass supplies two coroutines: `_answer` and `_stream`. The public calls, sync and async, for one prompt or
several, are written here once.
"""

import asyncio
import queue
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Literal, Self, TypeVar, cast, overload

from run_gpt.api.adapters import AdapterList, ListAdaptersRequest, LoadAdapterRequest, UnloadAdapterRequest
from run_gpt.api.answers import Answer, AnyAnswer, ChatCompletion, ChatCompletionChunk, Completion
from run_gpt.api.chat import Message
from run_gpt.api.embeddings import Embeddings, EmbedRequest
from run_gpt.api.loop_thread import Future, LoopThread, result
from run_gpt.api.schema import AnyRequest, ChatRequest, GenerateRequest, Request
from run_gpt.api.together import merged, together
from run_gpt.errors import Unavailable

Messages = str | Sequence[Message | dict[str, str]]

T = TypeVar("T")

_creation = threading.Lock()


class LanguageModel(ABC):
    """Generate, chat, embed. `parameters` are those of `run_gpt.api.schema.Parameters`, in either spelling.

    Every call raises InvalidRequest for a parameter that is wrong, DeadlineExceeded after `timeout` seconds, and
    Unavailable once the model is closed. A stream begins when it is first read; one that is not read to its end is
    cancelled when its iterator is closed. The sync calls may come from any thread, inside a running event loop too.
    """

    _thread: LoopThread | None = None
    _closed = False

    @abstractmethod
    async def _answer(self, request: AnyRequest, timeout: float | None) -> Answer:
        """The whole answer to one request."""

    @abstractmethod
    def _stream(self, request: Request, timeout: float | None) -> AsyncIterator[Answer]:
        """The events of one streamed answer."""

    @abstractmethod
    async def aclose(self) -> None:
        """End what the model holds: its engine, or its connections."""

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
        self._check_open()
        requests = [GenerateRequest.parse({**parameters, "prompt": text}) for text in _as_list(prompt)]
        answers = cast("list[Completion]", await together([self._answer(request, timeout) for request in requests]))
        return answers if _is_list(prompt) else answers[0]

    async def agenerate_stream(
        self, prompt: str | Sequence[str], *, timeout: float | None = None, **parameters: Any
    ) -> AsyncIterator[Completion]:
        """Continue `prompt`, yielding what is new as it comes.

        Of several prompts the events come mixed: prompt i has the choices i * n up to i * n + n - 1.
        """
        self._check_open()
        requests = [GenerateRequest.parse({**parameters, "prompt": text}, stream=True) for text in _as_list(prompt)]
        streams = [cast("AsyncIterator[Completion]", self._stream(request, timeout)) for request in requests]
        sequences = requests[0].sequences if requests else 0
        async with aclosing(cast("Any", _renumbered(streams, sequences))) as events:
            async for event in events:
                yield event

    async def achat(self, messages: Messages, *, timeout: float | None = None, **parameters: Any) -> ChatCompletion:
        """Answer the last of `messages`: a list of {"role", "content"}, or a text, which is one user message."""
        self._check_open()
        request = ChatRequest.parse({**parameters, "messages": _as_messages(messages)})
        return cast("ChatCompletion", await self._answer(request, timeout))

    async def achat_stream(
        self, messages: Messages, *, timeout: float | None = None, **parameters: Any
    ) -> AsyncIterator[ChatCompletionChunk]:
        """Answer the last of `messages`, yielding what is new as it comes."""
        self._check_open()
        request = ChatRequest.parse({**parameters, "messages": _as_messages(messages)}, stream=True)
        async with aclosing(cast("Any", self._stream(request, timeout))) as events:
            async for event in events:
                yield event

    async def aembed(
        self,
        texts: str | Sequence[str],
        *,
        pooling: Literal["mean", "last"] | None = None,
        adapter: str | None = None,
        timeout: float | None = None,
    ) -> Embeddings:
        """A vector for each text: see EmbedRequest. The texts run together."""
        self._check_open()
        fields = {"texts": _as_list(texts), "pooling": pooling, "adapter": adapter}
        return cast("Embeddings", await self._answer(EmbedRequest.parse(fields), timeout))

    async def aadapters(self, *, timeout: float | None = None) -> list[str]:
        """The names of the LoRA adapters that requests may name."""
        self._check_open()
        return cast("AdapterList", await self._answer(ListAdaptersRequest.parse({}), timeout)).adapters

    async def aload_adapter(self, name: str, path: str, *, timeout: float | None = None) -> list[str]:
        """Load the LoRA adapter in the folder `path` (or with this hub id), where the model is; returns all names.

        Raises InvalidRequest if the name is taken or the adapter cannot be had or does not fit, Forbidden on a server
        that does not let its adapters be changed.
        """
        self._check_open()
        request = LoadAdapterRequest.parse({"name": name, "path": path})
        return cast("AdapterList", await self._answer(request, timeout)).adapters

    async def aunload_adapter(self, name: str, *, timeout: float | None = None) -> list[str]:
        """Unload a LoRA adapter, once the requests that have it have ended; returns the names of the others.

        Raises ModelNotFound if there is none of this name, Forbidden as `aload_adapter`.
        """
        self._check_open()
        request = UnloadAdapterRequest.parse({"name": name})
        return cast("AdapterList", await self._answer(request, timeout)).adapters

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
        return result(self._submit(self.agenerate(prompt, timeout=timeout, **parameters)))

    def generate_stream(
        self, prompt: str | Sequence[str], *, timeout: float | None = None, **parameters: Any
    ) -> Iterator[Completion]:
        """See `agenerate_stream`."""
        return self._iterate(self.agenerate_stream(prompt, timeout=timeout, **parameters))

    def chat(self, messages: Messages, *, timeout: float | None = None, **parameters: Any) -> ChatCompletion:
        """See `achat`."""
        return result(self._submit(self.achat(messages, timeout=timeout, **parameters)))

    def chat_stream(
        self, messages: Messages, *, timeout: float | None = None, **parameters: Any
    ) -> Iterator[ChatCompletionChunk]:
        """See `achat_stream`."""
        return self._iterate(self.achat_stream(messages, timeout=timeout, **parameters))

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        pooling: Literal["mean", "last"] | None = None,
        adapter: str | None = None,
        timeout: float | None = None,
    ) -> Embeddings:
        """See `aembed`."""
        return result(self._submit(self.aembed(texts, pooling=pooling, adapter=adapter, timeout=timeout)))

    def adapters(self, *, timeout: float | None = None) -> list[str]:
        """See `aadapters`."""
        return result(self._submit(self.aadapters(timeout=timeout)))

    def load_adapter(self, name: str, path: str, *, timeout: float | None = None) -> list[str]:
        """See `aload_adapter`."""
        return result(self._submit(self.aload_adapter(name, path, timeout=timeout)))

    def unload_adapter(self, name: str, *, timeout: float | None = None) -> list[str]:
        """See `aunload_adapter`."""
        return result(self._submit(self.aunload_adapter(name, timeout=timeout)))

    def close(self) -> None:
        """End what the model holds: its engine or its connections, and its thread. Running calls end with an error."""
        if not self._closed:
            result(self._submit(self.aclose()))
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
        await asyncio.to_thread(self._stop)

    def _check_open(self) -> None:
        if self._closed:
            raise _closed_error()

    def _stop(self) -> None:
        with _creation:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop of the sync calls, whose thread ends with the model or with the process."""
        with _creation:
            if self._thread is None and not self._closed:
                self._thread = LoopThread("rungpt-calls")
                weakref.finalize(self, self._thread.stop)
            thread = self._thread
        if thread is None:
            coroutine.close()
            raise _closed_error()
        return thread.submit(coroutine)

    def _iterate(self, events: AsyncIterator[AnyAnswer]) -> Iterator[AnyAnswer]:
        """The events, sync: one task of the loop reads them all, since a generator must not change its task."""
        arrived: queue.SimpleQueue[AnyAnswer | Future[None]] = queue.SimpleQueue()

        async def read() -> None:
            async with aclosing(cast("Any", events)):
                async for event in events:
                    arrived.put(event)

        reading = self._submit(read())
        reading.add_done_callback(arrived.put)
        try:
            while (item := arrived.get()) is not reading:
                yield cast("AnyAnswer", item)
            result(reading)
        finally:
            reading.cancel()


def _closed_error() -> Unavailable:
    return Unavailable("this model is closed")


def _is_list(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes)


def _as_list(prompt: str | Sequence[str]) -> list[str]:
    return list(prompt) if _is_list(prompt) else [cast("str", prompt)]


def _as_messages(messages: Messages) -> Any:
    """The messages as plain values; what is neither a text nor a list is left for the schema to refuse."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence):
        return messages
    return [m.model_dump() if isinstance(m, Message) else m for m in messages]


async def _renumbered(streams: list[AsyncIterator[Completion]], sequences: int) -> AsyncIterator[Completion]:
    """The events of all streams as they come, with each stream's choices renumbered."""
    async with aclosing(cast("Any", merged(streams))) as events:
        async for i, event in events:
            for choice in event.choices:
                choice.index += i * sequences
            yield event
