"""An Executor without a model: the prompt is a script (JSON) of the answer and its failure.

Script: {"words": [...] or a number, "delay": seconds before each word, "then": one of THEN, "error": an error's dict}.
A prompt that is no JSON object is the script {}.
With "alternatives": N each word has a log-probability and N alternatives (each event of a stream has "logprobs" of
them); "numbers": N is the size of a vector.
The word "$request_id" is answered with the request id, "$tenant" with the tenant's name. Each request is written to the
journal, a file: "begin ID", then "end ID" or "cancelled ID". The worker reports the content of the file "state-NAME"
beside it as its state; while that is not "ready", it refuses requests. With a file "silent-NAME" beside it the worker
never returns its metrics, which count its words.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

# isort: off
import run_gpt.process._jina  # noqa: F401  (before jina)

# isort: on
from jina import Executor

from run_gpt.api import answers
from run_gpt.api.adapters import AdapterList
from run_gpt.api.embeddings import Embedding, Embeddings, EmbeddingUsage, floats
from run_gpt.api.pieces import Head, Likely, Parts, Piece, Token, Whole, tokens_part
from run_gpt.api.tokens import DetokenizedText, Tokens
from run_gpt.errors import Unavailable, UnknownEndpoint, error_from_dict
from run_gpt.executors.causal_lm.jina_server import add_rpc_methods
from run_gpt.link.frames import METHOD, Start
from run_gpt.link.serving import LinkServer, Reply
from run_gpt.process import request_ids

THEN = ("finish", "hang", "raise", "stop silently", "error")
MODEL, CREATED, PROMPT_TOKENS, CACHED_TOKENS = "scripted", 1, 9, 8

add_rpc_methods()

_ABOUT: dict[str, Any] = {"id": "rungpt-scripted", "created": CREATED, "model": MODEL}
CANNED: dict[str, answers.Body] = {
    "/tokenize": Tokens(**_ABOUT, tokens=[1, 2], count=2, max_model_len=96),
    "/detokenize": DetokenizedText(**_ABOUT, prompt="a b"),
    "/adapters": AdapterList(**_ABOUT, adapters=["one"]),
    "/embed": Embeddings(
        **_ABOUT,
        data=[Embedding(index=0, embedding=[0.6, 0.8])],
        usage=EmbeddingUsage(prompt_tokens=2, total_tokens=2),
    ),
}
"""Answers that are always the same."""


def a_script(prompt: Any) -> dict[str, Any]:
    """Return the script in a prompt; {}, which answers with three words, if it has none."""
    try:
        script = json.loads(prompt)
    except (TypeError, ValueError, RecursionError):
        return {}
    return script if isinstance(script, dict) else {}


def prompt_of(start: Start) -> Any:
    """Return the prompt, or the last message, of a request."""
    body = json.loads(start.body)
    return body["messages"][-1].get("content") if "messages" in body else body["prompt"]


def logprobs(script: dict[str, Any], count: int | None = None) -> Parts:
    """Return the log-probabilities of the words of a script, or of so many."""
    likeliest = [Likely(f"t{i}", -2.345678, list(f"t{i}".encode())) for i in range(script["alternatives"])]
    token = tokens_part([Token("t", -1.2345678, [116], likeliest)] * 16)
    return [token] * ((script["words"] if count is None else count) // 16)


def vectors(count: int, numbers: int) -> Whole:
    """Return vectors of so many numbers."""
    data = [Embedding(index=i, embedding="") for i in range(count)]
    answer = Embeddings(**_ABOUT, data=data, usage=EmbeddingUsage(prompt_tokens=2, total_tokens=2))
    return Whole(answer.to_json().encode(), [[floats([0.1] * numbers)]] * count)


class ScriptedExecutor(Executor):
    def __init__(self, journal: str = "", name: str = "", state: str = "ready", **kwargs: Any):
        super().__init__(**kwargs)
        self.journal, self.who, self.first_state = Path(journal), name, state
        self.started, self.words_given = time.time(), 0
        self.rpc_methods = {METHOD: LinkServer(self.handle).handler}

    @property
    def state(self) -> str:
        said = self.journal.with_name(f"state-{self.who}")
        return said.read_text() if said.exists() else self.first_state

    async def handle(self, start: Start, reply: Reply) -> None:
        """See link.serving.Handle."""
        request_ids.current.set(start.request_id)
        if start.path == "/status":
            reply.put(self.status().model_dump_json().encode())
        elif start.path == "/metrics":
            reply.put((await self.metrics()).encode())
        elif start.path in ("/generate", "/chat"):
            script, answer = a_script(prompt_of(start)), await self.whole(start)
            choices = max(1, json.loads(start.body).get("num_return_sequences") or 1)
            parts = [logprobs(script)] * choices if "alternatives" in script else []
            reply.put(Whole(answer.to_json().encode(), parts))
        elif start.path in ("/generate_stream", "/chat_stream"):
            await self.stream(start, reply)
        elif start.path == "/embed" and (numbers := a_script(json.loads(start.body)["texts"][0]).get("numbers")):
            reply.put(vectors(len(json.loads(start.body)["texts"]), numbers))
        elif start.path == "/tokenize" and (ids := a_script(json.loads(start.body).get("prompt")).get("numbers")):
            reply.put(Tokens(**_ABOUT, tokens=[5] * ids, count=ids, max_model_len=96).to_json().encode())
        elif start.path in CANNED:
            reply.put(CANNED[start.path].to_json().encode())
        else:
            raise UnknownEndpoint(f"an executor has no endpoint {start.path!r}")

    def status(self) -> answers.Status:
        return answers.Status(state=self.state, model=MODEL, running=0, waiting=0, started=self.started)

    async def metrics(self) -> str:
        if self.journal.with_name(f"silent-{self.who}").exists():
            await asyncio.sleep(3600)
        name = "rungpt_generation_tokens_total"
        return f"# HELP {name} Words.\n# TYPE {name} counter\n{name} {self.words_given}\n"

    async def whole(self, start: Start) -> answers.GenerateAnswer | answers.ChatAnswer:
        async with aclosing(self.words(start)) as words:
            texts = [text async for text, _ in words]
        cached = answers.PromptTokensDetails(cached_tokens=CACHED_TOKENS)
        usage = answers.Usage(
            prompt_tokens=PROMPT_TOKENS,
            completion_tokens=len(texts),
            total_tokens=PROMPT_TOKENS + len(texts),
            prompt_tokens_details=cached,
        )
        about: dict[str, Any] = {"id": start.request_id, "created": CREATED, "model": MODEL, "usage": usage}
        count = json.loads(start.body).get("num_return_sequences") or 1
        asked = "alternatives" in a_script(prompt_of(start))
        more: dict[str, Any] = {"finish_reason": "stop", "logprobs": answers.Logprobs(content=[]) if asked else None}
        if start.path == "/generate":
            choices = [answers.Choice(index=i, text="".join(texts), **more) for i in range(count)]
            return answers.GenerateAnswer(choices=choices, **about)
        message = answers.ChatMessage(content="".join(texts))
        chat_choices = [answers.ChatChoice(index=i, message=message, **more) for i in range(count)]
        return answers.ChatAnswer(choices=chat_choices, **about)

    async def stream(self, start: Start, reply: Reply) -> None:
        begun = False
        async with aclosing(self.words(start)) as words:
            async for text, finish in words:
                if not begun:
                    reply.put(Head(id=start.request_id, created=CREATED, model=MODEL, prompt_tokens=PROMPT_TOKENS))
                piece = Piece(index=0, text=text, tokens=1, finish=finish, cached=0 if begun else CACHED_TOKENS)
                if "alternatives" in (script := a_script(prompt_of(start))):
                    piece.logprobs = logprobs(script, script["logprobs"])
                reply.put(piece)
                begun = True

    async def words(self, start: Start) -> AsyncIterator[tuple[str, answers.FinishReason | None]]:
        """Yield the words of the script, the last one with its finish reason. Raises the error in the script."""
        if self.state != "ready":
            raise Unavailable(f"the engine is {self.state}")
        script = a_script(prompt_of(start))
        words = script.get("words", ["Hello", " from ", self.who])
        words = [f"{i} " for i in range(words)] if isinstance(words, int) else words
        then = script.get("then", "finish")
        with self.noted(start.request_id):
            for i, word in enumerate(words):
                await asyncio.sleep(script.get("delay", 0))
                self.words_given += 1
                last = then == "finish" and i == len(words) - 1
                known = {"$request_id": start.request_id, "$tenant": start.tenant}
                yield known.get(word, word), "stop" if last else None
            if then == "hang":
                await asyncio.sleep(3600)
            elif then == "raise":
                raise ZeroDivisionError("the script says so")
        if then == "error":
            raise error_from_dict(script["error"])

    @contextmanager
    def noted(self, request_id: str) -> Iterator[None]:
        self.note("begin", request_id)
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            self.note("cancelled", request_id)
            raise
        else:
            self.note("end", request_id)

    def note(self, what: str, request_id: str) -> None:
        with self.journal.open("a") as journal:
            journal.write(f"{what} {request_id} {self.who}\n")
