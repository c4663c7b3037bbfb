"""Outcome of each run of a step: its tokens, scores or hidden states are added to its sequence, which may end."""

import math
import operator
from collections import abc

from run_gpt.engine.plan import Counters, Outcome, Result, Sampled, ScheduledTokens, Scores, Sequence, Sums
from run_gpt.engine.request import FinishReason, SamplingParams, TokenEvent, TokenLogprob
from run_gpt.errors import InternalError, RequestError


def fault(error: BaseException) -> RequestError:
    """Return the error that ends a sequence whose data broke the engine's work on it."""
    if isinstance(error, RequestError):
        return error
    return InternalError(f"the engine failed on this request: {type(error).__name__}: {str(error).strip()[:200]}")


class Outcomes:
    """Results of runs, added to their sequences. Generated, drafted and accepted tokens are counted in `counters`."""

    def __init__(self, end_ids: abc.Sequence[int], counters: Counters):
        self._end_ids = frozenset(end_ids)
        self._counters = counters

    def end_ids(self, sampling: SamplingParams) -> frozenset[int]:
        """Return the ids of tokens that end a sequence with these parameters."""
        if sampling.ignore_eos:
            return sampling.stop_token_ids
        return self._end_ids | sampling.stop_token_ids if sampling.stop_token_ids else self._end_ids

    def add(self, run: ScheduledTokens, result: Result, states: Sums, scores: Scores) -> Outcome | None:
        """Add a run's results to its sequence. Returns its event, None if there is none yet, or the error that ends it.

        Any fault ends this sequence alone.
        """
        try:
            return self.add_states(run, states) if run.pooled else self.add_tokens(run, result, scores)
        except BaseException as error:  # a library's panic is no Exception
            return fault(error)

    def add_states(self, run: ScheduledTokens, states: Sums) -> Outcome | None:
        """Add a run's hidden states to those of its sequence. Returns the event with the embedding after the last run.

        The embedding is normalised to length 1, where a sum and a mean are the same.
        """
        sequence = run.sequence
        self._record(run, 0)
        added = sequence.sums and sequence.request.pooling == "mean"
        sequence.sums = tuple(map(operator.add, sequence.sums, states)) if added else tuple(states)
        if run.end < len(sequence.token_ids):
            return None
        length = math.hypot(*sequence.sums)
        if not math.isfinite(length) or not length:
            return InternalError("the model gave no number for its hidden state: try another precision (bf16 or fp32)")
        embedding = tuple(value / length for value in sequence.sums)
        return TokenEvent(sequence.index, "", 0, "stop", cached_tokens=sequence.cached, embedding=embedding)

    def add_tokens(self, run: ScheduledTokens, result: Result, scores: Scores) -> Outcome | None:
        """Add a run's scores and sampled tokens to its sequence. Returns None before the prompt's end."""
        if isinstance(scores, RequestError):
            return scores
        if isinstance(result, RequestError):
            return result
        run.sequence.scores += scores
        outcome = self._append(run, result) if result else None
        self._record(run, len(result))
        return outcome

    def _record(self, run: ScheduledTokens, sampled: int) -> None:
        """Record the tokens that the slot holds now: those run, without drafts that were rejected or after the end."""
        sequence, drafted = run.sequence, max(0, run.num_sampled - 1)
        assert sequence.place is not None
        accepted = max(0, sampled - 1)
        sequence.place.length = min(run.end - drafted + accepted, len(sequence.token_ids))
        if drafted:
            sequence.drafts.learn(sequence.token_ids, drafted, accepted)
            sequence.drafted += drafted
            sequence.accepted += accepted
            self._counters.drafted_tokens += drafted
            self._counters.accepted_tokens += accepted

    def _append(self, run: ScheduledTokens, result: abc.Sequence[Sampled]) -> Outcome:
        """Append tokens until one ends the sequence. Order: append, end-of-sequence ids, stop sequences, length.

        If `max_new_tokens` is 0, the token that was sampled after the prompt is dropped.
        """
        sequence = run.sequence
        scores = () if sequence.answered else tuple((sequence.first or sequence).scores)
        if not sequence.request.max_new_tokens:
            return TokenEvent(sequence.index, "", 0, "length", cached_tokens=sequence.cached, prompt_logprobs=scores)
        text, finish, taken, logprobs = "", None, 0, list[TokenLogprob]()
        try:
            while finish is None and taken < len(result):
                token_id, scored = result[taken].token_id, result[taken].logprob
                sequence.token_ids.append(token_id)
                new, finish = self._advance_text(sequence, token_id)
                text, taken = text + new, taken + 1
                if scored is not None and sequence.shown is not None:
                    ends = token_id in sequence.end_ids
                    logprobs += sequence.shown.add(scored, over=finish is not None, ends=ends)
        except BaseException as error:  # an error of the tokenizer ends only this sequence
            return InternalError(f"the answer's text failed: {error}")
        self._counters.generated_tokens += taken
        cached, stop = sequence.cached, sequence.text.stops.found
        return TokenEvent(
            sequence.index, text, taken, finish, tuple(logprobs), cached, prompt_logprobs=scores, stop=stop
        )

    def _advance_text(self, sequence: Sequence, token_id: int) -> tuple[str, FinishReason | None]:
        if token_id in sequence.end_ids:
            return sequence.text.finish()[0], "stop"
        text, stopped = sequence.text.push(token_id)
        if stopped:
            return text, "stop"
        if sequence.answered < sequence.request.max_new_tokens:
            return text, None
        rest, stopped = sequence.text.finish()
        return text + rest, "stop" if stopped else "length"
