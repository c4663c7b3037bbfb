"""Without these tests one answer with log-probabilities could stop everybody's streams while its tokens get texts."""

import asyncio
import threading
import time

import pytest
from test_model import ScriptedTokenizer, model_of

from run_gpt.engine.request import TokenEvent, TokenLogprob
from run_gpt.errors import InternalError

TOKENS, ALTERNATIVES = 1000, 20
MOST_SECONDS = 0.02


def scored(count, start=0):
    """Return log-probabilities of `count` tokens; all their alternatives are different."""
    return tuple(
        TokenLogprob(place % 900, -0.5, tuple((7 * (place + i) % 997, -1.0 - i) for i in range(ALTERNATIVES)))
        for place in range(start, start + count)
    )


class Recorder(ScriptedTokenizer):
    """Tokenizer that notes the threads that asked it for texts."""

    def __init__(self):
        self.threads = []

    def decode(self, ids, **options):
        self.threads.append(threading.current_thread())
        return super().decode(ids, **options)


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr("test_model.ScriptedTokenizer", lambda: recorder)
    return recorder


@pytest.fixture
def longest(monkeypatch):
    """Return a list with the CPU time of each callback of the test's event loop."""
    spent, run, loop_thread = [], asyncio.events.Handle._run, threading.current_thread()

    def timed(handle):
        before = time.thread_time()
        run(handle)
        if threading.current_thread() is loop_thread:
            spent.append(time.thread_time() - before)

    monkeypatch.setattr(asyncio.events.Handle, "_run", timed)
    return spent


async def test_texts_of_a_whole_answer_are_made_beside_the_event_loop(recorder, longest):
    model, _ = model_of(TokenEvent(0, "x" * TOKENS, TOKENS, "stop", scored(TOKENS)))
    async with model:
        answer = await model.agenerate("ab", logprobs=ALTERNATIVES)
    content = answer.choices[0].logprobs.content
    assert [len(token.top_logprobs) for token in content] == [ALTERNATIVES] * TOKENS
    assert [token.token for token in content] == [chr(place % 900) for place in range(TOKENS)]
    assert threading.current_thread() not in recorder.threads
    assert len(recorder.threads) <= 1000  # each text once, though 21,000 are shown
    assert max(longest) < MOST_SECONDS


async def test_texts_of_a_stream_are_made_beside_the_event_loop(recorder, longest):
    events = [TokenEvent(0, "x" * 100, 100, None, scored(100, 100 * i)) for i in range(9)]
    model, _ = model_of(*events, TokenEvent(0, "end", 1, "stop", scored(1)))
    async with model:
        shown = [event async for event in model.agenerate_stream("ab", logprobs=ALTERNATIVES)]
    assert "".join(event.text for event in shown) == "x" * 900 + "end"
    assert shown[-1].choices[0].finish_reason == "stop"
    content = [token for event in shown for token in event.choices[0].logprobs.content]
    assert [token.token for token in content] == [chr(place) for place in range(900)] + [chr(0)]
    assert threading.current_thread() not in recorder.threads


async def test_a_request_that_is_cancelled_gets_no_more_texts(recorder):
    model, _ = model_of(TokenEvent(0, "x" * TOKENS, TOKENS, "stop", scored(TOKENS)))
    begun, gate = threading.Event(), threading.Event()
    decode = recorder.decode

    def slow(ids, **options):
        begun.set()
        assert gate.wait(10)
        return decode(ids, **options)

    recorder.decode = slow
    async with model:
        asking = asyncio.create_task(model.agenerate("ab", logprobs=ALTERNATIVES))
        assert await asyncio.to_thread(begun.wait, 10)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        gate.set()
        await model._workers.run(lambda: None)
    await asyncio.to_thread(lambda: [thread.join(10) for thread in set(recorder.threads)])
    assert 0 < len(recorder.threads) < 200  # the part that ran, of 16


async def test_a_text_that_cannot_be_made_ends_the_stream_with_an_error(recorder):
    recorder.decode = lambda ids, **options: 1 / 0
    model, engine = model_of(TokenEvent(0, "x", 1, "stop", scored(1)))
    engine.abort = lambda request_id: None
    async with model:
        with pytest.raises(InternalError, match="ZeroDivisionError"):
            async for _ in model.agenerate_stream("ab", logprobs=1):
                pass
