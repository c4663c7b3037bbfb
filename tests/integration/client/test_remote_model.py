"""The client's calls against the real gRPC and HTTP ports: same answers, same errors, nothing left running."""

import asyncio
import json
import threading
import time
from contextlib import aclosing

import pytest

from run_gpt import errors
from run_gpt.client import Client

SECONDS = 20
TEXT = "héllo\u2028wörld\u0085 🦙\r\n\tend"
REQUEST_ERRORS = list(errors._BY_CODE.values())


@pytest.fixture
def model(endpoint):
    with Client().get_model(endpoint=endpoint) as model:
        yield model


def _error(cls):
    return json.dumps(cls("it went wrong", param="prompt").to_dict())


def _both(scripted, ask):
    """Return the results of `ask` over gRPC and over HTTP."""
    answers = []
    for url in (scripted.grpc_url, scripted.http_url):
        with Client().get_model(endpoint=url) as model:
            answers.append(ask(model))
    return answers


def test_grpc_and_http_give_the_same_answers(scripted):
    for ask in (
        lambda model: model.generate(TEXT, logprobs=1, n=2),
        lambda model: model.chat(TEXT, logprobs=1),
        lambda model: model.generate(["a", "b"]),
        lambda model: list(model.generate_stream(TEXT, n=2)),
        lambda model: list(model.chat_stream(TEXT)),
    ):
        over_grpc, over_http = _both(scripted, ask)
        assert over_grpc == over_http
        assert over_grpc


def test_the_request_arrives_as_it_was_made(scripted):
    parameters = {
        "max_tokens": 5,
        "temperature": 1,
        "top_p": 0.5,
        "stop": ["x", "y"],
        "logit_bias": {"7": -3.5},
        "do_sample": True,
        "seed": 2**31 - 1,
        "echo": False,
    }
    _both(scripted, lambda model: model.generate(TEXT, **parameters))
    first, second = scripted.pool.requests
    assert first == second
    assert first.model_dump(exclude_none=True) == {
        **{name: value for name, value in parameters.items() if name != "max_tokens"},
        "max_new_tokens": 5,
        "prompt": TEXT,
    }


def test_an_answer_has_all_its_parts(model):
    answer = model.generate("hi", n=2)
    assert [choice.text for choice in answer.choices] == ["hi", "hi"]
    assert (answer.choices[1].index, answer.choices[1].finish_reason) == (1, "length")
    assert (answer.prompt, answer.model, answer.usage.total_tokens) == ("hi", "scripted", 7)
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


def test_a_stream_joins_to_the_unary_answer(model):
    events = list(model.generate_stream(TEXT))
    assert "".join(event.text for event in events) == model.generate(TEXT).text
    assert events[0].prompt == TEXT
    assert events[1].prompt is None
    assert [event.choices[0].finish_reason for event in events[-2:]] == [None, "stop"]
    chunks = list(model.chat_stream(TEXT))
    assert "".join(chunk.text for chunk in chunks) == TEXT
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", None]


def test_several_prompts_run_together(model):
    prompts = [f"prompt {i}" for i in range(40)]
    assert [answer.text for answer in model.generate(prompts)] == prompts
    texts = [""] * 40
    for event in model.generate_stream(prompts):
        texts[event.choices[0].index] += event.text
    assert texts == prompts
    assert [answer.text for answer in model.generate(["meet"] * 3, timeout=SECONDS)] == ["meet"] * 3
    assert len(list(model.generate_stream(["meet"] * 3, timeout=SECONDS))) == 3 * len("meet") + 3


@pytest.mark.parametrize("cls", REQUEST_ERRORS, ids=lambda cls: cls.__name__)
def test_an_error_comes_back_as_its_own_class(model, cls):
    for call in (model.generate, model.chat, model.generate_stream, model.chat_stream):
        with pytest.raises(cls) as raised:
            list(call(f"error {_error(cls)}"))
        assert type(raised.value) is cls
        assert raised.value.to_dict() == cls("it went wrong", param="prompt").to_dict()


@pytest.mark.parametrize("call", ["generate_stream", "chat_stream"])
def test_an_error_in_mid_stream_is_raised_after_what_came_before(model, call):
    events = getattr(model, call)(f"late {_error(errors.QueueFull)}")
    assert [next(events).text, next(events).text] == ["l", "a"]
    with pytest.raises(errors.QueueFull, match="it went wrong"):
        next(events)


@pytest.mark.parametrize("call", ["generate_stream", "chat_stream"])
def test_a_stream_that_just_stops_is_an_error(model, call):
    events = getattr(model, call)("stop short")
    assert "".join(next(events).text for _ in "stop short") == "stop short"
    with pytest.raises(errors.InternalError, match="complete"):
        next(events)


def test_a_request_that_is_wrong_is_not_sent(scripted, model):
    with pytest.raises(errors.InvalidRequest, match="top_p"):
        model.generate("hi", top_p=2.0)
    with pytest.raises(errors.InvalidRequest, match="num_beams"):
        next(model.generate_stream("hi", num_beams=2))
    assert scripted.pool.requests == []


def test_the_model_name_is_sent_and_checked(endpoint):
    with Client().get_model("scripted", endpoint) as model:
        assert model.generate("hi").text == "hi"
        with pytest.raises(errors.ModelNotFound):
            model.generate("hi", model="another")
    with Client().get_model("another", endpoint) as model:
        with pytest.raises(errors.ModelNotFound, match="another"):
            model.generate("hi")
        with pytest.raises(errors.ModelNotFound, match="another"):
            next(model.chat_stream("hi"))


def test_the_token_is_sent_as_a_bearer(scripted, endpoint):
    with Client(token="secret").get_model(endpoint=endpoint) as model:
        model.generate("hi")
        list(model.chat_stream("hi"))
        assert "secret" not in repr(model)
    with Client().get_model(endpoint=endpoint) as model:
        model.generate("hi")
    assert scripted.tokens == ["Bearer secret", "Bearer secret", None]


@pytest.mark.parametrize("call", ["generate", "chat", "generate_stream", "chat_stream"])
def test_a_timeout_ends_the_request_on_the_server_too(scripted, model, call):
    with pytest.raises(errors.DeadlineExceeded, match=r"0\.(2\d?|3) s"):  # of which the replica gets the rest
        list(getattr(model, call)("wait", timeout=0.3))
    assert scripted.pool.cancelled.wait(SECONDS)


async def test_a_timeout_does_not_strike_while_the_reader_is_busy(endpoint):
    """The timeout of a stream must not cancel other work of its reader."""
    async with Client().get_model(endpoint=endpoint) as model:
        events = model.agenerate_stream("wait", timeout=0.2)
        for _ in "wait":
            await anext(events)
            await asyncio.to_thread(threading.Event().wait, 0.1)
        with pytest.raises(errors.DeadlineExceeded):
            await anext(events)


@pytest.mark.parametrize("call", ["generate_stream", "chat_stream"])
def test_leaving_a_stream_ends_its_request(scripted, model, call):
    for _ in getattr(model, call)("wait"):
        if scripted.pool.waiting.wait(SECONDS):
            break
    assert scripted.pool.cancelled.wait(SECONDS)


@pytest.mark.parametrize("call", ["agenerate", "achat"])
async def test_cancelling_a_task_ends_its_request(scripted, endpoint, call):
    async with Client().get_model(endpoint=endpoint) as model:
        task = asyncio.create_task(getattr(model, call)("wait"))
        assert await asyncio.to_thread(scripted.pool.waiting.wait, SECONDS)
        task.cancel()
        assert await asyncio.to_thread(scripted.pool.cancelled.wait, SECONDS)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_closing_an_async_stream_ends_its_request(scripted, endpoint):
    async with Client().get_model(endpoint=endpoint) as model:
        async with aclosing(model.achat_stream("wait")) as events:
            await anext(events)
            assert await asyncio.to_thread(scripted.pool.waiting.wait, SECONDS)
        assert await asyncio.to_thread(scripted.pool.cancelled.wait, SECONDS)


async def test_sync_and_async_calls_on_one_model_at_once(model):
    def ask():
        return [model.generate(f"sync {i}").text for i in range(30)]

    asking = asyncio.create_task(asyncio.to_thread(ask))
    assert [(await model.agenerate(f"async {i}")).text for i in range(30)] == [f"async {i}" for i in range(30)]
    assert await asking == [f"sync {i}" for i in range(30)]


@pytest.mark.filterwarnings("error")
def test_one_model_serves_one_event_loop_after_another(endpoint):
    model = Client().get_model(endpoint=endpoint)
    for text in ("one", "two", "three"):
        assert asyncio.run(model.agenerate(text)).text == text
        assert model.generate(text).text == text
    model.close()


def test_closing_the_model_ends_what_runs_and_refuses_what_comes(scripted, endpoint):
    model = Client().get_model(endpoint=endpoint)
    raised = []

    def ask():
        try:
            model.generate("wait")
        except errors.RunGPTError as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert scripted.pool.waiting.wait(SECONDS)
    model.close()
    thread.join(SECONDS)
    assert [type(error) for error in raised] == [errors.Unavailable]
    assert scripted.pool.cancelled.wait(SECONDS)
    with pytest.raises(errors.Unavailable, match="closed"):
        model.generate("hi")


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_is_not_there_yet_is_found_when_it_is(free_ports, serving_scripted, scheme):
    """A notebook needs no restart if its first cell ran before `rungpt serve` did."""
    grpc_port, http_port = free_ports(2)
    url = f"{scheme}://127.0.0.1:{grpc_port if scheme == 'grpc' else http_port}"
    with Client().get_model(endpoint=url) as model:
        for call in (model.generate, model.chat_stream):
            with pytest.raises(errors.Unavailable, match=f"{url} .*rungpt serve"):
                list(call("hi"))
        with serving_scripted(grpc_port, http_port):
            deadline = time.monotonic() + SECONDS
            while True:
                try:
                    assert model.generate("hi").text == "hi"
                    break
                except errors.Unavailable:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)  # between two polls of the condition
        with pytest.raises(errors.Unavailable):
            model.generate("hi")


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_goes_in_mid_stream_is_an_error(serving_scripted, scheme):
    with serving_scripted() as scripted:
        model = Client().get_model(endpoint=scripted.grpc_url if scheme == "grpc" else scripted.http_url)
        events = model.chat_stream("wait")
        assert next(events).text == "w"
        assert scripted.pool.waiting.wait(SECONDS)
    with pytest.raises(errors.RequestError):
        list(events)
    model.close()


def test_the_wrong_port_is_named(scripted):
    """`http://` on the gRPC port, or the other way round, is an error that names the endpoint."""
    for url in (f"http://127.0.0.1:{scripted.grpc_port}", f"grpc://127.0.0.1:{scripted.http_port}"):
        with Client().get_model(endpoint=url) as model:
            for call in (model.generate, model.chat_stream):
                with pytest.raises(errors.RequestError, match=url) as raised:
                    list(call("hi", timeout=SECONDS))
                assert "\n" not in str(raised.value)
