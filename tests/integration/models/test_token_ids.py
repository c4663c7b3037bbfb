"""A tokenizer and a model of other sizes: no text may end the server, and no id of the model may be refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_model import write_tiny_model
from transformers import LlamaForCausalLM

import run_gpt
from run_gpt.errors import InvalidRequest, RunGPTError

ROWS = 64
GREEDY = {"max_new_tokens": 5, "temperature": 0.0}


def opened(folder: Path, tokens: int, *, chat_template: str | None = None) -> run_gpt.Model:
    write_tiny_model(folder, tokens=tokens)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    return run_gpt.create_model(str(folder), precision="fp32", device="cpu", runner="generic")


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[run_gpt.Model]:
    """Return a model with more rows than its tokenizer has tokens."""
    with opened(tmp_path_factory.mktemp("models") / "padded", 20) as model:
        yield model


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[run_gpt.Model]:
    """Return a model with fewer rows than its tokenizer has tokens, whose chats are the last message."""
    folder = tmp_path_factory.mktemp("models") / "short"
    with opened(folder, 90, chat_template="{{ messages[-1]['content'] }}") as model:
        yield model


def test_a_text_with_an_id_beyond_the_model_is_refused_on_each_way_and_others_go_on(short: run_gpt.Model) -> None:
    for ask in (
        lambda: short.generate("w70"),
        lambda: short.generate([3, ROWS]),
        lambda: short.chat([{"role": "user", "content": "w70"}]),
        lambda: short.embed(["w3", "w70"]),
        lambda: short.tokenize("w70"),
        lambda: short.tokenize([{"role": "user", "content": "w70"}]),
        lambda: short.detokenize([ROWS]),
        lambda: short.generate("w3", logit_bias={str(ROWS): 1.0}),
    ):
        with pytest.raises(InvalidRequest, match=r"token id (70|64) is outside the vocabulary of 64"):
            ask()
    assert short.generate("w3", **GREEDY).usage.completion_tokens > 0


def test_a_chat_without_a_token_is_refused(short: run_gpt.Model) -> None:
    chat = [{"role": "user", "content": ""}]
    for ask in (lambda: short.chat(chat), lambda: list(short.chat_stream(chat)), lambda: short.tokenize(chat)):
        with pytest.raises(InvalidRequest, match=r"messages.*no token") as caught:
            ask()
        assert caught.value.param == "messages"
    assert short.status().state == "ready"


def test_ids_without_a_token_are_taken_and_have_no_text(padded: run_gpt.Model, tmp_path: Path) -> None:
    prompt = [3, 40, ROWS - 1]
    reference = LlamaForCausalLM.from_pretrained(write_tiny_model(tmp_path))
    ids = reference.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False)[0, 3:].tolist()
    answer = padded.generate(prompt, logprobs=0, echo=True, **GREEDY)
    assert answer.prompt == "w3"
    assert answer.usage.completion_tokens == len(ids)
    assert padded.detokenize([40]) == padded.detokenize([ROWS - 1]) == ""
    assert padded.detokenize([3, 40]) == "w3"


def test_a_sampled_id_without_a_token_has_no_text(padded: run_gpt.Model) -> None:
    answer = padded.generate("w3", logit_bias={"40": 100.0}, logprobs=1, **GREEDY)
    assert answer.text == ""
    assert answer.usage.completion_tokens == GREEDY["max_new_tokens"]


def test_forced_text_of_a_grammar_never_has_an_id_beyond_the_model(short: run_gpt.Model) -> None:
    with pytest.raises(RunGPTError):
        short.generate("w3", response_format={"type": "choice", "choice": ["w70"]}, max_new_tokens=5)
    assert short.generate("w3", **GREEDY).usage.completion_tokens > 0
