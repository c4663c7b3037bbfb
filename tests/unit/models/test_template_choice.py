"""A checkpoint's template must be the one that it names, and a template that fails must not end more than its chat."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from run_gpt.config import ModelConfig
from run_gpt.errors import Forbidden, InvalidRequest, ModelLoadError
from run_gpt.models import load, render_chat, rendering
from run_gpt.models.files import ModelFiles
from run_gpt.models.template_choice import choose_template, requested_template
from run_gpt.models.tokenizer import read_tokenizer
from run_gpt.models.tools import Function, find_tool_format, tool_template

CHAT = [{"role": "user", "content": "hello"}]


def chosen(folder: Path, wanted: str | None = None) -> Any:
    """Return a tokenizer with its template, and the template of ours."""
    files = ModelFiles("tiny", folder)
    tokenizer = read_tokenizer(files, trust_remote_code=False)
    return tokenizer, choose_template(files, "llama", tokenizer, wanted)


def with_named(folder: Path, **templates: str) -> Path:
    file = folder / "tokenizer_config.json"
    listed = [{"name": name, "template": text} for name, text in templates.items()]
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": listed}))
    return folder


def named_in(tokenizer: Any) -> set[str]:
    return set(tokenizer.chat_template) if isinstance(tokenizer.chat_template, dict) else {"default"}


def text_of(tokenizer: Any, **options: Any) -> str:
    return str(tokenizer.decode(render_chat(tokenizer, CHAT, **options)))


@pytest.mark.parametrize(
    ("templates", "text"),
    [
        ({"default": "hello", "rag": "world"}, "hello"),
        ({"tool_use": "world", "rag": "hello"}, "hello"),
        ({"rag": "hello"}, "hello"),
        ({"tool_use": "hello"}, "hello"),
    ],
)
def test_of_named_templates_one_is_the_default(tiny_model: Path, templates: dict[str, str], text: str) -> None:
    tokenizer, ours = chosen(with_named(tiny_model, **templates))
    assert (text_of(tokenizer), ours) == (text, None)
    assert "default" in named_in(tokenizer)


def test_several_templates_without_a_default_are_refused_by_name(tiny_model: Path) -> None:
    with_named(tiny_model, rag="world", chat="hello", tool_use="user")
    with pytest.raises(ModelLoadError, match=r"rag, chat, tool_use and none is called default.*--chat-template rag"):
        load(ModelConfig(model_name=str(tiny_model), precision="fp32", device="cpu"))
    assert text_of(chosen(tiny_model, "chat")[0]) == "hello"


@pytest.mark.parametrize("content", ["hello", [{"name": "default", "template": "hello"}], {"default": "hello"}])
def test_the_template_of_a_processor_is_for_a_tokenizer_without_its_own(tiny_model: Path, content: Any) -> None:
    (tiny_model / "chat_template.json").write_text(json.dumps({"chat_template": content}))
    assert text_of(chosen(tiny_model)[0]) == "hello"
    (tiny_model / "chat_template.jinja").write_text("world")
    assert text_of(chosen(tiny_model)[0]) == "world"


def test_a_damaged_template_of_a_processor_is_named(tiny_model: Path) -> None:
    (tiny_model / "chat_template.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"chat_template\.json"):
        chosen(tiny_model)


def test_templates_in_files_of_their_own_have_their_names(tiny_model: Path) -> None:
    (tiny_model / "chat_template.jinja").write_text("hello")
    (tiny_model / "additional_chat_templates").mkdir()
    (tiny_model / "additional_chat_templates" / "rag.jinja").write_text("world")
    assert named_in(chosen(tiny_model)[0]) == {"default", "rag"}
    assert text_of(chosen(tiny_model, "rag")[0]) == "world"


def test_the_wanted_template_is_a_file_or_a_name(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages[0]['content'] }} world")
    tokenizer, ours = chosen(with_named(tiny_model, default="user", tool_use="user"), str(tmp_path / "mine.jinja"))
    assert (text_of(tokenizer), ours) == ("hello world", None)
    assert chosen(tiny_model, "vicuna")[1].name == "vicuna"
    (tmp_path / "broken.jinja").write_text("a\n{% if %}")
    with pytest.raises(ModelLoadError, match=r"broken\.jinja' is no Jinja: line 2: "):
        chosen(tiny_model, str(tmp_path / "broken.jinja"))
    with pytest.raises(ModelLoadError, match=r"nothing\.jinja: No such file.*tool_use \(the model's\), plain"):
        chosen(tiny_model, "nothing.jinja")


@pytest.mark.parametrize(
    ("jinja", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "says: roles must alternate$"),
        ("{{ messages[0].nothing.more }}", "says: .*has no attribute 'nothing'"),
        ("{{ 1 + 'a' }}", "says: TypeError: unsupported operand"),
        ("{{ messages[0]['content'] + 1 }}", "says: TypeError: "),
        ("{{ 1 // 0 }}", "says: ZeroDivisionError: "),
        ("{{ messages | unknown }}", "says: .*No filter named 'unknown'"),
        ("{% if %}", "says: .*Expected an expression"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "says: RecursionError: "),
        ("{{ ''.__class__.__mro__ }}", "says: "),
        ("{{ ('x' * 1000000) ~ ('y' * 20000000) }}", "text of 21000000 characters, the limit is 16777216"),
    ],
)
def test_a_template_that_fails_is_the_requests_error_in_its_words(tiny_model: Path, jinja: str, words: str) -> None:
    (tiny_model / "chat_template.jinja").write_text(jinja)
    tokenizer, _ = chosen(tiny_model)
    with pytest.raises(InvalidRequest, match=words) as caught:
        render_chat(tokenizer, CHAT)
    assert caught.value.param == "messages"
    assert "\n" not in caught.value.message


def test_a_template_that_is_no_jinja_is_noted_at_the_load(tiny_model: Path) -> None:
    (tiny_model / "chat_template.jinja").write_text("{% if %}")
    loaded = load(ModelConfig(model_name=str(tiny_model), precision="fp32", device="cpu"))
    assert "'default' is no Jinja (line 1: " in loaded.notes[0]


LONG_STEP = "{{ 10**(10**8) % 7 }}"
DOUBLING = "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}"


@pytest.mark.parametrize(
    "jinja",
    [
        *("{{ 'x' * 10**10 }}", "{% set x = 'x' * 10**10 %}", "{{ [0] * 10**10 }}", "{{ '%10000000000d' % 1 }}"),
        *("{{ '{:>10000000000}'.format(1) }}", "{{ 'x'.center(10**10) }}", "{{ 'x' | center(10**10) }}"),
        *("{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}", "{{ tools | tojson(indent=10**10) }}"),
        *("{{ lipsum(10**9) }}", "{{ (('a' * 10**6,) * 10**6) | join }}", "{{ range(10**10) | list }}", DOUBLING),
    ],
)
def test_a_template_that_wants_too_much_memory_in_one_step_is_refused(
    jinja: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the server's process each of these would take all of the machine's memory, or seconds without a stop."""
    monkeypatch.setattr(rendering, "MAX_SECONDS", 1.0)
    with pytest.raises(InvalidRequest, match=r"takes more than |OverflowError|makes a text of"):
        rendering.render(None, CHAT, jinja, tools=[{"name": "f"}])
    monkeypatch.undo()
    assert rendering.render(None, CHAT, "hello") == "hello"


@pytest.mark.parametrize(
    "body",
    ["{% for i in range(99999) %}" * 3 + "x" + "{% endfor %}" * 3, LONG_STEP],
    ids=["loop", "step"],
)
def test_a_template_that_takes_too_long_is_stopped(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of C code too: a thread could be interrupted only at its end."""
    monkeypatch.setattr(rendering, "MAX_SECONDS", 0.5)
    with pytest.raises(InvalidRequest, match=r"takes more than 0\.5 s"):
        rendering.render(None, CHAT, body)
    monkeypatch.undo()
    assert rendering.render(None, CHAT, "hello") == "hello"


def test_a_template_that_takes_too_long_to_compile_is_no_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jinja computes constants while it compiles."""
    monkeypatch.setattr(rendering, "MAX_SECONDS", 0.5)
    assert "takes more than" in str(rendering.compile_fault(LONG_STEP))
    monkeypatch.undo()
    assert rendering.compile_fault("hello") is None


def test_templates_see_what_transformers_shows_them() -> None:
    """The process has an environment of its own, which must not differ."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "é": ["<", None, 1.5]}}}]
    turns = [
        {"role": "user", "content": "a é <b> \ud83d"},
        {"role": "assistant", "content": "yes", "thinking": "hm", "tool_calls": [{"id": "1"}]},
    ]
    jinja = """
    {%- set n = namespace(count=0, **dict(a=1)) %}
    {%- for message in messages if message.role != 'system' %}
        {%- set n.count = n.count + 1 %}
        {{ message | tojson }} {{ message.reasoning_content }} {{ 'name' in message }} {{ loop.index }}
        {%- if loop.last %}{% break %}{% endif %}
    {%- endfor %}
    {% generation %}{{ tools | tojson(indent=2, sort_keys=True) }}{% endgeneration %}
    {{ n.count }} {{ documents is none }} {{ add_generation_prompt }} {{ bos_token }} {{ strftime_now('%Y') }}
    {{ dict.fromkeys(['a'], 1) }} {{ undefined_name }} {{ messages[0].content | trim | upper }}
    """
    tokens = {"bos_token": "<s>", "additional_special_tokens": ["<x>"]}
    (expected,), _ = render_jinja_template([turns], tools, chat_template=jinja, add_generation_prompt=True, **tokens)
    tokenizer = SimpleNamespace(special_tokens_map=tokens, get_chat_template=lambda name, tools: jinja)
    assert rendering.render(tokenizer, turns, None, tools=tools) == expected


def test_a_request_names_a_template_or_brings_one_where_it_is_trusted(tiny_model: Path) -> None:
    tokenizer, _ = chosen(with_named(tiny_model, default="hello", rag="world"))
    assert requested_template(tokenizer, "rag", False) == "world"
    with pytest.raises(InvalidRequest, match=r"chat_template = 'other'.*there are default, rag") as caught:
        requested_template(tokenizer, "other", True)
    assert caught.value.param == "chat_template"
    with pytest.raises(Forbidden, match="--trust-request-chat-template; give a name: default, rag"):
        requested_template(tokenizer, "{{ 1 }}", False)
    assert requested_template(tokenizer, "{{ 1 }}", True) == "{{ 1 }}"
    bare, _ = chosen(tiny_model, "vicuna")
    assert requested_template(bare, "default", False) is None


def test_calls_in_another_form_than_answers_are_read_in_are_refused(tiny_model: Path) -> None:
    (tiny_model / "chat_template.jinja").write_text("hello")
    tokenizer, _ = chosen(tiny_model)
    offered = [Function(name="f")]
    form = find_tool_format(tool_template(tokenizer), tokenizer)
    hermes = "{{ tools }}<tool_call>{{ arguments }}"
    with pytest.raises(InvalidRequest, match="calls in the form hermes, and answers are read in the form json"):
        render_chat(tokenizer, CHAT, tools=offered, tool_format=form, jinja=hermes)
    assert text_of(tokenizer, tools=offered, tool_format=form, jinja="{{ messages[-1].role }}") == "user"


def test_the_process_that_starts_beside_a_load_runs_the_first_template() -> None:
    """Without it the load of each model would wait a quarter of a second for its template."""
    rendering.end_processes()
    rendering.start_process()
    rendering.start_process()
    (process,) = rendering._starting
    assert rendering.compile_fault("hello") is None
    assert (rendering._idle, rendering._starting) == ([process], [])
    rendering.start_process()
    assert rendering._starting == []
    rendering.end_processes()
    assert not process.lives
