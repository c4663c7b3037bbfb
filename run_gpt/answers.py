"""Writes the wire's answers from the engine's events."""

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from run_gpt.api.answers import (
    Answer,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    Choice,
    Completion,
    Delta,
    Logprobs,
    PromptTokensDetails,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from run_gpt.api.schema import GenerateRequest, Request
from run_gpt.engine import request as engine_request
from run_gpt.engine.request import TokenEvent


class AnswerWriter:
    """Writes the answer to one request: as a whole, or event by event."""

    def __init__(self, name: str, token_text: Callable[[int], str], request: Request, prepared: engine_request.Request):
        """`name`: the served model's. `token_text`: the text of a token id."""
        self._name, self._token_text = name, token_text
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
        return {"id": self._id, "created": self._created, "model": self._name, "usage": usage}

    def _logprobs(self, event: TokenEvent) -> Logprobs | None:
        if self._request.logprobs is None:
            return None
        return Logprobs(content=[self._token_logprob(token) for token in event.logprobs])

    def _token_logprob(self, token: engine_request.TokenLogprob) -> TokenLogprob:
        """A token's log-probability as the wire shows it."""
        return TokenLogprob(
            token=self._token_text(token.token_id),
            logprob=token.logprob,
            top_logprobs=[TopLogprob(token=self._token_text(i), logprob=value) for i, value in token.top],
        )


def mean_logprob(sequence: TokenEvent) -> float:
    """By which the best of several sequences is told."""
    return sum(token.logprob for token in sequence.logprobs) / max(len(sequence.logprobs), 1)
