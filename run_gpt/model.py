"""`create_model`: a model in this process, with the same calls as one behind a server.

Turns requests of the wire's schema into the engine's, and the engine's events into answers; the executor serves the
same object, so that a request gets the same answer in a notebook and from a cluster.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from run_gpt.api.language_model import LanguageModel
from run_gpt.api.schema import (
    DEFAULT_MAX_NEW_TOKENS,
    Answer,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    ChatRequest,
    Choice,
    Completion,
    Delta,
    GenerateRequest,
    Logprobs,
    Parameters,
    PromptTokensDetails,
    Request,
    Status,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from run_gpt.config import EngineConfig, ModelConfig, Runner
from run_gpt.engine import request as engine_request
from run_gpt.engine.compiled import prepare_compiler
from run_gpt.engine.engine import Engine
from run_gpt.engine.native.runner import fits_config
from run_gpt.engine.request import SamplingParams, TokenEvent
from run_gpt.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound
from run_gpt.launch import start_engine, start_kernels
from run_gpt.models import LoadedModel, OnProgress, load, no_progress, render_chat
from run_gpt.models.cache import cache_root
from run_gpt.parallel import start_followers


def create_model(
    model_name: str | None = None,
    model_path: str | None = None,
    adapter_name_or_path: str | None = None,
    precision: str = "auto",
    device: str | None = None,
    device_map: str | dict[str, Any] | list[int] | None = None,
    trust_remote_code: bool = False,
    *,
    allow_pickle: bool = False,
    cache_dir: Path | None = None,
    max_memory: dict[str | int, str | int] | None = None,
    tensor_parallel: int = 1,
    compile: bool = EngineConfig.compile,
    max_running: int = EngineConfig.max_running,
    max_waiting: int = EngineConfig.max_waiting,
    max_step_tokens: int = EngineConfig.max_step_tokens,
    runner: Runner = EngineConfig.runner,
    max_context: int | None = None,
    max_cache_tokens: int | None = None,
    reuse_prefixes: bool = EngineConfig.reuse_prefixes,
    speculate: bool = EngineConfig.speculate,
    on_progress: OnProgress = no_progress,
) -> "Model":
    """Load a model into this process.

    The parameters and their defaults are those of ModelConfig and EngineConfig. `on_progress` hears of downloads and
    other long steps. Raises SetupError or ModelNotFound, each with a line that says what to do.
    """
    model_config = ModelConfig(
        model_name=model_name,
        model_path=model_path,
        adapter_name_or_path=adapter_name_or_path,
        precision=precision,
        device=device,
        device_map=device_map,
        max_memory=max_memory,
        tensor_parallel=tensor_parallel,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        cache_dir=cache_dir,
    )
    engine_config = EngineConfig(
        max_running=max_running,
        max_waiting=max_waiting,
        max_step_tokens=max_step_tokens,
        runner=runner,
        max_context=max_context,
        max_cache_tokens=max_cache_tokens,
        reuse_prefixes=reuse_prefixes,
        speculate=speculate,
        compile=compile,
    )
    return load_model(model_config, engine_config, on_progress=on_progress)


def load_model(
    model_config: ModelConfig,
    engine_config: EngineConfig,
    *,
    on_progress: OnProgress = no_progress,
    **engine_options: Any,
) -> "Model":
    """`create_model` from configurations; `engine_options` go to the engine's constructor."""
    parallel = model_config.tensor_parallel != 1
    cache = cache_root(model_config.cache_dir)
    kernels = start_kernels(engine_config, model_config.device, cache / "kernels", parallel=parallel)
    if engine_config.compile:
        prepare_compiler(cache / "compiled")
    followers = start_followers(model_config) if parallel else None
    try:
        return _loaded(model_config, engine_config, kernels, on_progress, followers=followers, **engine_options)
    except BaseException:
        if followers is not None:
            followers.close()
        raise


def _loaded(
    model_config: ModelConfig, engine_config: EngineConfig, kernels: Any, on_progress: OnProgress, **options: Any
) -> "Model":
    loaded = load(
        model_config,
        can_pack=fits_config if kernels else lambda _: False,
        on_progress=on_progress,
    )

    def decode(ids: Sequence[int]) -> str:
        return cast("str", loaded.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    wait = model_config.precision in ("bit8", "bit4")  # what serves meanwhile would take the memory of fp32
    engine = start_engine(loaded, decode, engine_config, kernels, wait=wait, **options)
    limits = [limit for limit in (engine_config.max_context, engine.scheduler.slots.max_tokens) if limit]
    return Model(loaded, engine, min(limits, default=None))


class Model(LanguageModel):
    """A loaded model and its engine. Close it, or use it as a context manager, to free its memory."""

    def __init__(self, loaded: LoadedModel, engine: Engine, max_context: int | None = None):
        self.name = loaded.name
        self.precision = loaded.precision
        self.device = loaded.device
        self.notes = loaded.notes
        """What was chosen where a wish could not be taken literally; one line each."""
        self.context_length = min(loaded.context_length, max_context or loaded.context_length)
        """Most tokens of prompt and answer together."""
        self._tokenizer = loaded.tokenizer
        self._vocabulary = len(loaded.tokenizer)
        self._engine = engine

    def status(self) -> Status:
        """What the engine is doing."""
        stats = self._engine.stats()
        return Status(state=stats.state, model=self.name, running=stats.running, waiting=stats.waiting)

    def shutdown(self, drain_seconds: float = 0.0) -> None:
        """Let running requests finish for so long, then end the engine. Blocks."""
        self._engine.shutdown(drain_seconds)

    async def aclose(self) -> None:
        """End the engine; requests that run end with Unavailable."""
        await asyncio.to_thread(self.shutdown)

    async def _answer(self, request: Request, timeout: float | None = None) -> Answer:
        """See LanguageModel."""
        prepared = await asyncio.to_thread(self._prepare, request, timeout)
        sequences = [TokenEvent(index, "", 0) for index in range(prepared.sequences)]
        async with aclosing(cast("Any", self._engine.submit(prepared))) as events:
            async for event in events:
                sequences[event.index] += event
        best = sorted(sequences, key=_mean_logprob, reverse=True) if request.best_of else sequences
        writer = _Writer(self, request, prepared)
        writer.count(sequences)
        return writer.answer([replace(s, index=i) for i, s in enumerate(best[: request.sequences])])

    async def _stream(self, request: Request, timeout: float | None = None) -> AsyncIterator[Answer]:
        """See LanguageModel."""
        request.check_stream()
        prepared = await asyncio.to_thread(self._prepare, request, timeout)
        writer = _Writer(self, request, prepared)
        async with aclosing(cast("Any", self._engine.submit(prepared))) as events:
            async for event in events:
                writer.count([event])
                if event.text or event.finish_reason or event.logprobs:
                    yield writer.chunk(event)

    def _prepare(self, request: Request, timeout: float | None) -> engine_request.Request:
        """The engine's request. Raises ModelNotFound, InvalidRequest, ContextLengthExceeded."""
        if request.model not in (None, self.name):
            raise ModelNotFound(f"model = {request.model!r} is not served here: {self.name!r} is", param="model")
        prompt_ids = self._prompt_ids(request)
        return engine_request.Request(
            id=f"{'chatcmpl' if isinstance(request, ChatRequest) else 'cmpl'}-{uuid.uuid4().hex}",
            prompt_ids=tuple(prompt_ids),
            max_new_tokens=self._max_new_tokens(request, len(prompt_ids)),
            sampling=self._sampling(request),
            stop=request.stops,
            sequences=request.best_of or request.sequences,
            num_beams=request.num_beams or 1,
            length_penalty=1.0 if request.length_penalty is None else request.length_penalty,
            deadline=None if timeout is None else time.monotonic() + timeout,
        )

    def _prompt_ids(self, request: Request) -> list[int]:
        if isinstance(request, ChatRequest):
            return render_chat(self._tokenizer, [message.model_dump() for message in request.messages])
        ids = cast("list[int]", self._tokenizer(request.prompt, return_attention_mask=False)["input_ids"])
        if not ids:
            raise InvalidRequest(f"prompt = {request.prompt!r}: the tokenizer makes no token of it", param="prompt")
        return ids

    def _max_new_tokens(self, request: Request, prompt_tokens: int) -> int:
        room = self.context_length - prompt_tokens
        if room < 1:
            raise ContextLengthExceeded(
                f"the prompt has {prompt_tokens} tokens, the model's context holds {self.context_length}, "
                "the answer's included: shorten the prompt",
                param="messages" if isinstance(request, ChatRequest) else "prompt",
            )
        if request.max_length is None:
            return min(request.max_new_tokens or DEFAULT_MAX_NEW_TOKENS, room)
        if request.max_length <= prompt_tokens:
            raise InvalidRequest(
                f"max_length = {request.max_length}: the prompt alone has {prompt_tokens} tokens", param="max_length"
            )
        return min(request.max_new_tokens or room, request.max_length - prompt_tokens, room)

    def _sampling(self, request: Parameters) -> SamplingParams:
        given = {name: getattr(request, name) for name in _SAMPLING if getattr(request, name) is not None}
        bias = {int(token_id): value for token_id, value in (request.logit_bias or {}).items()}
        for token_id in bias:
            if token_id >= self._vocabulary:
                raise InvalidRequest(
                    f"logit_bias: token id {token_id} is outside the vocabulary of {self._vocabulary}",
                    param="logit_bias",
                )
        if request.best_of is not None:  # what is best is told by the log-probabilities
            given.setdefault("logprobs", 0)
        return SamplingParams(do_sample=request.samples, logit_bias=bias, **given)

    def token_logprob(self, token: engine_request.TokenLogprob) -> TokenLogprob:
        """A token's log-probability as the wire shows it."""
        return TokenLogprob(
            token=self._token_text(token.token_id),
            logprob=token.logprob,
            top_logprobs=[TopLogprob(token=self._token_text(i), logprob=value) for i, value in token.top],
        )

    def _token_text(self, token_id: int) -> str:
        return cast("str", self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False))


_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "min_new_tokens",
    "seed",
    "logprobs",
)


class _Writer:
    """Writes the answer to one request: as a whole, or event by event."""

    def __init__(self, model: Model, request: Request, prepared: engine_request.Request):
        self._model = model
        self._request = request
        self._id = prepared.id
        self._created = int(time.time())
        self._prompt_tokens = len(prepared.prompt_ids)
        self._completion_tokens = 0
        self._cached_tokens = 0
        self._begun: set[int] = set()

    def count(self, events: Sequence[TokenEvent]) -> None:
        """Count these events' tokens in `usage`; what was reused of the prompt is what the first sequence reused."""
        self._completion_tokens += sum(event.tokens for event in events)
        for event in events:
            if event.index == 0:
                self._cached_tokens = event.cached_tokens

    def answer(self, sequences: Sequence[TokenEvent]) -> Answer:
        """The whole answer; each event is a whole sequence."""
        if isinstance(self._request, GenerateRequest):
            return self._completion(sequences, prompt=self._request.prompt)
        choices = [
            ChatChoice(
                index=s.index,
                message=ChatMessage(content=s.text),
                finish_reason=s.finish_reason,
                logprobs=self._logprobs(s),
            )
            for s in sequences
        ]
        return ChatCompletion(choices=choices, **self._common())

    def chunk(self, event: TokenEvent) -> Answer:
        """One event of a stream."""
        first_of_all, first = not self._begun, event.index not in self._begun
        self._begun.add(event.index)
        if isinstance(self._request, GenerateRequest):
            return self._completion([event], prompt=self._request.prompt if first_of_all else None, echo=first)
        choice = ChatChunkChoice(
            index=event.index,
            delta=Delta(role="assistant" if first else None, content=event.text),
            finish_reason=event.finish_reason,
            logprobs=self._logprobs(event),
        )
        return ChatCompletionChunk(choices=[choice], **self._common())

    def _completion(self, events: Sequence[TokenEvent], prompt: str | None, echo: bool = True) -> Completion:
        request = cast("GenerateRequest", self._request)
        before = request.prompt if request.echo and echo else ""
        choices = [
            Choice(
                index=event.index,
                text=before + event.text,
                finish_reason=event.finish_reason,
                logprobs=self._logprobs(event),
            )
            for event in events
        ]
        return Completion(choices=choices, prompt=prompt, **self._common())

    def _common(self) -> dict[str, Any]:
        usage = Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            total_tokens=self._prompt_tokens + self._completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self._cached_tokens),
        )
        return {"id": self._id, "created": self._created, "model": self._model.name, "usage": usage}

    def _logprobs(self, event: TokenEvent) -> Logprobs | None:
        if self._request.logprobs is None:
            return None
        return Logprobs(content=[self._model.token_logprob(token) for token in event.logprobs])


def _mean_logprob(sequence: TokenEvent) -> float:
    return sum(token.logprob for token in sequence.logprobs) / max(len(sequence.logprobs), 1)
