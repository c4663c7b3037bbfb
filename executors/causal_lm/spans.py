"""Owns the spans of an executor's requests: one for each, and in it its times in the queue, in prefill, in decode.

Attributes are those of OpenTelemetry's conventions for generative models (`gen_ai.`), and ours (`rungpt.`) where
these have no name. They contain no part of prompts and answers.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from run_gpt.api.answers import Answer, Generation
from run_gpt.api.embeddings import Embeddings, EmbedRequest
from run_gpt.api.request import AnyRequest
from run_gpt.api.schema import ChatRequest, GenerateRequest
from run_gpt.engine.timing import Timing
from run_gpt.errors import InternalError, RequestError
from run_gpt.local.answers import PieceWriter
from run_gpt.process.tracing import tracer_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

OPERATIONS: dict[type[AnyRequest], str] = {
    GenerateRequest: "text_completion",
    ChatRequest: "chat",
    EmbedRequest: "embeddings",
}
"""Names of operations, by the kinds of request that have a span."""
_ASKED = {
    "max_new_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "num_return_sequences": "gen_ai.request.choice.count",
    "adapter": "rungpt.adapter",
}
"""Names of attributes for the fields of a request that are set."""


class NoSpan:
    """Receiver of the facts of an answer where there are no traces; it does nothing."""

    def took(self, timing: Timing) -> None:
        """Take in the engine's timing."""

    def answered(self, answer: Answer) -> None:
        """Take in the whole answer."""

    def streamed(self, writer: PieceWriter) -> None:
        """Take in the writer of a streamed answer, complete or not."""


class Spans:
    """Maker of the spans of one executor; without a provider (Jina's: see `run_gpt.process.tracing`) it makes none."""

    def __init__(self, provider: Any):
        self._tracer = None if provider is None else tracer_of(provider)

    @contextmanager
    def of(self, request: AnyRequest, model: str, trace: Mapping[str, str]) -> Iterator[NoSpan]:
        """Yield the receiver of the facts of an answer that the block makes; its span ends with the block.

        The span belongs to the trace of these headers; without any, to the current one, which Jina takes from the call.
        """
        if self._tracer is None or type(request) not in OPERATIONS:
            yield NoSpan()
            return
        span = AnswerSpan(self._tracer, request, model, trace)
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
    """The span of one request, which receives the facts of its answer."""

    def __init__(self, tracer: "Tracer", request: AnyRequest, model: str, trace: Mapping[str, str]):
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        operation = OPERATIONS[type(request)]
        about = {"gen_ai.operation.name": operation, "gen_ai.provider.name": "rungpt", "gen_ai.request.model": model}
        given = {key: getattr(request, name, None) for name, key in _ASKED.items()}
        about |= {key: value for key, value in given.items() if value is not None}
        self._tracer = tracer
        context = extract(trace) if trace else None
        self._span: Span = tracer.start_span(f"{operation} {model}", context, kind=SpanKind.SERVER, attributes=about)
        self._attributes: dict[str, Any] = {}

    def took(self, timing: Timing) -> None:
        """Make a child span of each phase that took time."""
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
        attributes: dict[str, Any] = {"gen_ai.response.id": answer.id, "gen_ai.response.model": answer.model}
        if isinstance(answer, Generation | Embeddings):
            attributes["gen_ai.usage.input_tokens"] = answer.usage.prompt_tokens
        if isinstance(answer, Generation):
            attributes["gen_ai.usage.output_tokens"] = answer.usage.completion_tokens
            attributes["gen_ai.usage.cache_read.input_tokens"] = answer.usage.prompt_tokens_details.cached_tokens
            choices = getattr(answer, "choices", ())
            attributes["gen_ai.response.finish_reasons"] = [choice.finish_reason for choice in choices]
        self._attributes = attributes

    def streamed(self, writer: PieceWriter) -> None:
        """See NoSpan."""
        summary, reasons = writer.summary, writer.finish_reasons
        if not summary.completion_tokens and not reasons:
            return  # no part of it came
        self._attributes = {
            "gen_ai.response.id": summary.id,
            "gen_ai.response.model": summary.model,
            "gen_ai.usage.input_tokens": summary.prompt_tokens,
            "gen_ai.usage.output_tokens": summary.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": summary.cached_tokens,
            "gen_ai.response.finish_reasons": [reasons[index] for index in sorted(reasons)],
        }

    def failed(self, code: str, message: str | None = None) -> None:
        """Note the error that it ended with. `message`: given for an error that is not the client's cancellation."""
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("error.type", code)
        if message is not None:
            self._span.set_status(StatusCode.ERROR, message)

    def end(self) -> None:
        """Set the attributes that are known of the answer by now, and end the span."""
        self._span.set_attributes(self._attributes)
        self._span.end()
