"""Calls of a model, tested with a scripted one. A fault here affects notebooks, servers and clients alike."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from run_gpt.api.answers import (
    Answer,
    ChatAnswer,
    ChatChoice,
    ChatEvent,
    ChatEventChoice,
    ChatMessage,
    Choice,
    Delta,
    GenerateAnswer,
    Usage,
)
from run_gpt.api.chat import FunctionCall, Message, ToolCall
from run_gpt.api.language_model import LanguageModel
from run_gpt.api.schema import ChatRequest, Request
from run_gpt.api.tokens import DetokenizedText, DetokenizeRequest, TokenizeRequest, Tokens
from run_gpt.errors import InternalError, InvalidRequest, QueueFull, Unavailable

USAGE = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
COMMON = {"id": "x", "created": 0, "model": "scripted", "usage": USAGE}
SECONDS = 10


def prompt_of(request):
    if isinstance(request, ChatRequest):
        return request.messages[-1].content
    return request.prompt if isinstance(request.prompt, str) else "".join(map(chr, request.prompt))


class ScriptedModel(LanguageModel):
    """A model that answers with the prompt in capitals. "fail" and "break" fail, "wait" never ends.

    A stream comes by letters. Token ids are Unicode code points.
    """

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.waiting = threading.Event()
        self.cancelled = threading.Event()
        self.closed = threading.Event()

    async def _answer(self, request: Request, timeout: float | None, request_id: str | None = None) -> Answer:
        self.asked.append(request)
        about = {name: value for name, value in COMMON.items() if name != "usage"}
        if isinstance(request, TokenizeRequest):
            tokens = [ord(letter) for letter in request.prompt or str(request.messages[-1].content)]
            return Tokens(tokens=tokens, count=len(tokens), max_model_len=9, **about)
        if isinstance(request, DetokenizeRequest):
            return DetokenizedText(prompt="".join(map(chr, request.tokens)), **about)
        text = await self._text(request)
        if isinstance(request, ChatRequest):
            return ChatAnswer(choices=[ChatChoice(index=0, message=ChatMessage(content=text))], **COMMON)
        choices = [Choice(index=i, text=text, finish_reason="stop") for i in range(request.sequences)]
        return GenerateAnswer(choices=choices, **COMMON)

    async def _stream(
        self, request: Request, timeout: float | None, request_id: str | None = None
    ) -> AsyncIterator[Answer]:
        text = prompt_of(request).upper()
        for letter in text:
            for index in range(request.sequences):
                if isinstance(request, ChatRequest):
                    choice = ChatEventChoice(index=index, delta=Delta(content=letter))
                    yield ChatEvent(choices=[choice], **COMMON)
                else:
                    yield GenerateAnswer(choices=[Choice(index=index, text=letter)], **COMMON)
            await asyncio.sleep(0)
        await self._text(request)

    async def _text(self, request: Request) -> str:
        prompt = prompt_of(request)
        if prompt == "fail":
            raise QueueFull("the queue is full")
        if prompt == "break":
            raise InternalError("the model failed")
        if prompt == "wait":
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        return prompt.upper()

    async def aclose(self) -> None:
        self.closed.set()


@pytest.fixture
def model():
    with ScriptedModel() as model:
        yield model


def test_one_prompt_gives_one_answer_and_a_list_gives_a_list(model):
    assert model.generate("hi").text == "HI"
    assert [answer.text for answer in model.generate(["a", "b", "c"])] == ["A", "B", "C"]
    assert [answer.text for answer in model.generate(("a",))] == ["A"]
    assert model.generate([]) == []
    assert list(model.generate_stream([])) == []


def test_messages_are_a_text_or_a_list_of_dicts_or_messages(model):
    for messages in ("hi", [{"role": "user", "content": "hi"}], (Message(role="user", content="hi"),)):
        assert model.chat(messages).text == "HI"
        assert "".join(event.text for event in model.chat_stream(messages)) == "HI"


def test_a_list_of_token_ids_is_one_prompt_and_a_list_of_lists_several(model):
    """Otherwise each id would become a prompt, or several prompts would become one."""
    assert model.generate([104, 105]).text == "HI"
    assert model.generate((104, 105)).text == "HI"
    assert [answer.text for answer in model.generate([[97], "b", (99, 100)])] == ["A", "B", "CD"]
    assert [answer.text for answer in model.generate([[97]])] == ["A"]
    assert "".join(event.text for event in model.generate_stream([104, 105])) == "HI"


def test_texts_and_chats_become_tokens_and_come_back(model):
    assert model.tokenize("hi") == [104, 105]
    assert model.tokenize([{"role": "user", "content": "hi"}]) == [104, 105]
    assert model.detokenize((104, 105)) == "hi"
    with pytest.raises(InvalidRequest, match="tools: this does not go with prompt"):
        model.tokenize("hi", tools=[])
    with pytest.raises(InvalidRequest, match=r"tokens\[0\]: .* got -1"):
        model.detokenize([-1])


def test_an_answers_message_goes_into_the_next_chat_as_it_is(model):
    call = ToolCall(id="call_1", function=FunctionCall(name="now", arguments="{}"))
    message = ChatMessage(content=None, tool_calls=[call])
    result = {"role": "tool", "tool_call_id": "call_1", "content": "noon"}
    assert model.chat([{"role": "user", "content": "When?"}, message, result]).text == "NOON"
    assert model.asked[-1].messages[1].tool_calls == [call]


@pytest.mark.parametrize(
    "prompt", ["", None, 3, b"bytes", [""], [None], ["ok", 3], [3, "ok"], [-1], [True], [[]], [2**31]]
)
def test_a_prompt_that_is_no_text_is_refused_by_name(model, prompt):
    with pytest.raises(InvalidRequest, match="prompt"):
        model.generate(prompt)
    with pytest.raises(InvalidRequest, match="prompt"):
        next(model.generate_stream(prompt))


@pytest.mark.parametrize("messages", [None, [], 3, [3], [{"role": "user"}], {"role": "user", "content": "hi"}])
def test_messages_of_another_shape_are_refused_by_name(model, messages):
    with pytest.raises(InvalidRequest, match="messages"):
        model.chat(messages)


def test_an_unknown_parameter_is_refused_by_name(model):
    with pytest.raises(InvalidRequest, match="tempreature"):
        model.generate("hi", tempreature=1.0)


def test_streams_of_several_prompts_come_with_choices_numbered_through(model):
    texts = ["", "", "", ""]
    for event in model.generate_stream(["ab", "cd"], n=2):
        for choice in event.choices:
            texts[choice.index] += choice.text
    assert texts == ["AB", "AB", "CD", "CD"]


def test_an_error_keeps_its_class(model):
    with pytest.raises(QueueFull):
        model.generate("fail")
    with pytest.raises(QueueFull):
        model.generate(["fine", "fail"])
    with pytest.raises(QueueFull):
        list(model.generate_stream(["fine", "fail"]))
    with pytest.raises(QueueFull):
        list(model.chat_stream("fail"))
    assert model.generate("still here").text == "STILL HERE"


def test_an_error_of_one_prompt_cancels_the_others(model):
    with pytest.raises(InternalError):
        model.generate(["wait", "break"])
    assert model.cancelled.wait(SECONDS)


@pytest.mark.parametrize("call", ["generate_stream", "chat_stream"])
def test_closing_a_stream_early_cancels_its_request(model, call):
    events = getattr(model, call)("wait")
    assert "".join(next(events).text for _ in "wait") == "WAIT"
    assert model.waiting.wait(SECONDS)
    events.close()
    assert model.cancelled.wait(SECONDS)


def test_dropping_a_stream_cancels_its_request(model):
    for _ in model.chat_stream("wait"):
        if model.waiting.wait(SECONDS):
            break
    assert model.cancelled.wait(SECONDS)


@pytest.mark.filterwarnings("error")
def test_a_stream_that_is_never_read_does_nothing(model):
    model.generate_stream("wait")
    del model
    assert not [thread for thread in threading.enumerate() if thread.name == "rungpt-calls"]


def test_two_threads_share_a_model(model):
    answers = {}

    def ask(name):
        answers[name] = [model.generate(name).text for _ in range(20)]

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert answers == {name: [name.upper()] * 20 for name in "abcd"}


async def test_the_sync_calls_work_inside_a_running_loop_as_in_a_notebook(model):
    assert model.generate("hi").text == "HI"
    assert "".join(event.text for event in model.generate_stream("hi")) == "HI"


async def test_the_async_calls():
    async with ScriptedModel() as model:
        assert (await model.agenerate("hi")).text == "HI"
        assert (await model.achat("hi")).text == "HI"
        assert await model.adetokenize(await model.atokenize("hi")) == "hi"
        assert "".join([event.text async for event in model.agenerate_stream("hi")]) == "HI"
        assert "".join([event.text async for event in model.achat_stream("hi")]) == "HI"
        with pytest.raises(QueueFull):
            await model.agenerate(["fail", "wait"])
        async with aclosing(model.achat_stream("wait")) as events:
            async for _ in events:
                break
    assert model.closed.is_set()
    with pytest.raises(Unavailable):
        await model.agenerate("hi")


def test_an_interrupt_cancels_the_request(model, monkeypatch):
    """Ctrl-C in a notebook must not leave the model at work on an unread answer."""
    model.generate("start the thread")

    def interrupted(future, timeout=None):
        assert model.waiting.wait(SECONDS)
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.generate("wait")
    monkeypatch.undo()
    assert model.cancelled.wait(SECONDS)


def test_close_ends_what_runs_and_refuses_what_comes():
    model = ScriptedModel()
    errors = []

    def ask(call):
        with pytest.raises(Unavailable) as raised:
            list(call("wait"))
        errors.append(raised.value)

    threads = [threading.Thread(target=ask, args=(call,)) for call in (model.generate, model.chat_stream)]
    for thread in threads:
        thread.start()
    assert model.waiting.wait(SECONDS)
    model.close()
    for thread in threads:
        thread.join(SECONDS)
    assert len(errors) == 2
    assert model.closed.is_set()
    model.close()
    with pytest.raises(Unavailable):
        model.generate("hi")
    with pytest.raises(Unavailable):
        next(model.chat_stream("hi"))


def test_a_script_that_forgets_to_close_ends_at_once():
    """Without this, a user's script would hang after its last line, or end with noise on stderr."""
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from test_language_model import ScriptedModel
model = ScriptedModel()
print(model.generate("hi").text)
events = model.chat_stream("wait")
next(events)
model.waiting.wait(10)
"""
    folder = __file__.rpartition("/")[0]
    done = subprocess.run([sys.executable, "-W", "default", "-c", script, folder], capture_output=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"HI\n", b"")


class SmallQueue(ScriptedModel):
    """A model with places for two streams at once."""

    def __init__(self) -> None:
        super().__init__()
        self.running, self.most = 0, 0

    async def _stream(
        self, request: Request, timeout: float | None, request_id: str | None = None
    ) -> AsyncIterator[Answer]:
        if self.running == 2:
            raise QueueFull("the queue is full")
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async for event in super()._stream(request, timeout, request_id):
                yield event
        finally:
            self.running -= 1


async def test_streams_of_several_prompts_take_turns_for_the_places_of_a_small_queue():
    """As whole answers do: five prompts in one call are a call that can succeed."""
    async with SmallQueue() as model:
        texts = ["", "", "", "", ""]
        async for event in model.agenerate_stream(["ab", "cd", "ef", "gh", "ij"]):
            for choice in event.choices:
                texts[choice.index] += choice.text
        assert texts == ["AB", "CD", "EF", "GH", "IJ"]
        assert (model.most, model.running) == (2, 0)
        async with aclosing(model.agenerate_stream(["ab", "cd", "ef"])) as events:
            await anext(events)
        assert model.running == 0
