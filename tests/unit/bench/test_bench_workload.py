"""Without these tests a benchmark could send other prompts than it reports, or different ones in each run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from run_gpt.bench.lengths import Lengths
from run_gpt.bench.protocol import APIS, read_event
from run_gpt.bench.workload import Prompt, Workload, WorkloadConfig
from run_gpt.errors import SetupError


def config(**settings: Any) -> WorkloadConfig:
    return WorkloadConfig(**{"prompt_words": Lengths("fixed", 20), "output_tokens": Lengths("fixed", 8), **settings})


def asked(workload: Workload, count: int) -> list[Prompt]:
    return [workload.next() for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "median", "spread"),
    [
        ("12", 12, (12, 12)),
        ("uniform:5:15", 10, (5, 15)),
        ("normal:100:10", 100, (50, 150)),
        ("lognormal:100:0.5", 100, (10, 1000)),
    ],
)
def test_lengths_are_those_of_the_distribution(text: str, median: int, spread: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    drawn = [Lengths.parse(text, "--prompt-words").draw(rng) for _ in range(2000)]
    assert np.median(drawn) == pytest.approx(median, rel=0.06)
    assert spread[0] <= min(drawn)
    assert max(drawn) <= spread[1]
    if text.startswith("uniform"):
        assert (min(drawn), max(drawn)) == spread


@pytest.mark.parametrize("text", ["", "0", "-3", "uniform:5", "uniform:9:5", "other:1:2", "normal:5:nan", "1:2"])
def test_other_lengths_are_refused(text: str) -> None:
    with pytest.raises(SetupError, match="--prompt-words"):
        Lengths.parse(text, "--prompt-words")


def test_a_seed_gives_the_same_prompts_and_each_load_others() -> None:
    first, again, other = (asked(Workload(config(), takes_chats=True, stream=s), 3) for s in (1, 1, 2))
    assert [p.messages for p in first] == [p.messages for p in again]
    texts = {p.messages[0]["content"] for p in (*first, *other)}
    assert len(texts) == 6
    assert all(len(text.split()) == 20 for text in texts)
    assert Workload(config(seed=5), takes_chats=True, stream=1).next().messages != first[0].messages


def test_a_chat_whose_question_failed_ends() -> None:
    workload = Workload(config(turns=3), takes_chats=True)
    workload.next()
    assert len(workload.next().messages) == 1


DATASETS = {
    "lines.jsonl": '"one"\n{"prompt": "two", "max_tokens": 3}\n\n{"text": "three"}\n',
    "list.json": json.dumps(["one", {"prompt": "two", "max_tokens": 3}, {"text": "three"}]),
}


@pytest.mark.parametrize("name", DATASETS)
def test_texts_of_a_dataset_are_asked(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(DATASETS[name])
    given = config(dataset=tmp_path / name)
    texts = asked(Workload(given, takes_chats=False), 6)
    assert sorted(p.text for p in texts[:3]) == ["one", "three", "two"]
    assert [p.text for p in texts[3:]] == [p.text for p in texts[:3]], "after the last comes the first"
    assert {p.text: p.max_tokens for p in texts} == {"one": 8, "two": 3, "three": 8}
    chats = asked(Workload(given, takes_chats=True), 3)
    assert [p.messages for p in chats] == [({"role": "user", "content": p.text},) for p in texts[:3]]


@pytest.mark.parametrize(
    "entry",
    [
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ],
)
def test_chats_of_a_dataset_end_with_a_question(tmp_path: Path, entry: dict[str, Any]) -> None:
    (tmp_path / "chats.jsonl").write_text(json.dumps(entry))
    given = config(dataset=tmp_path / "chats.jsonl")
    assert Workload(given, takes_chats=True).next().messages == ({"role": "user", "content": "q"},)
    with pytest.raises(SetupError, match="use --api openai-chat or chat"):
        Workload(given, takes_chats=False)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "there is no entry"),
        ('"a"\n{', "line 2 is no JSON"),
        ("[1, 2", "this is no JSON"),
        ('"a"\n{"other": 1}', "entry 2 is none"),
        ('{"conversations": [{"from": "x", "value": "y"}]}', "entry 1 is none"),
        ('{"messages": [{"content": "y"}]}', "entry 1 is none"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens is 0"),
    ],
)
def test_a_dataset_that_is_none_says_where(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "data").write_text(content)
    with pytest.raises(SetupError, match=says):
        Workload(config(dataset=tmp_path / "data"), takes_chats=True)
    with pytest.raises(SetupError, match="No such file"):
        Workload(config(dataset=tmp_path / "none"), takes_chats=True)


def test_bodies_are_those_of_each_api() -> None:
    text, chat = Prompt(8, text="hi"), Prompt(8, messages=({"role": "user", "content": "hi"},))
    assert APIS["generate"].body(text, True, None, exact=True, extra={"temperature": 0}) == {
        "prompt": "hi",
        "max_new_tokens": 8,
        "min_new_tokens": 8,
        "temperature": 0,
    }
    assert APIS["chat"].body(chat, True, "m", exact=False, extra={}).keys() == {"model", "messages", "max_new_tokens"}
    body = APIS["openai-completions"].body(text, True, "m", exact=False, extra={})
    assert body.keys() == {"model", "prompt", "max_tokens", "stream", "stream_options"}
    whole = APIS["openai-completions"].body(text, False, "m", exact=False, extra={})
    assert whole.keys() == {"model", "prompt", "max_tokens"}


def test_streams_and_whole_answers_have_their_routes() -> None:
    routes = [APIS[name].route(streamed=streamed) for name in ("chat", "openai-chat") for streamed in (True, False)]
    assert routes == ["/chat_stream", "/chat", "/v1/chat/completions", "/v1/chat/completions"]


def test_events_of_all_apis_are_read() -> None:
    assert read_event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}).has_output is False
    assert read_event({"choices": [{"delta": {"content": "a"}}]}).text == "a"
    assert read_event({"choices": [{"text": "a"}]}).has_output
    assert read_event({"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}).has_output
    assert read_event({"choices": [{"delta": {"reasoning_content": "a"}}]}).has_output
    assert read_event({"choices": [{"delta": {}, "finish_reason": "stop"}]}).finished
    assert read_event({"choices": [], "usage": {"completion_tokens": 3}}).usage == {"completion_tokens": 3}
    assert read_event({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}).text == "a"
    assert read_event({"error": "text"}).error == {"message": "text"}
