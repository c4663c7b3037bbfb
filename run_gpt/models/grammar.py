"""Compilation of an answer's constraint (a JSON schema, a regex, a list of choices) to a grammar for the engine.

It uses llguidance (MIT, Rust), which computes the mask of a step only when the step comes, from a lexer that grows as
it is used. Compiling a schema takes about a millisecond and a mask some microseconds; libraries that compare a grammar
with the vocabulary beforehand can take seconds. A schema keyword that llguidance does not implement is an error that
names it, so it is never ignored silently. It needs no torch. Tested with version 1.9.1. A few steps of its compilation
are not bounded, so each grammar is first tried in another process (see trial.py).
"""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import takewhile
from typing import Any, Literal

import llguidance.hf
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer

from run_gpt.errors import InvalidRequest, RequestError
from run_gpt.models.json_schema import enforceable
from run_gpt.models.trial import Trial, limits
from run_gpt.process.pace import Pace

Kind = Literal["json_object", "json_schema", "regex", "choice", "lark"]

MAX_SOURCE = 64 * 1024
"""Largest size of a schema, a regex or a list of choices, in bytes."""
MAX_LARK = 256 * 1024
"""Largest size of a grammar in Lark, which has the schemas of many functions, in bytes."""
CACHED = 64
"""Largest number of compiled grammars that are kept."""
CACHED_SECONDS = 3.0
"""Limit of the CPU time that the kept grammars took to compile in total, in seconds.

A grammar that took long is large: up to 300 MB for each second.
"""
THREADS = 2
WAITING = 64
"""Number of compilations that may run or wait for a thread."""
WHITESPACE = r"[ \t]?|\r?\n[ \t]{0,40}"
"""White space between the parts of a JSON text: a space, or a new line and its indent. It is bounded, since a small
model might otherwise repeat it for ever."""
_JSON = {
    "whitespace_pattern": WHITESPACE,
    "whitespace_flexible": True,
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    "lenient": False,
}


class GrammarMatcher:
    """Matcher (as the engine defines it): state of one sequence in its grammar."""

    def __init__(self, matcher: LLMatcher, end_ids: Sequence[int], vocabulary: int, rows: int):
        self._matcher = matcher
        self.end_ids = list(end_ids)
        """Ids of the tokens that end a sequence."""
        self._vocabulary = vocabulary
        self._rows = rows

    def allows(self, token_id: int) -> bool:
        """See Matcher."""
        if token_id in self.end_ids:
            allowed = self._matcher.is_accepting()
        else:
            allowed = token_id < self._vocabulary and self._matcher.validate_tokens([token_id]) == 1
        self._check()
        return bool(allowed)

    def mask(self) -> torch.Tensor:
        """See Matcher."""
        bits = self._matcher.compute_bitmask()
        self._check()
        allowed = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little", count=self._vocabulary)
        # A tokenizer's end token may be ordinary text that can also occur in the middle of an answer.
        allowed[self.end_ids] = self._matcher.is_accepting()
        return torch.from_numpy(allowed.view(np.bool_))  # no copy, for which torch would wake its threads

    def advance(self, token_id: int) -> None:
        """See Matcher."""
        self._matcher.consume_token(token_id)
        self._check()

    def forced(self) -> list[int]:
        """See Matcher."""
        tokens = self._matcher.compute_ff_tokens()
        self._check()
        return list(takewhile(lambda token_id: token_id < self._rows, tokens))  # the model takes no others

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refusal(f"the grammar cannot go on: {_reason(self._matcher.get_error())}")


class CompiledGrammar:
    """Grammar (as the engine defines it): constraint of an answer. Sequences share only its immutable parts."""

    def __init__(self, matcher: LLMatcher, end_ids: Sequence[int], vocabulary: int, rows: int):
        """`vocabulary`: number of tokens of the matcher; `rows`: number of token ids that the model takes."""
        self._first = matcher
        self._end_ids = end_ids
        self._vocabulary = vocabulary
        self._rows = rows

    def matcher(self) -> GrammarMatcher:
        """See Grammar."""
        return GrammarMatcher(self._first.deep_copy(), self._end_ids, self._vocabulary, self._rows)


class GrammarCompiler:
    """Compiler of grammars for one tokenizer, which keeps the most recently used ones. Thread-safe."""

    def __init__(self, tokenizer: Any, vocabulary: int, end_ids: Sequence[int]):
        """Create a compiler; nothing is built before its first use.

        `vocabulary` is the size of the model's vocabulary, and `end_ids` are the token ids that end a sequence.
        """
        self._tokenizer = tokenizer
        self._rows = vocabulary
        self._vocabulary = max(vocabulary, len(tokenizer))
        self._end_ids = tuple(end_ids)
        self._building = threading.Lock()
        self._built: LLTokenizer | RequestError | None = None
        self._trial = Trial([token.content for token in _added(tokenizer)], self._vocabulary)
        self._kept: OrderedDict[tuple[str, str, str], tuple[CompiledGrammar, float]] = OrderedDict()
        self._keeping = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="rungpt-grammar")
        self._room = threading.BoundedSemaphore(WAITING)
        self._pace = Pace(THREADS)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end a sequence."""
        return self._end_ids

    def start(self) -> None:
        """Build the shared tokenizer (about a second for a large vocabulary) and one grammar, in the background."""
        self._threads.submit(self.compile, "json_object")

    def submit(self, kind: Kind, source: str = "", space: str = "") -> "Future[CompiledGrammar]":
        """Run `compile` in one of the compiler's threads; a kept grammar is there at once. Raises QueueFull."""
        future: Future[CompiledGrammar] = Future()
        if (kept := self._find(_key(kind, source, space))) is not None:
            future.set_result(kept)
            return future
        if not self._room.acquire(blocking=False):
            raise self._pace.full(f"{WAITING} grammars wait to be compiled")
        future = self._threads.submit(self._pace.timed(self.compile), kind, source, space)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def compile(self, kind: Kind, source: str = "", space: str = "") -> CompiledGrammar:
        """Compile a grammar. Blocks for about a millisecond for a common schema, and for 10 s at most.

        `source`, by kind: json_object: none; json_schema: a schema as JSON text, whose order of properties is that of
        the answer; regex: a regex that the whole answer matches, in the syntax of Rust's regex crate, without
        look-around; choice: a JSON list of texts; lark: a grammar in llguidance's own syntax. `space`: a kept grammar
        is for requests of the same space only (see Request.cache_space), as its time would show another's use of it.

        Raises InvalidRequest.
        """
        if (kept := self._find(_key(kind, source, space))) is not None:
            return kept
        what, limit = ("grammar", MAX_LARK) if kind == "lark" else (kind, MAX_SOURCE)
        if (size := len(source.encode(errors="replace"))) > limit:
            raise _refusal(f"the {what} has {size} bytes, the limit is {limit}")
        tokenizer, grammar = self._ll_tokenizer(), _SOURCES[kind](source)
        if not self._trial.passes(grammar):
            raise _refusal(f"the {what} takes too long or too much memory to compile: make it simpler")
        began = time.thread_time()
        compiled = CompiledGrammar(_compiled(tokenizer, grammar), self._end_ids, tokenizer.vocab_size, self._rows)
        self._keep(_key(kind, source, space), compiled, time.thread_time() - began)
        return compiled

    def close(self) -> None:
        """End the threads and processes, and their work; blocks at most about as long as one grammar takes."""
        self._trial.close()
        self._threads.shutdown(cancel_futures=True)

    def _find(self, key: tuple[str, str, str]) -> CompiledGrammar | None:
        with self._keeping:
            if (kept := self._kept.get(key)) is None:
                return None
            self._kept.move_to_end(key)
            return kept[0]

    def _keep(self, key: tuple[str, str, str], grammar: CompiledGrammar, seconds: float) -> None:
        with self._keeping:
            self._kept[key] = grammar, seconds
            while len(self._kept) > CACHED or (
                len(self._kept) > 1 and sum(seconds for _, seconds in self._kept.values()) > CACHED_SECONDS
            ):
                self._kept.popitem(last=False)

    def _ll_tokenizer(self) -> LLTokenizer:
        """Return the tokenizer for llguidance, which is built once.

        Raises InvalidRequest, on each call, if this tokenizer or model does not support grammars.
        """
        with self._building:
            if self._built is None:
                self._built = self._build()
        if isinstance(self._built, RequestError):
            raise _refusal(self._built.message)
        return self._built

    def _build(self) -> LLTokenizer | RequestError:
        refused = "structured output is not available with this model: "
        if not self._end_ids:
            return _refusal(f"{refused}it has no token that ends an answer")
        try:
            return llguidance.hf.from_tokenizer(
                self._tokenizer, n_vocab=self._vocabulary, eos_token=list(self._end_ids)
            )
        except Exception as error:  # any fault that llguidance finds in a tokenizer
            return _refusal(f"{refused}{_reason(str(error))}")


def _key(kind: Kind, source: str, space: str) -> tuple[str, str, str]:
    """Return the key of a kept grammar; one without a source is everybody's."""
    return kind, source, space if source else ""


def _json_schema(source: str) -> str:
    """Return the grammar of a JSON schema, with its properties in their order."""
    schema = _parsed(source)
    if not isinstance(schema, dict):
        raise _refusal("the JSON schema is not an object")
    if "x-guidance" in schema:
        raise _refusal("the JSON schema is refused: x-guidance is not for requests to set")
    try:
        return str(LLMatcher.grammar_from_json_schema(json.dumps(enforceable(schema)), overrides=_JSON))
    except ValueError as error:
        raise _refusal(f"the JSON schema is refused: {_reason(str(error))}") from error


def _choice(source: str) -> str:
    choices = _parsed(source)
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise _refusal("the choices are not a list of texts, at least one")
    return str(LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, choices))))


def _parsed(source: str) -> Any:
    try:
        return json.loads(source)
    except (ValueError, RecursionError) as error:
        raise _refusal(f"it is not JSON: {_reason(str(error))}") from error


_SOURCES: dict[str, Callable[[str], str]] = {
    "json_object": lambda source: _json_schema('{"type": "object"}'),
    "json_schema": _json_schema,
    "regex": LLMatcher.grammar_from_regex,
    "choice": _choice,
    "lark": LLMatcher.grammar_from_lark,
}


def _compiled(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Return a matcher at the grammar's beginning. The first mask is computed to check that any text is allowed."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise _refusal(f"the grammar is refused: {_reason(matcher.get_error())}")
    if warnings := [text for text in matcher.get_grammar_warnings() if "Unimplemented" in text]:
        raise _refusal(f"the grammar is refused: {_reason(warnings[0])}")
    return matcher


def _added(tokenizer: Any) -> list[Any]:
    return list(getattr(tokenizer, "added_tokens_decoder", {}).values())


def _reason(text: str) -> str:
    """Return the library's reason in one line; for an error in a regex it stands below a drawing of the regex."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and line != "<non-verbose/>"]
    line = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), (lines or ["?"])[0])
    if line.startswith("NoExtension"):
        return "there is no text that it allows"
    return line if len(line) <= 200 else f"{line[:197]}..."


def _refusal(message: str) -> InvalidRequest:
    return InvalidRequest(f"response_format: {message}", param="response_format")
