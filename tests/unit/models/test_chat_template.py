"""A chat must reach the model in the form of its training, and a template's refusal must be the request's error."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from families import copied_tokenizer

from run_gpt.errors import InvalidRequest
from run_gpt.models import render_chat
from run_gpt.models.chat_template import end_with_turns
from run_gpt.models.templates import PLAIN, TEMPLATES, find_template

CHAT = [{"role": "user", "content": "hello world"}]
TURNS = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why"},
]
SYSTEM = [{"role": "system", "content": "Be kind."}, *TURNS]
_INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
# By the name of a model: a chat of three turns in the form of its card, and the same chat with a system message.
CARDS = {
    "lmsys/vicuna-7b-v1.5": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: Hi. ASSISTANT: Yes?</s>USER: Why ASSISTANT:",
        "Be kind. USER: Hi. ASSISTANT: Yes?</s>USER: Why ASSISTANT:",
    ),
    "meta-llama/Llama-2-7b-chat-hf": (
        "[INST] Hi. [/INST] Yes? </s><s>[INST] Why [/INST]",
        "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi. [/INST] Yes? </s><s>[INST] Why [/INST]",
    ),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": (
        "[INST] Hi. [/INST]Yes?</s> [INST] Why [/INST]",
        "[INST] Be kind.\n\nHi. [/INST]Yes?</s> [INST] Why [/INST]",
    ),
    "google/gemma-2-2b-it": (
        "<start_of_turn>user\nHi.<end_of_turn>\n<start_of_turn>model\nYes?<end_of_turn>\n"
        "<start_of_turn>user\nWhy<end_of_turn>\n<start_of_turn>model\n",
        "<start_of_turn>user\nBe kind.\n\nHi.<end_of_turn>\n<start_of_turn>model\nYes?<end_of_turn>\n"
        "<start_of_turn>user\nWhy<end_of_turn>\n<start_of_turn>model\n",
    ),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (
        "<|user|>\nHi.</s>\n<|assistant|>\nYes?</s>\n<|user|>\nWhy</s>\n<|assistant|>\n",
        "<|system|>\nBe kind.</s>\n<|user|>\nHi.</s>\n<|assistant|>\nYes?</s>\n<|user|>\nWhy</s>\n<|assistant|>\n",
    ),
    "stabilityai/stablelm-tuned-alpha-3b": (
        "<|SYSTEM|># StableLM Tuned (Alpha version)\n"
        "- StableLM is a helpful and harmless open-source AI language model developed by StabilityAI.\n"
        "- StableLM is excited to be able to help the user, but will refuse to do anything that could be considered "
        "harmful to the user.\n"
        "- StableLM is more than just an information source, StableLM is also able to write poetry, short stories, and "
        "make jokes.\n"
        "- StableLM will refuse to participate in anything that could harm a human.\n"
        "<|USER|>Hi.<|ASSISTANT|>Yes?<|USER|>Why<|ASSISTANT|>",
        "<|SYSTEM|>Be kind.<|USER|>Hi.<|ASSISTANT|>Yes?<|USER|>Why<|ASSISTANT|>",
    ),
    "RWKV/rwkv-raven-1b5": (
        "Bob: hi\n\nAlice: Hi. I am your assistant and I will provide expert full response in full details. Please "
        "feel free to ask any question and I will always answer it.\n\nBob: Hi.\n\nAlice: Yes?\n\nBob: Why\n\nAlice:",
        "Be kind.\n\nBob: Hi.\n\nAlice: Yes?\n\nBob: Why\n\nAlice:",
    ),
    "tiiuae/falcon-7b-instruct": (
        "User: Hi.\n\nAssistant: Yes?\n\nUser: Why\n\nAssistant:",
        "Be kind.\n\nUser: Hi.\n\nAssistant: Yes?\n\nUser: Why\n\nAssistant:",
    ),
    "mosaicml/mpt-7b-instruct": (
        f"{_INSTRUCTION}\n### Instruction:\nHi.\n### Response:\nYes?\n### Instruction:\nWhy\n### Response:\n",
        "Be kind.\n### Instruction:\nHi.\n### Response:\nYes?\n### Instruction:\nWhy\n### Response:\n",
    ),
    "databricks/dolly-v2-3b": (
        f"{_INSTRUCTION}\n\n### Instruction:\nHi.\n\n### Response:\nYes?\n\n### End\n\n"
        "### Instruction:\nWhy\n\n### Response:\n",
        "Be kind.\n\n### Instruction:\nHi.\n\n### Response:\nYes?\n\n### End\n\n"
        "### Instruction:\nWhy\n\n### Response:\n",
    ),
    "OpenAssistant/oasst-sft-4-pythia-12b-epoch-3.5": (
        "<|prompter|>Hi.</s><|assistant|>Yes?</s><|prompter|>Why</s><|assistant|>",
        "<|system|>Be kind.</s><|prompter|>Hi.</s><|assistant|>Yes?</s><|prompter|>Why</s><|assistant|>",
    ),
    "microsoft/phi-2": (
        "Instruct: Hi.\nOutput: Yes?\nInstruct: Why\nOutput:",
        "Be kind.\n\nInstruct: Hi.\nOutput: Yes?\nInstruct: Why\nOutput:",
    ),
    "EleutherAI/pythia-160m": (
        "User: Hi.\nAssistant: Yes?\nUser: Why\nAssistant:",
        "System: Be kind.\nUser: Hi.\nAssistant: Yes?\nUser: Why\nAssistant:",
    ),
}
_MPT_SYSTEM = (
    "<|im_start|>system\n- You are a helpful assistant chatbot trained by MosaicML.\n- You answer questions.\n- You "
    "are excited to be able to help the user, but will refuse to do anything that could be considered harmful to the "
    "user.\n- You are more than just an information source, you are also able to write poetry, short stories, and make "
    "jokes.<|im_end|>\n"
)
_CHATML = (
    "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nWhy<|im_end|>\n"
    "<|im_start|>assistant\n"
)
CARDS["mosaicml/mpt-7b-chat"] = (_MPT_SYSTEM + _CHATML, "<|im_start|>system\nBe kind.<|im_end|>\n" + _CHATML)
_MOSS = "<|Human|>: Hi.<eoh>\n<|MOSS|>: Yes?<eom>\n<|Human|>: Why<eoh>\n<|MOSS|>:"


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def rendered(name: str, messages: list[dict[str, str]], model_type: str = "any") -> str:
    tokenizer = copied_tokenizer()
    ids = render_chat(tokenizer, messages, find_template(name, "folder", model_type))
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def test_the_own_template_is_used_up_to_the_answer(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }} : {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} assistant{% endif %}"
    )
    ids = render_chat(tokenizer, CHAT, PLAIN)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "user", ":", "hello", "world", "assistant"]


def test_a_template_that_refuses_is_an_invalid_request(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InvalidRequest, match="System role not supported") as caught:
        render_chat(tokenizer, [{"role": "system", "content": "hello"}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize("name", CARDS)
def test_a_familys_chat_is_that_of_its_card(name: str) -> None:
    plain, with_system = CARDS[name]
    assert rendered(name, TURNS) == plain
    assert rendered(name, SYSTEM) == with_system


def test_every_model_of_a_type_may_have_one_form() -> None:
    text = rendered("house", TURNS, model_type="moss")
    assert text.startswith("You are an AI assistant whose name is MOSS.\n- MOSS is a conversational language model")
    assert "in English and 中文" not in text
    assert "such as English and 中文" in text
    assert text.endswith("\nCapabilities and tools that MOSS can possess.\n" + _MOSS)
    assert rendered("house", SYSTEM, model_type="moss") == "Be kind." + _MOSS


def test_every_row_is_that_of_a_card() -> None:
    found = {find_template(name, "folder", "any").name for name in CARDS} | {"moss"}
    assert found == {row.name for row in (*TEMPLATES, PLAIN)}


def test_a_catalogue_name_and_a_folder_find_their_family() -> None:
    assert find_template("vicuna-7b", "1f2e3d", "llama").name == "vicuna"
    assert find_template("house", "mpt-7b-chat", "mpt").name == "mpt-chat"
    assert find_template("stable-vicuna-13b", "x", "llama") is PLAIN


def test_a_blank_line_within_a_turn_would_end_it() -> None:
    text = rendered("rwkv-raven-3b", [{"role": "user", "content": "one\r\n\r\ntwo"}])
    assert text.endswith("Bob: one\ntwo\n\nAlice:")


@pytest.mark.parametrize(("known", "ends"), [(2, [2, 5, 6, 7]), ([2, 5], [2, 5, 6, 7]), (None, [5, 6, 7])])
def test_a_turn_ends_by_its_token_where_there_is_one(known: Any, ends: list[int]) -> None:
    """A special token leaves no text, so a stop text would never be found."""
    settings = SimpleNamespace(eos_token_id=known)
    model = SimpleNamespace(generation_config=settings, config=None)
    tuned = find_template("stablelm-tuned-alpha-7b", "x", "gpt_neox")
    assert end_with_turns(model, copied_tokenizer(), tuned).stop == ()
    assert settings.eos_token_id == ends


def test_a_turn_ends_by_its_text_where_there_is_no_token() -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=2), config=None)
    assert end_with_turns(model, copied_tokenizer(), PLAIN).stop == PLAIN.stop
    assert model.generation_config.eos_token_id == 2
