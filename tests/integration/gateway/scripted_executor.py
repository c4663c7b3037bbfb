"""An Executor without a model: the prompt is a script (JSON) that says what to answer and how to fail.

Script: {"words": [...] or a number, "delay": seconds before each word, "then": one of THEN, "error": an error's dict}.
The word "$request_id" is answered with what the request is called. Each request is written to the journal, a file:
"begin ID", then "end ID" or "cancelled ID". What stands in the file "state-NAME" beside it is what the worker says of
its state; while that is not "ready" it refuses requests. With a file "silent-NAME" beside it the worker never gives its
metrics, which count its words.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# isort: off
import run_gpt._jina  # noqa: F401  (before jina)

# isort: on
from docarray import DocList
from jina import Executor, requests

from run_gpt import request_ids
from run_gpt.api import answers
from run_gpt.api import documents as d
from run_gpt.errors import Unavailable, error_from_dict

THEN = ("finish", "hang", "raise", "stop silently", "error")


class ScriptedExecutor(Executor):
    def __init__(self, journal: str = "", name: str = "", state: str = "ready", **kwargs: Any):
        super().__init__(**kwargs)
        self.journal, self.who, self.first_state = Path(journal), name, state
        self.started, self.words_given = time.time(), 0

    @property
    def state(self) -> str:
        said = self.journal.with_name(f"state-{self.who}")
        return said.read_text() if said.exists() else self.first_state

    @requests(on="/status")
    async def status(self, **_: Any) -> DocList[d.StatusDocument]:
        about = {"model": "scripted", "running": 0, "waiting": 0, "started": self.started}
        return DocList[d.StatusDocument]([d.StatusDocument(state=self.state, **about)])

    @requests(on="/metrics")
    async def metrics(self, **_: Any) -> DocList[d.MetricsDocument]:
        if self.journal.with_name(f"silent-{self.who}").exists():
            await asyncio.sleep(3600)
        name = "rungpt_generation_tokens_total"
        text = f"# HELP {name} Words.\n# TYPE {name} counter\n{name} {self.words_given}\n"
        return DocList[d.MetricsDocument]([d.MetricsDocument(text=text)])

    @requests(on="/generate")
    async def generate(self, docs: DocList[d.GenerateRequestDocument], **_: Any) -> DocList[d.CompletionDocument]:
        wholes = await asyncio.gather(*(self.whole(doc.id, doc.prompt) for doc in docs))
        return DocList[d.CompletionDocument](
            d.answer_to_document(
                answers.Completion(choices=[answers.Choice(index=0, text=text, finish_reason="stop")], **about)
            )
            for text, about in wholes
        )

    @requests(on="/chat")
    async def chat(self, docs: DocList[d.ChatRequestDocument], **_: Any) -> DocList[d.ChatCompletionDocument]:
        wholes = await asyncio.gather(*(self.whole(doc.id, doc.messages[-1]["content"]) for doc in docs))
        return DocList[d.ChatCompletionDocument](
            d.answer_to_document(
                answers.ChatCompletion(
                    choices=[
                        answers.ChatChoice(index=0, message=answers.ChatMessage(content=text), finish_reason="stop")
                    ],
                    **about,
                )
            )
            for text, about in wholes
        )

    @requests(on="/generate_stream")
    async def generate_stream(self, doc: d.GenerateRequestDocument, **_: Any) -> d.CompletionDocument:
        async for text, reason, about in self.words(doc.id, doc.prompt):
            if isinstance(text, Exception):
                yield d.error_to_document(answers.Completion, text)
                return
            yield d.answer_to_document(
                answers.Completion(choices=[answers.Choice(index=0, text=text, finish_reason=reason)], **about)
            )

    @requests(on="/chat_stream")
    async def chat_stream(self, doc: d.ChatRequestDocument, **_: Any) -> d.ChatCompletionChunkDocument:
        async for text, reason, about in self.words(doc.id, doc.messages[-1]["content"]):
            if isinstance(text, Exception):
                yield d.error_to_document(answers.ChatCompletionChunk, text)
                return
            delta = answers.Delta(content=text)
            yield d.answer_to_document(
                answers.ChatCompletionChunk(
                    choices=[answers.ChatChunkChoice(index=0, delta=delta, finish_reason=reason)], **about
                )
            )

    async def whole(self, request_id: str, prompt: str) -> tuple[str, dict[str, Any]]:
        texts = []
        async for text, _, _ in self.words(request_id, prompt):
            if isinstance(text, Exception):
                raise d.WireError(text)
            texts.append(text)
        return "".join(texts), self.about(request_id, len(texts))

    async def words(self, request_id: str, prompt: str) -> AsyncIterator[tuple[Any, Any, dict[str, Any]]]:
        if self.state != "ready":
            yield Unavailable(f"the engine is {self.state}"), None, {}
            return
        script = json.loads(prompt)
        words = script.get("words", ["Hello", " from ", self.who])
        words = [f"{i} " for i in range(words)] if isinstance(words, int) else words
        then = script.get("then", "finish")
        with self.noted(request_id):
            for i, word in enumerate(words):
                await asyncio.sleep(script.get("delay", 0))
                self.words_given += 1
                last = then == "finish" and i == len(words) - 1
                word = request_ids.current.get() if word == "$request_id" else word
                yield word, "stop" if last else None, self.about(request_id, i + 1)
            if then == "hang":
                await asyncio.sleep(3600)
            elif then == "raise":
                raise ZeroDivisionError("the script says so")
            elif then == "error":
                yield error_from_dict(script["error"]), None, {}

    def about(self, request_id: str, tokens: int) -> dict[str, Any]:
        cached = answers.PromptTokensDetails(cached_tokens=8)
        usage = answers.Usage(
            prompt_tokens=9, completion_tokens=tokens, total_tokens=9 + tokens, prompt_tokens_details=cached
        )
        return {"id": request_id, "created": 1, "model": "scripted", "usage": usage}

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
