"""The template that a server or a request names must write the prompt, in Python as over OpenAI's schema."""

import json
from pathlib import Path

import pytest
from tiny_model import write_tiny_model

import run_gpt
from run_gpt.api.openai.chat import ChatCompletionRequest
from run_gpt.errors import Forbidden, InvalidRequest

CHAT = [{"role": "user", "content": "w5"}]
GREEDY = {"max_new_tokens": 2, "temperature": 0.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    file = write_tiny_model(tmp_path / "m") / "tokenizer_config.json"
    named = [{"name": "default", "template": "w3"}, {"name": "rag", "template": "w4"}]
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": named}))
    (tmp_path / "mine.jinja").write_text("{{ messages[0]['content'] }}")
    return file.parent


def opened(folder: Path, **options: object) -> run_gpt.Model:
    return run_gpt.create_model(str(folder), precision="fp32", device="cpu", runner="generic", **options)  # type: ignore[arg-type]


def test_a_request_names_its_template(folder: Path) -> None:
    with opened(folder) as model:
        assert model.tokenize(CHAT) == [3]
        answer = model.chat(CHAT, chat_template="rag", **GREEDY)
        assert answer.choices[0].message.content == model.generate([4], **GREEDY).text
        request = ChatCompletionRequest.parse({"messages": CHAT, "chat_template": "rag"})
        assert [native.chat_template for native in request.natives()] == ["rag"]
        with pytest.raises(InvalidRequest, match="there are default, rag"):
            model.chat(CHAT, chat_template="vicuna")
        with pytest.raises(Forbidden, match="--trust-request-chat-template"):
            model.chat(CHAT, chat_template="{{ messages[0]['content'] }}")
        with pytest.raises(InvalidRequest, match="chat_template: this field is not known here"):
            model.generate("w5", chat_template="rag")  # type: ignore[call-arg]


def test_a_trusted_request_brings_its_template(folder: Path) -> None:
    with opened(folder, trust_request_chat_template=True) as model:
        answer = model.chat(CHAT, chat_template="{{ messages[0]['content'] }}", **GREEDY)
        assert answer.choices[0].message.content == model.generate([5], **GREEDY).text
        with pytest.raises(InvalidRequest, match="chat template says: "):
            model.chat(CHAT, chat_template="{% if %}")


@pytest.mark.parametrize(("wanted", "ids"), [("mine.jinja", [5]), ("rag", [4]), ("default", [3])])
def test_the_server_names_its_template(folder: Path, wanted: str, ids: list[int]) -> None:
    path = folder.parent / wanted
    with opened(folder, chat_template=str(path) if path.exists() else wanted) as model:
        assert model.tokenize(CHAT) == ids
