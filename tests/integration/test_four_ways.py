"""The same request gives the same answer over HTTP, over gRPC, in Python and on the command line."""

import json
import subprocess
import sys
import time

import httpx
import pytest

from run_gpt import Client, create_model

QUESTION = "What is the capital of France?"
MESSAGES = [{"role": "user", "content": QUESTION}]
PROMPT = "The first three planets of the solar system are"
PARAMETERS = {"max_new_tokens": 24, "do_sample": False}


def counts(usage):
    """Return the counts of tokens that do not depend on earlier requests, as the count of cached tokens does."""
    usage = usage if isinstance(usage, dict) else usage.model_dump()
    return {name: value for name, value in usage.items() if name != "prompt_tokens_details"}


@pytest.fixture(scope="module")
def local():
    with create_model(precision="fp32") as model:  # as the server's
        yield model


@pytest.fixture(scope="module")
def remote(server):
    with Client().get_model(endpoint=server.grpc_url) as model:
        yield model


@pytest.fixture(scope="module")
def over_http(server):
    with Client().get_model(endpoint=server.http_url) as model:
        yield model


def test_chat_is_the_same_everywhere_and_knows_paris(server, local, remote, over_http):
    expected = local.chat(MESSAGES, **PARAMETERS)
    assert "Paris" in expected.text
    raw = httpx.post(f"{server.http_url}/chat", json={"messages": MESSAGES, **PARAMETERS}, timeout=60).json()
    assert raw["choices"][0]["message"]["content"] == expected.text
    assert counts(raw["usage"]) == counts(expected.usage)
    for model in (remote, over_http):
        answer = model.chat(MESSAGES, **PARAMETERS)
        assert (answer.text, counts(answer.usage)) == (expected.text, counts(expected.usage))
    command = [sys.executable, "-m", "run_gpt.cli", "chat", QUESTION, "--max-new-tokens", "24", "--no-do-sample"]
    for where in (["--precision", "fp32"], ["--endpoint", server.grpc_url]):
        done = subprocess.run([*command, "--json", *where], capture_output=True, text=True, timeout=120, check=True)
        answer = json.loads(done.stdout)
        assert answer["choices"][0]["message"]["content"] == expected.text
        assert counts(answer["usage"]) == counts(expected.usage)


def test_streams_join_to_the_whole_answer_everywhere(local, remote, over_http):
    expected = local.generate(PROMPT, **PARAMETERS)
    for model in (local, remote, over_http):
        events = list(model.generate_stream(PROMPT, **PARAMETERS))
        assert "".join(event.text for event in events) == expected.text
        assert counts(events[-1].usage) == counts(expected.usage)
        assert [event.prompt for event in events] == [PROMPT] + [None] * (len(events) - 1)
        assert [event.choices[0].finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1].choices[0].finish_reason == expected.choices[0].finish_reason


def test_an_answer_says_where_its_time_went_when_it_is_asked(local, remote, over_http):
    for model in (local, remote, over_http):
        began = time.perf_counter()
        answer = model.generate(PROMPT, timings=True, **PARAMETERS)
        seconds, told = time.perf_counter() - began, answer.timings
        parts = (told.queue_seconds, told.prefill_seconds, told.decode_seconds)
        assert min(parts) > 0
        assert sum(parts) == pytest.approx(told.total_seconds, abs=1e-6)
        assert told.total_seconds < seconds
        tokens = answer.usage.completion_tokens - 1
        assert told.generation_tokens_per_second == pytest.approx(tokens / told.decode_seconds)
        assert [event.timings is None for event in model.chat_stream(MESSAGES, timings=True, n=2)].count(False) == 1
        assert model.generate(PROMPT, max_new_tokens=1).timings is None


def logprobs(choice):
    tokens = [token for entry in choice.logprobs.content for token in (entry, *entry.top_logprobs)]
    return [(token.token, token.logprob) for token in tokens]


def test_a_chat_that_goes_on_says_what_it_did_not_run_again(local, remote, over_http):
    for model in (local, remote, over_http):
        messages = [{"role": "user", "content": f"Name three planets. {type(model)} {id(model)}"}]
        first = model.chat(messages, **PARAMETERS)
        messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And three more?"}]
        again = list(model.chat_stream(messages, **PARAMETERS))
        assert first.usage.prompt_tokens_details.cached_tokens < first.usage.prompt_tokens
        for chunk in again:
            assert chunk.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_a_prompt_is_run_again_for_another_salt(local, remote, over_http):
    """Users who share a key, or a server without keys, could otherwise tell what others have sent."""
    for model, name in ((local, "Anna"), (remote, "Bert"), (over_http, "Carl")):  # both of the last are one server
        prompt = f"{name} has a secret: the {PROMPT}"

        def cached(salt, model=model, prompt=prompt):
            answer = model.generate(prompt, max_new_tokens=1, cache_salt=salt)
            return answer.usage.prompt_tokens_details.cached_tokens

        assert [cached("one"), cached("two"), cached(None)] == [0, 0, 0]
        assert min(cached("one"), cached("two"), cached(None)) > 0


@pytest.mark.parametrize(
    "parameters",
    [
        {
            "max_length": 40,
            "temperature": 0.9,
            "top_k": 50,
            "top_p": 0.95,
            "repetition_penalty": 1.2,
            "do_sample": True,
        },
        {"max_new_tokens": 8, "n": 3, "temperature": 1.0, "min_p": 0.1},
        {"max_new_tokens": 12, "stop": ["Earth", ","], "echo": True},
        {"max_new_tokens": 8, "min_new_tokens": 8, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"max_new_tokens": 4, "logprobs": 2, "logit_bias": {"28": -100}},
        {"max_new_tokens": 8, "num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.8},
        {"max_new_tokens": 8, "best_of": 3, "n": 2, "temperature": 0.8},
        {"max_new_tokens": 12, "no_repeat_ngram_size": 2},
    ],
    ids=lambda parameters: "-".join(parameters),
)
def test_every_parameter_travels(local, remote, over_http, parameters):
    seeded = parameters if "num_beams" in parameters else {**parameters, "seed": 7}
    expected = local.generate(PROMPT, **seeded)
    for model in (remote, over_http):
        answer = model.generate(PROMPT, **seeded)
        for ours, theirs in zip(answer.choices, expected.choices, strict=True):
            assert ours.model_copy(update={"logprobs": None}) == theirs.model_copy(update={"logprobs": None})
            if theirs.logprobs:  # a prompt from the cache has the same numbers except for rounding
                assert logprobs(ours) == [(token, pytest.approx(value, abs=1e-3)) for token, value in logprobs(theirs)]
        assert counts(answer.usage) == counts(expected.usage)
    if "stop" in parameters:
        assert expected.text.startswith(PROMPT)
        assert "," not in expected.text
    if "n" in parameters or "num_return_sequences" in parameters:
        assert [c.index for c in expected.choices] == list(range(parameters.get("n") or 2))


def test_several_prompts_run_together(local, remote, over_http):
    prompts = [PROMPT, "Water boils at", "The opposite of hot is"]
    expected = [local.generate(prompt, **PARAMETERS).text for prompt in prompts]
    for model in (local, remote, over_http):
        assert [answer.text for answer in model.generate(prompts, **PARAMETERS)] == expected
        texts = ["", "", ""]
        for event in model.generate_stream(prompts, **PARAMETERS):
            texts[event.choices[0].index] += event.text
        assert texts == expected


FUNCTION = {
    "name": "get_capital",
    "description": "The capital of a country.",
    "parameters": {
        "type": "object",
        "properties": {"zone": {"enum": ["north", "south"]}, "country": {"type": "string", "maxLength": 20}},
        "required": ["zone", "country"],
        "additionalProperties": False,
    },
}
TOOLS = [{"type": "function", "function": FUNCTION}]


def test_prompts_of_token_ids_are_the_same_everywhere(local, remote, over_http):
    ids = local.tokenize(PROMPT)
    assert local.detokenize(ids) == PROMPT
    expected = local.generate(PROMPT, **PARAMETERS)
    water = local.generate("Water boils at", **PARAMETERS)
    vector = local.embed(PROMPT).vectors[0]
    for model in (local, remote, over_http):
        assert model.tokenize(PROMPT) == ids
        assert model.detokenize(ids) == PROMPT
        assert model.generate(ids, **PARAMETERS).choices == expected.choices
        both = model.generate([ids, "Water boils at"], **PARAMETERS)
        assert [answer.text for answer in both] == [expected.text, water.text]
        assert "".join(event.text for event in model.generate_stream(ids, **PARAMETERS)) == expected.text
        assert model.embed(ids).vectors == [pytest.approx(vector, abs=1e-4)]


def test_the_tokens_of_a_chat_are_those_that_it_runs(local, remote, over_http):
    expected = local.tokenize(MESSAGES, tools=TOOLS)
    assert len(expected) > len(local.tokenize(MESSAGES))
    assert local.chat(MESSAGES, tools=TOOLS, max_new_tokens=1).usage.prompt_tokens == len(expected)
    for model in (remote, over_http):
        assert model.tokenize(MESSAGES, tools=TOOLS) == expected
        assert model.tokenize("x", add_special_tokens=False) == local.tokenize("x", add_special_tokens=False)


def without_ids(choice):
    """Return a choice without the ids of its calls, which are new each time."""
    fields = choice.model_dump()
    for call in fields["message"].get("tool_calls") or ():
        assert call.pop("id").startswith("call_")
    return fields


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_capital"}}], ids=["required", "named"]
)
def test_enforced_calls_are_the_same_everywhere(local, remote, over_http, choice):
    """Arguments have the order of the schema's properties, which a protobuf map would lose."""
    asked = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False, "max_new_tokens": 60}
    expected = local.chat(MESSAGES, **asked).choices[0]
    [call] = expected.message.tool_calls
    assert (call.function.name, expected.finish_reason) == ("get_capital", "tool_calls")
    assert list(json.loads(call.function.arguments)) == ["zone", "country"]
    for model in (local, remote, over_http):
        answer = model.chat(MESSAGES, **asked).choices[0]
        assert without_ids(answer) == without_ids(expected)
        deltas = [chunk.choices[0].delta for chunk in model.chat_stream(MESSAGES, **asked)]
        pieces = [piece.function for delta in deltas for piece in delta.tool_calls or ()]
        assert pieces[0].name == "get_capital"
        assert "".join(piece.arguments or "" for piece in pieces) == call.function.arguments
        result = {"role": "tool", "tool_call_id": answer.message.tool_calls[0].id, "content": "Paris"}
        assert model.chat([*MESSAGES, answer.message, result], max_new_tokens=4).usage.prompt_tokens > len(MESSAGES)


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "json_schema": {"schema": FUNCTION["parameters"], "name": "capital", "strict": True}},
        {"type": "json_object"},
        {"type": "regex", "regex": "[A-Z][a-z]{2,9}"},
        {"type": "choice", "choice": ["Rome", "Paris"]},
    ],
    ids=lambda form: form["type"],
)
def test_forms_of_answers_are_the_same_everywhere(server, local, remote, over_http, form):
    asked = {"response_format": form, "max_new_tokens": 60}
    expected = local.chat(MESSAGES, **asked)
    assert expected.text
    if form["type"] == "json_schema":
        assert list(json.loads(expected.text)) == ["zone", "country"]
    for model in (remote, over_http):
        assert model.chat(MESSAGES, **asked).choices == expected.choices
        assert "".join(chunk.text for chunk in model.chat_stream(MESSAGES, **asked)) == expected.text
    command = [sys.executable, "-m", "run_gpt.cli", "chat", QUESTION, "--max-new-tokens", "60"]
    command += ["--response-format", json.dumps(form), "--endpoint", server.grpc_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == f"{expected.text}\n"
