"""Owns the spans of an executor's requests: one for each, and in it its times in the queue, in prefill, in decode.

Attributes are those of OpenTelemetry's conventions for generative models (`gen_ai.`), and ours (`rungpt.`) for what
these have no name for. Nothing of prompts and answers is in them.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from run_gpt.api.answers import Answer, Generation
from run_gpt.api.embeddings import Embeddings, EmbedRequest
from run_gpt.api.schema import AnyRequest, ChatRequest, GenerateRequest
from run_gpt.engine.timing import Timing
from run_gpt.errors import InternalError, RequestError
from run_gpt.tracing import tracer_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

OPERATIONS: dict[type[AnyRequest], str] = {
    GenerateRequest: "text_completion",
    ChatRequest: "chat",
    EmbedRequest: "embeddings",
}
"""The kinds of request that have a span."""
_ASKED = {
    "max_new_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "num_return_sequences": "gen_ai.request.choice.count",
    "adapter": "rungpt.adapter",
}
"""Fields of a request, and what they are called as attributes, if they are set."""


class NoSpan:
    """What is told of an answer where there are no traces, and makes nothing of it."""

    def took(self, timing: Timing) -> None:
        """The engine did its part."""

    def answered(self, answer: Answer) -> None:
        """This is the answer, or the next event of it."""


class Spans:
    """Makes the spans of one executor; without a provider (Jina's: see `run_gpt.tracing`) none."""

    def __init__(self, provider: Any):
        self._tracer = None if provider is None else tracer_of(provider)

    @contextmanager
    def of(self, request: AnyRequest, model: str) -> Iterator[NoSpan]:
        """What to tell of the answer to a request to this model, which the block makes; its span ends with the block.

        It is a part of the gateway's span: Jina makes the context of a call the current one.
        """
        if self._tracer is None or type(request) not in OPERATIONS:
            yield NoSpan()
            return
        span = AnswerSpan(self._tracer, request, model)
        try:
            yield span
        except (asyncio.CancelledError, GeneratorExit):
            span.failed("cancelled")
            raise
        except Exception as error:
            known = error if isinstance(error, RequestError) else InternalError(str(error))
            # The message of a client's error may quote the request.
            span.failed(known.code, known.message if known.http_status >= 500 else known.code)
            raise
        finally:
            span.end()


class AnswerSpan(NoSpan):
    """The span of one request, which is told of its answer."""

    def __init__(self, tracer: "Tracer", request: AnyRequest, model: str):
        from opentelemetry.trace import SpanKind

        operation = OPERATIONS[type(request)]
        about = {"gen_ai.operation.name": operation, "gen_ai.provider.name": "rungpt", "gen_ai.request.model": model}
        given = {told: getattr(request, name, None) for name, told in _ASKED.items()}
        about |= {told: value for told, value in given.items() if value is not None}
        self._tracer = tracer
        self._span: Span = tracer.start_span(f"{operation} {model}", kind=SpanKind.SERVER, attributes=about)
        self._last: Answer | None = None
        self._reasons: dict[int, str] = {}

    def took(self, timing: Timing) -> None:
        """Each phase that took time becomes a span in this one."""
        from opentelemetry.trace import set_span_in_context

        epoch = time.time_ns() - time.perf_counter_ns()
        first = timing.ended if timing.first is None else timing.first
        drafts = {"rungpt.drafted_tokens": timing.drafted, "rungpt.accepted_tokens": timing.accepted}
        for name, began, ended, about in (
            ("queue", timing.submitted, timing.started, None),
            ("prefill", timing.started, first, None),
            ("decode", first, timing.ended, drafts),
        ):
            if ended > began:
                start, end = (epoch + int(moment * 1e9) for moment in (began, ended))
                inside = set_span_in_context(self._span)
                self._tracer.start_span(name, inside, attributes=about, start_time=start).end(end)

    def answered(self, answer: Answer) -> None:
        """See NoSpan."""
        self._last = answer
        for choice in getattr(answer, "choices", ()):
            if choice.finish_reason is not None:
                self._reasons[choice.index] = choice.finish_reason

    def failed(self, code: str, message: str | None = None) -> None:
        """It ended with this error; `message`: it is one of the server, not the client's wish."""
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("error.type", code)
        if message is not None:
            self._span.set_status(StatusCode.ERROR, message)

    def end(self) -> None:
        """Say of the answer what is known of it by now, and end."""
        told: dict[str, Any] = {}
        if (answer := self._last) is not None:
            told = {"gen_ai.response.id": answer.id, "gen_ai.response.model": answer.model}
        if isinstance(answer, Generation | Embeddings):
            told["gen_ai.usage.input_tokens"] = answer.usage.prompt_tokens
        if isinstance(answer, Generation):
            told["gen_ai.usage.output_tokens"] = answer.usage.completion_tokens
            told["gen_ai.usage.cache_read.input_tokens"] = answer.usage.prompt_tokens_details.cached_tokens
            told["gen_ai.response.finish_reasons"] = [self._reasons[index] for index in sorted(self._reasons)]
        self._span.set_attributes(told)
        self._span.end()
