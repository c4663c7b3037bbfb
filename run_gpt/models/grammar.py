"""Compiles what an answer must be (a JSON schema, a regex, a list of choices) to a grammar that the engine follows.

By llguidance (MIT, Rust). It makes the mask of a step when the step comes, from a lexer that grows as it is used:
compiling a schema takes about a millisecond and a mask some microseconds, where libraries that compare a grammar with
the vocabulary beforehand can take seconds. A schema keyword that it does not implement is an error that names it, not a
promise that is not kept; and it needs no torch. Tried against 1.9.1: what of its compiling is not bounded is tried
elsewhere first (see trial.py).
"""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import llguidance.hf
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer

from run_gpt.errors import InvalidRequest, QueueFull, RequestError
from run_gpt.models.trial import Trial, limits

Kind = Literal["json_object", "json_schema", "regex", "choice", "lark"]

MAX_SOURCE = 64 * 1024
"""Bytes of a schema, a regex, a list of choices or a grammar."""
CACHED = 64
"""Grammars that are kept,"""
CACHED_SECONDS = 3.0
"""and the CPU time that these took together: one that took long is large, up to 300 MB for each second."""
THREADS = 2
WAITING = 64
"""Compilations that may wait for a thread."""
WHITESPACE = r"[ \t]?|\r?\n[ \t]{0,40}"
"""Between the parts of a JSON text: a space, or a new line and its indent. Without a bound a small model may go on with
it for ever."""
_JSON = {
    "whitespace_pattern": WHITESPACE,
    "whitespace_flexible": True,
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    "lenient": False,
}


class GrammarMatcher:
    """Where one row is in its grammar: the engine's Matcher."""

    def __init__(self, matcher: LLMatcher, end_ids: Sequence[int], vocabulary: int):
        self._matcher = matcher
        self._end_ids = list(end_ids)
        self._vocabulary = vocabulary

    def allows(self, token_id: int) -> bool:
        """See Matcher."""
        if token_id in self._end_ids:
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
        # A tokenizer may have an end that is a text like others, to be found in the middle of an answer.
        allowed[self._end_ids] = self._matcher.is_accepting()
        return torch.from_numpy(allowed.view(np.bool_))

    def advance(self, token_id: int) -> None:
        """See Matcher."""
        self._matcher.consume_token(token_id)
        self._check()

    def forced(self) -> list[int]:
        """See Matcher."""
        tokens = self._matcher.compute_ff_tokens()
        self._check()
        return list(tokens)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refusal(f"the grammar cannot go on: {_reason(self._matcher.get_error())}")


class CompiledGrammar:
    """What an answer must be: the engine's Grammar. Rows share nothing of it that changes."""

    def __init__(self, matcher: LLMatcher, end_ids: Sequence[int], vocabulary: int):
        self._first = matcher
        self._end_ids = end_ids
        self._vocabulary = vocabulary

    def matcher(self) -> GrammarMatcher:
        """See Grammar."""
        return GrammarMatcher(self._first.deep_copy(), self._end_ids, self._vocabulary)


class GrammarCompiler:
    """Compiles grammars for one tokenizer, and keeps those that were asked for last. Thread-safe."""

    def __init__(self, tokenizer: Any, vocabulary: int, end_ids: Sequence[int]):
        """`vocabulary`: of the model; `end_ids`: the token ids that end a sequence. Nothing is built before its use."""
        self._tokenizer = tokenizer
        self._vocabulary = max(vocabulary, len(tokenizer))
        self._end_ids = tuple(end_ids)
        self._building = threading.Lock()
        self._built: LLTokenizer | RequestError | None = None
        self._trial = Trial([token.content for token in _added(tokenizer)])
        self._kept: OrderedDict[tuple[str, str], tuple[CompiledGrammar, float]] = OrderedDict()
        self._keeping = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="rungpt-grammar")
        self._room = threading.BoundedSemaphore(WAITING)

    def start(self) -> None:
        """Build in the background what every grammar needs, about a second for a large vocabulary, and one grammar."""
        self._threads.submit(self.compile, "json_object")

    def submit(self, kind: Kind, source: str = "") -> "Future[CompiledGrammar]":
        """`compile` in one of a few threads of its own; at once if the grammar is kept. Raises QueueFull."""
        future: Future[CompiledGrammar] = Future()
        if (kept := self._find(kind, source)) is not None:
            future.set_result(kept)
            return future
        if not self._room.acquire(blocking=False):
            raise QueueFull(f"{WAITING} grammars wait to be compiled: try again in {QueueFull.retry_after} s")
        future = self._threads.submit(self.compile, kind, source)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def compile(self, kind: Kind, source: str = "") -> CompiledGrammar:
        """Blocks, about a millisecond for a common schema and 10 s at the worst. `source`, by kind:

        json_object: none; json_schema: a schema as JSON text, whose order of properties is that of the answer; regex:
        one that the whole answer matches, in the syntax of Rust's regex crate, without look-around; choice: a JSON list
        of texts; lark: a grammar in llguidance's own syntax (see `json_rule` for a schema in it).

        Raises InvalidRequest.
        """
        if (kept := self._find(kind, source)) is not None:
            return kept
        if (size := len(source.encode(errors="replace"))) > MAX_SOURCE:
            raise _refusal(f"the {kind} has {size} bytes, the limit is {MAX_SOURCE}")
        tokenizer, grammar = self._ll_tokenizer(), _SOURCES[kind](source)
        if not self._trial.passes(grammar):
            raise _refusal(f"the {kind} takes too long or too much memory to compile: make it simpler")
        began = time.thread_time()
        compiled = CompiledGrammar(_compiled(tokenizer, grammar), self._end_ids, tokenizer.vocab_size)
        self._keep((kind, source), compiled, time.thread_time() - began)
        return compiled

    def close(self) -> None:
        """End its threads and processes, and what they do; blocks for about as long as a grammar takes at most."""
        self._trial.close()
        self._threads.shutdown(cancel_futures=True)

    def _find(self, kind: Kind, source: str) -> CompiledGrammar | None:
        with self._keeping:
            if (kept := self._kept.get((kind, source))) is None:
                return None
            self._kept.move_to_end((kind, source))
            return kept[0]

    def _keep(self, key: tuple[str, str], grammar: CompiledGrammar, seconds: float) -> None:
        with self._keeping:
            self._kept[key] = grammar, seconds
            while len(self._kept) > CACHED or (
                len(self._kept) > 1 and sum(seconds for _, seconds in self._kept.values()) > CACHED_SECONDS
            ):
                self._kept.popitem(last=False)

    def _ll_tokenizer(self) -> LLTokenizer:
        """Built once. Raises InvalidRequest, each time, if this tokenizer or model is not one for grammars."""
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
        except Exception as error:  # whatever it does not like about a tokenizer
            return _refusal(f"{refused}{_reason(str(error))}")


def json_rule(schema: str) -> str:
    """A JSON schema as llguidance's Lark takes it after a rule's name, with the white space that `compile` allows.

    Raises InvalidRequest.
    """
    return "%json " + json.dumps({**_schema(schema), "x-guidance": _JSON})


def _json_schema(source: str) -> str:
    """The library reads the text itself, and so keeps the order of the properties."""
    _schema(source)
    try:
        return str(LLMatcher.grammar_from_json_schema(source, overrides=_JSON))
    except ValueError as error:
        raise _refusal(f"the JSON schema is refused: {_reason(str(error))}") from error


def _schema(source: str) -> dict[str, Any]:
    schema = _parsed(source)
    if not isinstance(schema, dict):
        raise _refusal("the JSON schema is not an object")
    if "x-guidance" in schema:
        raise _refusal("the JSON schema is refused: x-guidance is not for requests to set")
    return schema


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
    """At its beginning, with the first mask made: then it is known that it allows anything at all."""
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
    """The library's reason in one line: that of a regex's error stands below a picture of it."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and line != "<non-verbose/>"]
    line = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), (lines or ["?"])[0])
    if line.startswith("NoExtension"):
        return "there is no text that it allows"
    return line if len(line) <= 200 else f"{line[:197]}..."


def _refusal(message: str) -> InvalidRequest:
    return InvalidRequest(f"response_format: {message}", param="response_format")
