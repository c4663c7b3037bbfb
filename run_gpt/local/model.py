"""Model in this process, made by `create_model` (see create), with the same calls as a model behind a server.

It converts API requests to engine requests, and engine events to answers. The executor serves the same object, so that
a request gets the same answer in a notebook and from a cluster.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from run_gpt.api.adapters import LoadAdapterRequest, UnloadAdapterRequest
from run_gpt.api.answers import Answer, Status
from run_gpt.api.embeddings import Embedding, Embeddings, EmbeddingUsage, EmbedRequest, floats
from run_gpt.api.language_model import LanguageModel
from run_gpt.api.long_parts import restored
from run_gpt.api.native_stream import NativeStream
from run_gpt.api.pieces import Parts
from run_gpt.api.request import AnyRequest
from run_gpt.api.schema import Request
from run_gpt.api.together import Turns, together
from run_gpt.api.tokens import DetokenizedText, DetokenizeRequest, TokenizeRequest, Tokens
from run_gpt.config import ModelConfig
from run_gpt.engine import request as engine_request
from run_gpt.engine.heartbeat import Heartbeat
from run_gpt.engine.request import TokenEvent
from run_gpt.engine.timing import Timing
from run_gpt.errors import ModelNotFound
from run_gpt.local.adapters import Adapters
from run_gpt.local.answers import (
    OnTiming,
    PieceOutlet,
    PieceWriter,
    Sink,
    WholeOutlet,
    likeliest,
)
from run_gpt.local.launch import RunningModel
from run_gpt.local.naming import NamingOutlet, named
from run_gpt.local.preparation import LONG, Preparation, size
from run_gpt.local.prompts import Prompts, as_functions, template_options
from run_gpt.local.sinks import WaitingSink, native_events
from run_gpt.local.workers import Workers
from run_gpt.models import served_names
from run_gpt.process import request_ids

TEXTS_AT_ONCE = 64
"""Number of texts of one embeddings request that are queued at once; more would block the queue for other requests."""


class Model(LanguageModel):
    """Loaded model and its engine. Close it, or use it as a context manager, to free its memory."""

    def __init__(self, running: RunningModel, config: ModelConfig):
        loaded = running.loaded
        self.name = loaded.name
        self._names = served_names(config)
        self.precision = loaded.precision
        self.device = loaded.device
        self.notes = loaded.notes
        """Choices that differ from the requested settings; one line each."""
        self.kernels = running.kernels
        """Words for the native kernels that the model uses, such as `prebuilt for avx2`; None: it uses none."""
        self.context_length = running.context_length
        """Largest number of tokens of prompt and answer together."""
        self.tokenizer = loaded.tokenizer
        """Tokenizer of transformers."""
        self._prompts = Prompts(
            loaded,
            trusts_templates=config.trust_request_chat_template,
            allows_special_tokens=config.allow_special_tokens,
        )
        self._workers = Workers()
        self.sampling_defaults = loaded.sampling
        """Values of requests' sampling parameters that are unset, as far as the model says."""
        self._preparation = Preparation(
            self._prompts, running.grammars, self.context_length, self._workers, self.sampling_defaults
        )
        self._grammars = running.grammars
        self._engine = running.engine
        self._adapters = Adapters(running.engine, config, loaded.adapter_base)

    def status(self) -> Status:
        """Return the state of the engine."""
        stats = self._engine.stats()
        return Status(
            state=stats.state,
            model=self.name,
            running=stats.running,
            waiting=stats.waiting,
            context_length=self.context_length,
            precision=self.precision,
            sampling=dict(self.sampling_defaults),
            adapters=list(self._engine.adapters),
        )

    @property
    def heartbeat(self) -> Heartbeat:
        """Heartbeat of the engine's thread."""
        return self._engine.heartbeat

    def metrics(self) -> str:
        """Return the engine's metrics since its start, in Prometheus' text format."""
        return self._engine.metrics()

    def shutdown(self, drain_seconds: float = 0.0) -> None:
        """Give running requests `drain_seconds` to finish, then end the engine. Blocks."""
        self._engine.shutdown(drain_seconds)
        self._grammars.close()
        self._workers.close()

    async def aclose(self) -> None:
        """End the engine; running requests end with Unavailable."""
        await asyncio.to_thread(self.shutdown)

    async def _answer(
        self,
        request: AnyRequest,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Answer:
        """See LanguageModel."""
        with request_ids.in_errors(lambda: request_id):
            answer, parts = await self._answer_in_parts(request, timeout)
            return await self._workers.run(restored, request, answer, parts) if parts else answer

    async def _answer_in_parts(
        self, request: AnyRequest, timeout: float | None = None, on_timing: OnTiming = lambda timing: None
    ) -> tuple[Answer, list[Parts]]:
        """Return an answer without its log-probabilities or vectors, and these (see api.long_parts).

        `on_timing` gets the engine's times for the request once it has ended.
        """
        self._check_model(request)
        if isinstance(request, EmbedRequest):
            return await self._embeddings(request, timeout, on_timing)
        if isinstance(request, Request):
            return await self._text(request, timeout, on_timing)
        return await self._short_answer(request), []

    async def _short_answer(self, request: AnyRequest) -> Answer:
        if isinstance(request, TokenizeRequest | DetokenizeRequest):
            return await self._workers.run(self._tokens, request, long=size(request) > LONG)
        change = request if isinstance(request, LoadAdapterRequest | UnloadAdapterRequest) else None
        return await asyncio.to_thread(self._adapters.change, change, self.name)

    async def _text(self, request: Request, timeout: float | None, on_timing: OnTiming) -> tuple[Answer, list[Parts]]:
        prepared = await self._preparation.text(request, self._adapters.named(request.adapter), timeout)
        sequences = await self._whole(prepared)
        writer = PieceWriter(self.name, self._prompts, request, prepared)
        best = likeliest(sequences)[: request.sequences] if request.best_of else None
        pieces, parts = [], list[Parts]()
        while sequences:  # one by one: to free them all at once takes long
            sequence = sequences.pop(0)
            tokens = None if request.logprobs is None else await named(writer, sequence, self._workers)
            piece = writer.piece(sequence, tokens)
            if piece.logprobs is not None:
                parts.append(piece.logprobs)
                piece.logprobs = []
            pieces.append(piece)
        if writer.summary.timing is not None:
            on_timing(writer.summary.timing)
        shown = parts if best is None or not parts else [parts[number] for number in best]
        return NativeStream(request, writer.head).whole(pieces, best), shown

    async def _whole(self, prepared: engine_request.Request) -> list[TokenEvent]:
        """Run a request and return its sequences, one event each."""
        outlet = WholeOutlet(prepared.sequences)
        with self._running(replace(prepared, whole=True), outlet):
            return await outlet.complete()

    @contextmanager
    def _running(
        self, prepared: engine_request.Request, outlet: PieceOutlet | NamingOutlet | WholeOutlet
    ) -> Iterator[None]:
        """Start a request; leaving the block ends it. Raises the errors of `Engine.start`."""
        self._engine.start(prepared, outlet)
        try:
            yield
        finally:
            if not outlet.over:
                self._engine.abort(prepared.id)

    async def _stream(
        self, request: Request, timeout: float | None = None, request_id: str | None = None
    ) -> AsyncIterator[Answer]:
        """See LanguageModel."""
        with request_ids.in_errors(lambda: request_id):
            sink = WaitingSink()
            async with self._streaming(request, sink, timeout):
                async for event in native_events(request, sink):
                    yield event

    @asynccontextmanager
    async def _streaming(
        self,
        request: Request,
        sink: Sink,
        timeout: float | None = None,
        on_timing: OnTiming = lambda timing: None,
    ) -> AsyncIterator[PieceWriter]:
        """Prepare and start a request, whose pieces go to `sink`; leaving the block ends it.

        Raises a RequestError if it cannot start. `on_timing` gets the engine's times for the request once it has ended.
        """
        self._check_model(request)
        request.check_stream()
        prepared = await self._preparation.text(request, self._adapters.named(request.adapter), timeout)
        writer = PieceWriter(self.name, self._prompts, request, prepared)
        outlet = PieceOutlet(writer, sink, on_timing)
        if request.logprobs is None:
            with self._running(prepared, outlet):
                yield writer
            return
        with closing(NamingOutlet(outlet, self._workers)) as naming, self._running(prepared, naming):
            yield writer

    async def _check(self, requests: Sequence[Request]) -> None:
        """Raise InvalidRequest or ContextLengthExceeded for the first request whose prompt cannot be answered."""
        await self._preparation.check(requests)

    def _check_model(self, request: AnyRequest) -> None:
        if request.model not in (None, self.name, *self._names):
            raise ModelNotFound(f"model = {request.model!r} is not served here: {self.name!r} is", param="model")

    async def _embeddings(
        self, request: EmbedRequest, timeout: float | None, on_timing: OnTiming
    ) -> tuple[Embeddings, list[Parts]]:
        prepared = await self._preparation.embeddings(request, self._adapters.named(request.adapter), timeout)
        turns = Turns(TEXTS_AT_ONCE)
        embedded = [one for (one,) in await together([turns.whole(partial(self._whole, text)) for text in prepared])]
        if timings := [event.timing for event in embedded if event.timing is not None]:
            on_timing(Timing.of_all(timings))
        parts = await self._workers.run(lambda: [[floats(event.embedding)] for event in embedded])
        count = sum(len(text.prompt_ids) for text in prepared)
        answer = Embeddings(
            id=f"embd-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=self.name,
            data=[Embedding(index=i, embedding="") for i in range(len(parts))],
            usage=EmbeddingUsage(prompt_tokens=count, total_tokens=count),
        )
        return answer, parts

    def _tokens(self, request: TokenizeRequest | DetokenizeRequest) -> Answer:
        about: dict[str, Any] = {"id": f"tokn-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name}
        if isinstance(request, DetokenizeRequest):
            return DetokenizedText(prompt=self._prompts.detokenize(request.tokens), **about)
        if request.messages is not None:
            ids = self._prompts.chat_ids(
                request.messages,
                as_functions(request.tools),
                template=request.chat_template,
                options=template_options(request),
            )
        else:
            ids = self._prompts.text_ids(
                request.prompt or "", "prompt", special=request.add_special_tokens is not False
            )
        return Tokens(tokens=ids, count=len(ids), max_model_len=self.context_length, **about)
