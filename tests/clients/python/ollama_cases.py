"""Ollama's Python client: chats, texts and vectors, whole and streamed, and the models that are served."""

from typing import Any

import ollama
from cases import BASE_URL, CITY_TOOL, MODEL, PARIS, case, run

SERVER = BASE_URL.removesuffix("/v1")
client = ollama.Client(host=SERVER)
ASKED: Any = {"role": "user", "content": PARIS}
GREEDY: Any = {"temperature": 0, "num_predict": 12, "num_ctx": 2048}


@case("chat: text, async and a stream")
async def chat() -> None:
    whole = client.chat(model=MODEL, messages=[ASKED], options=GREEDY)
    assert "Paris" in whole.message.content
    assert 0 < whole.eval_count <= GREEDY["num_predict"]
    assert client.chat(model=MODEL, messages=[ASKED], options={"num_predict": 1}).done_reason == "length"
    assert whole.total_duration > 0
    lines = list(client.chat(model=f"{MODEL}:latest", messages=[ASKED], options=GREEDY, stream=True))
    assert "".join(line.message.content for line in lines) == whole.message.content
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    told = await ollama.AsyncClient(host=SERVER).chat(model=MODEL, messages=[ASKED], options=GREEDY)
    assert told.message.content == whole.message.content


@case("chat: a call's message and its result sent back")
def calls() -> None:
    called: Any = {"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    history = [ASKED, {"role": "assistant", "content": "", "tool_calls": [called]}]
    history.append({"role": "tool", "tool_name": "get_weather", "content": "Sunny"})
    answer = client.chat(model=MODEL, messages=history, tools=[CITY_TOOL], options=GREEDY)
    assert answer.done


@case("chat: a schema")
def form() -> None:
    schema = CITY_TOOL["function"]["parameters"]  # type: ignore[index]
    for given in (schema, "json"):
        answer = client.chat(model=MODEL, messages=[ASKED], format=given, options={**GREEDY, "num_predict": 60})
        assert answer.message.content.startswith("{")


@case("generate: text, a stream, raw")
def generate() -> None:
    whole = client.generate(model=MODEL, prompt=PARIS, system="You help.", options=GREEDY)
    lines = list(client.generate(model=MODEL, prompt=PARIS, system="You help.", options=GREEDY, stream=True))
    assert "".join(line.response for line in lines) == whole.response
    assert client.generate(model=MODEL, prompt="Once upon", raw=True, options=GREEDY, keep_alive="5m").response


@case("embed")
def embed() -> None:
    vectors = client.embed(model=MODEL, input=["a", "b"]).embeddings
    assert len(vectors) == 2
    assert len(vectors[0]) == len(client.embed(model=MODEL, input="a").embeddings[0])


@case("models: list, ps, show")
def models() -> None:
    names = [model.model for model in client.list().models]
    assert f"{MODEL}:latest" in names
    assert [model.model for model in client.ps().models] == [f"{MODEL}:latest"]
    assert "completion" in client.show(MODEL).capabilities


@case("errors are those of its API")
def errors() -> None:
    found: Any = None
    try:
        client.chat(model="no-such-model", messages=[ASKED])
    except ollama.ResponseError as error:
        found = error
    assert found.status_code == 404
    assert "no-such-model" in found.error


run()
