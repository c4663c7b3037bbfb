"""Calls of a model, the same for a model in this process and for one behind a server.

A subclass supplies `_answer` and `_stream`. The public calls, sync and async, for one prompt or several, are written
here once.
"""

from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Literal, Unpack, cast, overload

from run_gpt.api.adapters import AdapterList, ListAdaptersRequest, LoadAdapterRequest, UnloadAdapterRequest
from run_gpt.api.answers import Answer, ChatAnswer, ChatEvent, GenerateAnswer
from run_gpt.api.arguments import Messages, Prompt, as_messages, as_prompts, is_several
from run_gpt.api.call_options import CallOptions, ChatOptions, GenerateOptions
from run_gpt.api.embeddings import Embeddings, EmbedRequest
from run_gpt.api.loop_thread import Future, result
from run_gpt.api.request import AnyRequest
from run_gpt.api.schema import ChatRequest, GenerateRequest, Request
from run_gpt.api.sync_calls import SyncCalls
from run_gpt.api.together import Turns, merged, together
from run_gpt.api.tokens import DetokenizedText, DetokenizeRequest, TokenizeRequest, Tokens

AnyPrompt = Prompt | Sequence[Prompt]
"""One prompt or several."""


class LanguageModel(SyncCalls):
    """Base of models that generate, chat, embed and tokenize.

    The options of a call are listed in `run_gpt.api.call_options`. An error has the request's name as its `request_id`;
    a server makes a name for a request without one.

    Every call raises InvalidRequest for a wrong parameter, DeadlineExceeded after `timeout` seconds, and Unavailable
    once the model is closed. A stream begins when it is first read. Closing its iterator before the end cancels the
    request. The sync calls may come from any thread, also from inside a running event loop.
    """

    @abstractmethod
    async def _answer(self, request: AnyRequest, timeout: float | None, request_id: str | None = None) -> Answer:
        """Return the whole answer to one request."""

    @abstractmethod
    def _stream(self, request: Request, timeout: float | None, request_id: str | None = None) -> AsyncIterator[Answer]:
        """Yield the events of one streamed answer."""

    @overload
    async def agenerate(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too
        self, prompt: Prompt, **options: Unpack[GenerateOptions]
    ) -> GenerateAnswer: ...
    @overload
    async def agenerate(self, prompt: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> list[GenerateAnswer]: ...
    async def agenerate(
        self, prompt: AnyPrompt, **options: Unpack[GenerateOptions]
    ) -> GenerateAnswer | list[GenerateAnswer]:
        """Continue `prompt` and return a GenerateAnswer, or a list of them for a list of prompts, which run together.

        A prompt is a text or token ids: a list of ids is one prompt.
        """
        self._check_open()
        fields, call = _split(options)
        requests = [GenerateRequest.parse({**fields, "prompt": one}) for one in as_prompts(prompt)]
        turns = Turns(max(1, len(requests)))
        running = [turns.whole(partial(self._answer, request, *call)) for request in requests]
        answers = cast("list[GenerateAnswer]", await together(running))
        return answers if is_several(prompt) else answers[0]

    async def agenerate_stream(
        self, prompt: AnyPrompt, **options: Unpack[GenerateOptions]
    ) -> AsyncIterator[GenerateAnswer]:
        """Continue `prompt` and yield each new part as it comes.

        The events of several prompts come mixed: prompt i has the choices i * n up to i * n + n - 1. Prompts for which
        the queue has no place begin when others of this call have ended.
        """
        self._check_open()
        fields, call = _split(options)
        requests = [GenerateRequest.parse({**fields, "prompt": one}, stream=True) for one in as_prompts(prompt)]
        turns = Turns(max(1, len(requests)))
        streams = [_in_turn(turns, partial(self._stream, one, *call)) for one in requests]
        sequences = requests[0].sequences if requests else 0
        async with aclosing(cast("Any", _renumbered(streams, sequences))) as events:
            async for event in events:
                yield event

    async def achat(self, messages: Messages, **options: Unpack[ChatOptions]) -> ChatAnswer:
        """Answer the last of `messages`: a list of {"role", "content"}, or a text, which is one user message.

        `tools`, `tool_choice` and `parallel_tool_calls` are parameters, too. The message of an answer can be put into
        the next `messages` unchanged.
        """
        self._check_open()
        fields, call = _split(options)
        request = ChatRequest.parse({**fields, "messages": as_messages(messages)})
        return cast("ChatAnswer", await self._answer(request, *call))

    async def achat_stream(self, messages: Messages, **options: Unpack[ChatOptions]) -> AsyncIterator[ChatEvent]:
        """Answer the last of `messages` and yield each new part as it comes."""
        self._check_open()
        fields, call = _split(options)
        request = ChatRequest.parse({**fields, "messages": as_messages(messages)}, stream=True)
        async with aclosing(cast("Any", self._stream(request, *call))) as events:
            async for event in events:
                yield event

    async def aembed(
        self,
        texts: AnyPrompt,
        *,
        pooling: Literal["mean", "last"] | None = None,
        adapter: str | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Embeddings:
        """Return a vector for each text or list of token ids, as EmbedRequest describes. All of them run together."""
        self._check_open()
        fields = {"texts": as_prompts(texts), "pooling": pooling, "adapter": adapter}
        return cast("Embeddings", await self._answer(EmbedRequest.parse(fields), timeout, request_id))

    async def atokenize(
        self,
        text: Messages,
        *,
        tools: list[dict[str, Any]] | None = None,
        add_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> list[int]:
        """Return the token ids of the prompt that `generate` would run for a text, or `chat` for a list of messages.

        `tools` are for a chat only. `add_special_tokens` is for a text only: begin with the special tokens that begin
        every text; default true.
        """
        self._check_open()
        given: dict[str, Any] = {"tools": tools, "add_special_tokens": add_special_tokens}
        given |= {"prompt": text} if isinstance(text, str) else {"messages": as_messages(text)}
        return cast("Tokens", await self._answer(TokenizeRequest.parse(given), timeout)).tokens

    async def adetokenize(self, tokens: Sequence[int], *, timeout: float | None = None) -> str:
        """Return the text of token ids, special tokens included."""
        self._check_open()
        request = DetokenizeRequest.parse({"tokens": list(tokens)})
        return cast("DetokenizedText", await self._answer(request, timeout)).prompt

    async def aadapters(self, *, timeout: float | None = None) -> list[str]:
        """Return the names of the LoRA adapters that requests may name."""
        self._check_open()
        return cast("AdapterList", await self._answer(ListAdaptersRequest.parse({}), timeout)).adapters

    async def aload_adapter(self, name: str, path: str, *, timeout: float | None = None) -> list[str]:
        """Load a LoRA adapter from `path`, a folder on the machine of the model or a hub id, and return all names.

        Raises InvalidRequest if the name is taken, or the adapter cannot be loaded or does not fit the model, and
        Forbidden if the server does not allow requests to change its adapters.
        """
        self._check_open()
        request = LoadAdapterRequest.parse({"name": name, "path": path})
        return cast("AdapterList", await self._answer(request, timeout)).adapters

    async def aunload_adapter(self, name: str, *, timeout: float | None = None) -> list[str]:
        """Unload a LoRA adapter once the requests that use it have ended, and return the names of the others.

        Raises ModelNotFound if no adapter has this name, Forbidden as `aload_adapter`.
        """
        self._check_open()
        request = UnloadAdapterRequest.parse({"name": name})
        return cast("AdapterList", await self._answer(request, timeout)).adapters

    @overload
    def generate(  # type: ignore[overload-overlap]  # as above
        self, prompt: Prompt, **options: Unpack[GenerateOptions]
    ) -> GenerateAnswer: ...
    @overload
    def generate(self, prompt: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> list[GenerateAnswer]: ...
    def generate(self, prompt: AnyPrompt, **options: Unpack[GenerateOptions]) -> GenerateAnswer | list[GenerateAnswer]:
        """See `agenerate`."""
        future: Future[GenerateAnswer | list[GenerateAnswer]]
        future = self._submit(self.agenerate(prompt, **options))
        return result(future)

    def generate_stream(self, prompt: AnyPrompt, **options: Unpack[GenerateOptions]) -> Iterator[GenerateAnswer]:
        """See `agenerate_stream`."""
        return self._iterate(self.agenerate_stream(prompt, **options))

    def chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> ChatAnswer:
        """See `achat`."""
        return result(self._submit(self.achat(messages, **options)))

    def chat_stream(self, messages: Messages, **options: Unpack[ChatOptions]) -> Iterator[ChatEvent]:
        """See `achat_stream`."""
        return self._iterate(self.achat_stream(messages, **options))

    def embed(
        self,
        texts: AnyPrompt,
        *,
        pooling: Literal["mean", "last"] | None = None,
        adapter: str | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Embeddings:
        """See `aembed`."""
        embedding = self.aembed(texts, pooling=pooling, adapter=adapter, timeout=timeout, request_id=request_id)
        return result(self._submit(embedding))

    def tokenize(
        self,
        text: Messages,
        *,
        tools: list[dict[str, Any]] | None = None,
        add_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> list[int]:
        """See `atokenize`."""
        call = self.atokenize(text, tools=tools, add_special_tokens=add_special_tokens, timeout=timeout)
        return result(self._submit(call))

    def detokenize(self, tokens: Sequence[int], *, timeout: float | None = None) -> str:
        """See `adetokenize`."""
        return result(self._submit(self.adetokenize(tokens, timeout=timeout)))

    def adapters(self, *, timeout: float | None = None) -> list[str]:
        """See `aadapters`."""
        return result(self._submit(self.aadapters(timeout=timeout)))

    def load_adapter(self, name: str, path: str, *, timeout: float | None = None) -> list[str]:
        """See `aload_adapter`."""
        return result(self._submit(self.aload_adapter(name, path, timeout=timeout)))

    def unload_adapter(self, name: str, *, timeout: float | None = None) -> list[str]:
        """See `aunload_adapter`."""
        return result(self._submit(self.aunload_adapter(name, timeout=timeout)))


def _split(options: CallOptions) -> tuple[dict[str, Any], tuple[float | None, str | None]]:
    """Return the fields of the request; and the options of the call, timeout and request id."""
    fields: dict[str, Any] = dict(options)
    return fields, (fields.pop("timeout", None), fields.pop("request_id", None))


async def _in_turn(turns: Turns, begin: Callable[[], AsyncIterator[Answer]]) -> AsyncIterator[GenerateAnswer]:
    """Yield the events of a stream that begins in its turn."""

    async def begun() -> tuple[Any, Answer | None]:
        stream: Any = begin()
        try:
            return stream, await anext(stream, None)
        except BaseException:
            await stream.aclose()
            raise

    async with turns.turn(begun) as (stream, first), aclosing(stream):
        if first is not None:
            yield cast("GenerateAnswer", first)
        async for event in stream:
            yield event


async def _renumbered(streams: list[AsyncIterator[GenerateAnswer]], sequences: int) -> AsyncIterator[GenerateAnswer]:
    """Yield the events of all streams as they come, with each stream's choices renumbered."""
    async with aclosing(cast("Any", merged(streams))) as events:
        async for i, event in events:
            for choice in event.choices:
                choice.index += i * sequences
            yield event
