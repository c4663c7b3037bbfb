"""Conversion of API requests to engine requests: prompts, limits, sampling, and the grammars of answers."""

import asyncio
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

from run_gpt.api.embeddings import EmbedRequest
from run_gpt.api.request import AnyRequest
from run_gpt.api.schema import DEFAULT_MAX_NEW_TOKENS, ChatRequest, GenerateRequest, Request
from run_gpt.api.tokens import DetokenizeRequest
from run_gpt.engine import request as engine_request
from run_gpt.engine.grammar import Grammar
from run_gpt.engine.request import SamplingParams
from run_gpt.errors import ContextLengthExceeded, InvalidRequest
from run_gpt.local.alternatives import Alternatives
from run_gpt.local.prompts import Prompts
from run_gpt.local.sampling import sampling_fields
from run_gpt.local.workers import Workers
from run_gpt.models.grammar import CompiledGrammar, GrammarCompiler, Kind
from run_gpt.models.sampling import Defaults
from run_gpt.process import tenants

LONG = 65_536
"""Size (see `size`) from which a request is prepared beside the short ones. It takes about 0.1 s."""
OF_TURN = 256
"""Size that each message and tool of a chat has beside its text."""


class Preparation:
    """Converter of one model's requests. `adapter` is the engine's name of an adapter; None is the model itself."""

    def __init__(
        self,
        prompts: Prompts,
        grammars: GrammarCompiler,
        context_length: int,
        workers: Workers,
        defaults: Defaults = MappingProxyType({}),
    ):
        """`context_length`: most tokens of prompt and answer together. `defaults`: for parameters that are unset."""
        self._defaults = defaults
        self._prompts = prompts
        self._grammars = grammars
        self._context_length = context_length
        self._workers = workers

    async def text(self, request: Request, adapter: str | None, timeout: float | None) -> engine_request.Request:
        """Prepare a request for a text. Raises InvalidRequest, ContextLengthExceeded, QueueFull."""
        deadline = _deadline(timeout)
        prepared = await self._workers.run(self._text, request, adapter, deadline, long=size(request) > LONG)
        space = tenants.space(request.cache_salt)
        form = await self._grammar(request, space)
        grammar = self._prompts.reasoning.grammar(request, prepared.prompt_ids, form, self._grammars.end_ids)
        return replace(prepared, grammar=grammar, cache_space=space)

    async def embeddings(
        self, request: EmbedRequest, adapter: str | None, timeout: float | None
    ) -> list[engine_request.Request]:
        """Prepare a request for each text to embed. Raises InvalidRequest, ContextLengthExceeded."""
        deadline, is_long = _deadline(timeout), size(request) > LONG
        prepared = await self._workers.run(self._embeddings, request, adapter, deadline, long=is_long)
        return [replace(one, cache_space=tenants.space(request.cache_salt)) for one in prepared]

    async def check(self, requests: Sequence[Request]) -> None:
        """Raise InvalidRequest or ContextLengthExceeded for the first request whose prompt cannot be answered."""
        await self._workers.run(self._check, requests, long=sum(map(size, requests)) > LONG)

    def _check(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._max_new_tokens(request, len(self._prompts.of(request, self._context_length)))

    def _text(self, request: Request, adapter: str | None, deadline: float | None) -> engine_request.Request:
        prompt_ids = self._prompts.of(request, self._context_length)
        return engine_request.Request(
            id=f"{'chatcmpl' if isinstance(request, ChatRequest) else 'cmpl'}-{uuid.uuid4().hex}",
            prompt_ids=tuple(prompt_ids),
            max_new_tokens=self._max_new_tokens(request, len(prompt_ids)),
            sampling=self._sampling(request),
            stop=self._prompts.stops(request),
            unstopped=self._prompts.reasoning.unstopped(request, prompt_ids),
            sequences=request.best_of or request.sequences,
            num_beams=request.num_beams or 1,
            length_penalty=1.0 if request.length_penalty is None else request.length_penalty,
            adapter=adapter,
            prompt_logprobs=request.logprobs if isinstance(request, GenerateRequest) and request.echo else None,
            deadline=deadline,
            keeps_ids=self._prompts.reasoning.format is not None,
        )

    def _embeddings(
        self, request: EmbedRequest, adapter: str | None, deadline: float | None
    ) -> list[engine_request.Request]:
        prompts = [self._prompts.text_ids(text, "texts", most=self._context_length) for text in request.texts]
        for ids in prompts:
            if len(ids) > self._context_length:
                raise ContextLengthExceeded(
                    f"a text has {len(ids)} tokens, the model's context holds {self._context_length}: shorten it",
                    param="texts",
                )
        return [
            engine_request.Request(
                id=f"embd-{uuid.uuid4().hex}",
                prompt_ids=tuple(ids),
                max_new_tokens=0,
                adapter=adapter,
                pooling=request.pooling or "mean",
                deadline=deadline,
            )
            for ids in prompts
        ]

    async def _grammar(self, request: Request, space: str) -> Grammar | None:
        """Compile the answer's grammar, if it has one. Raises InvalidRequest with the field's name, QueueFull."""
        sources = self._prompts.grammars(request)
        ways = [[await self._compiled(*source, space) for source in way] for way in sources]
        if not ways:
            return None
        if len(ways) > 1:  # a text in the form, or calls
            text, *calls = ways
            return Alternatives([[self._prompts.reasoning.text_form(grammar) for grammar in text], *calls])
        form = self._prompts.held(request, ways[0][0])
        is_text = isinstance(request, ChatRequest) and sources[0][0][0] != "lark"
        return self._prompts.reasoning.text_form(form) if is_text else form

    async def _compiled(self, kind: Kind, source: str, space: str) -> CompiledGrammar:
        try:
            return await asyncio.wrap_future(self._grammars.submit(kind, source, space))
        except InvalidRequest as error:
            if kind != "lark":
                raise
            raise InvalidRequest(error.message.replace("response_format", "tools"), param="tools") from error

    def _max_new_tokens(self, request: Request, prompt_tokens: int) -> int:
        room, wanted = self._context_length - prompt_tokens, request.max_new_tokens
        if room < (0 if wanted == 0 else 1):
            raise ContextLengthExceeded(
                f"the prompt has {prompt_tokens} tokens, the model's context holds {self._context_length}, "
                "the answer's included: shorten the prompt",
                param="messages" if isinstance(request, ChatRequest) else "prompt",
            )
        if request.max_length is None:
            return min(DEFAULT_MAX_NEW_TOKENS if wanted is None else wanted, room)
        if request.max_length <= prompt_tokens:
            raise InvalidRequest(
                f"max_length = {request.max_length}: the prompt alone has {prompt_tokens} tokens", param="max_length"
            )
        return min(room if wanted is None else wanted, request.max_length - prompt_tokens, room)

    def _sampling(self, request: Request) -> SamplingParams:
        bias = self._prompts.checked_bias(request.logit_bias)
        return SamplingParams(
            logit_bias=bias,
            stop_token_ids=self._prompts.ends(request),
            ignore_eos=bool(request.ignore_eos),
            **sampling_fields(request, self._defaults),
        )


def size(request: AnyRequest) -> int:
    """Return about the number of characters, or of token ids, from which a request's prompt is made."""
    if isinstance(request, EmbedRequest):
        return sum(map(len, request.texts))
    if isinstance(request, DetokenizeRequest):
        return len(request.tokens)
    messages, tools = getattr(request, "messages", None) or (), getattr(request, "tools", None) or ()
    calls = sum(len(call.function.arguments) for message in messages for call in message.tool_calls or ())
    texts = sum(len(one.content or "") + len(one.reasoning_content or "") for one in messages)
    texts += sum(len(getattr(request, name, None) or "") for name in ("prompt", "suffix"))
    return texts + calls + OF_TURN * (len(messages) + len(tools))


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout
