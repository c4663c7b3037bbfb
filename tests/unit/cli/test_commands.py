"""Command lines as users type them: options are understood, and an error is one line that says what to do."""

import json
import re
import socket
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import typer
import yaml
from typer.testing import CliRunner

from run_gpt import models
from run_gpt.api.answers import (
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
from run_gpt.api.schema import ChatRequest, GenerateRequest
from run_gpt.api.timings import Timings
from run_gpt.cli import ask, options
from run_gpt.cli.app import app


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("spelling", ["--device-map", "--device_map"])
def test_options_take_hyphens_and_underscores(spelling):
    done = run("serve", "smollm2", "--precision", "fp16", spelling, "balanced", "--dry-run")
    assert done.exit_code == 0, done.output
    settings = yaml.safe_load(done.stdout)["executors"][0]["uses"]["with"]
    assert settings == {"model_name": "smollm2", "precision": "fp16", "device_map": "balanced"}


def test_a_dry_run_prints_the_whole_flow():
    done = run(
        "serve", "--dry-run", "--replicas", "3", "--http-port", "8080", "--max-running", "4", "--drain-seconds", "5"
    )
    flow = yaml.safe_load(done.stdout)
    assert flow["gateway"]["port"] == [51000, 8080]
    assert flow["gateway"]["uses"]["with"] == {"drain_seconds": 5.0}
    assert flow["executors"][0]["replicas"] == 3
    assert flow["executors"][0]["uses"]["with"]["max_running"] == 4


def test_the_engines_options_reach_the_executor():
    options = ["--max-cache-tokens", "4096", "--no-reuse-prefixes", "--no-speculate", "--max-step-tokens", "64"]
    settings = yaml.safe_load(run("serve", "--dry-run", *options).stdout)["executors"][0]["uses"]["with"]
    assert settings == {
        "model_name": "smollm2",
        "max_step_tokens": 64,
        "max_cache_tokens": 4096,
        "reuse_prefixes": False,
        "speculate": False,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [("auto", "auto"), ("0,1", [0, 1]), ("2", [2]), ('{"": "cpu"}', {"": "cpu"})],
)
def test_a_device_map_is_a_name_a_list_or_a_map(text, value):
    assert options._parse_device_map(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("cpu=8GB,0=10GB", {"cpu": "8GB", "0": "10GB"}),
        ('{"cpu": 1000}', {"cpu": 1000}),
    ],
)
def test_memory_limits_are_pairs_or_json(text, value):
    assert options._parse_max_memory(text) == value


@pytest.mark.parametrize("text", ["8GB", "cpu=", '{"cpu'])
def test_other_memory_limits_are_one_line(fail, text):
    assert "--max-memory" in fail("serve", "--dry-run", "--max-memory", text)


def test_show_says_what_each_precision_takes(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    header = b'{"a.weight": {"dtype": "F32", "shape": [64, 64], "data_offsets": [0, 16384]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    info = replace(models.show("smollm2"), folder=tmp_path)
    monkeypatch.setattr(models, "show", lambda name: info)
    lines = run("models", "show", "smollm2").stdout.splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith(("fp32", "bf16", "bit8", "bit4"))}
    assert "16.4 kB" in rows["fp32"]
    assert "8.2 kB" in rows["bf16"]
    assert "4.4 kB" in rows["bit8"]
    assert "2.6 kB" in rows["bit4"]
    assert all(line.rstrip().endswith("fits") for line in rows.values())
    assert any(line.split() == ["sampling", "defaults", "do_sample", "=", "false"] for line in lines)


def test_show_tells_the_weights_of_a_path_and_what_they_can_become(tmp_path):
    header = b'{"a.weight": {"dtype": "F8_E4M3", "shape": [64, 64], "data_offsets": [0, 4096]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    for method, kind, precisions in (("fp8", "FP8", ["fp32", "fp16", "bf16"]), ("awq", "AWQ", ["bit8"])):
        settings = {"quantization_config": {"quant_method": method}}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        lines = run("models", "show", str(tmp_path)).stdout.splitlines()
        assert any(line.split() == ["weights", "in", "its", "files", kind] for line in lines)
        assert [line.split()[0] for line in lines if line.startswith(("fp", "bf", "bit"))] == precisions


@pytest.mark.parametrize("schema", [GenerateRequest, ChatRequest])
def test_every_parameter_of_a_request_has_its_option(schema):
    command = "generate" if schema is GenerateRequest else "chat"
    text = CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, "--help"]).stdout
    for name in set(schema.model_fields) - options._NO_OPTION:
        flag = "use-adapter" if name == "adapter" else name.replace("_", "-")
        assert f"--{flag} " in text
    assert "--tool" not in text


def commands(command=None, names=()):
    """Yield each command with the words that call it."""
    command = command or typer.main.get_command(app)
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*names, name))
    yield names, command


COMMANDS = list(commands())


@pytest.mark.parametrize(("names", "command"), COMMANDS, ids=["-".join(names) or "rungpt" for names, _ in COMMANDS])
def test_every_option_says_what_it_takes(names, command):
    """An option of a type unknown to Typer would show Python's name of the type in the help, and refuse every value."""
    done = CliRunner(env={"COLUMNS": "300"}).invoke(app, [*names, "--help"])
    assert done.exit_code == 0
    assert not re.findall(r"typing\.|run_gpt\.|Annotated|ResponseFormat", done.stdout)
    assert all(parameter.help for parameter in command.params)


@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize("as_file", [False, True])
def test_a_response_format_is_json_or_a_file_of_it(command, as_file, tmp_path, monkeypatch):
    form = {"type": "json_schema", "json_schema": {"schema": {"properties": {"z": {}, "a": {}}}}}
    file = tmp_path / "form.json"
    file.write_text(json.dumps(form))
    asked = []

    @contextmanager
    def opened(*_):
        def answer(*_, timeout, **parameters):
            asked.append(parameters)
            return []

        yield SimpleNamespace(generate_stream=answer, chat_stream=answer)

    monkeypatch.setattr(ask, "_open", opened)
    done = run(command, "hi", "--response-format", f"@{file}" if as_file else json.dumps(form))
    assert done.exit_code == 0, done.output
    assert json.dumps(asked) == json.dumps([{"response_format": form}])


@pytest.mark.parametrize("way", ["--stream", "--no-stream"])
def test_timings_come_after_the_answer_and_not_on_stdout(monkeypatch, way):
    """Timings on stdout would become part of a piped answer."""
    timings = Timings(queue_seconds=0.5, prefill_seconds=0.25, decode_seconds=2, total_seconds=2.75)
    usage = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
    choice = Choice(index=0, text="Hello", finish_reason="stop")
    answer = GenerateAnswer(id="i", created=1, model="m", usage=usage, choices=[choice], timings=timings)

    @contextmanager
    def opened(*_):
        yield SimpleNamespace(generate_stream=lambda *_, **asked: [answer], generate=lambda *_, **asked: answer)

    monkeypatch.setattr(ask, "_open", opened)
    done = run("generate", "hi", "--timings", way)
    assert done.stdout == "Hello\n"
    assert "queue_seconds 0.5, prefill_seconds 0.25, decode_seconds 2, total_seconds 2.75" in done.stderr


@pytest.mark.parametrize("way", ["--stream", "--no-stream"])
def test_thinking_comes_before_the_answer_and_not_on_stdout(monkeypatch, way):
    """A piped answer must not begin with the model's thoughts."""
    about = {
        "id": "i",
        "created": 1,
        "model": "m",
        "usage": Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2),
    }
    deltas = [Delta(reasoning_content="Let me "), Delta(reasoning_content="see."), Delta(content="4")]
    events = [ChatEvent(choices=[ChatEventChoice(index=0, delta=delta)], **about) for delta in deltas]
    message = ChatMessage(content="4", reasoning_content="Let me see.")
    answer = ChatAnswer(choices=[ChatChoice(index=0, message=message, finish_reason="stop")], **about)

    @contextmanager
    def opened(*_):
        yield SimpleNamespace(chat_stream=lambda *_, **asked: events, chat=lambda *_, **asked: answer)

    monkeypatch.setattr(ask, "_open", opened)
    done = run("chat", "2 + 2?", way)
    assert (done.stdout, done.stderr) == ("4\n", "Let me see.\n\n")


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert run("--version").stdout == f"rungpt {version('rungpt')}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", ""], "prompt"),
        (["generate", "hi", "--temperature", "5"], "temperature: input should be less than or equal to 2, got 5.0"),
        (["generate", "hi", "--num-beams", "2", "--seed", "1"], "seed = 1: this does not go with beam search"),
        (["generate", "hi", "--logit-bias", "5"], "write ID=VALUE"),
        (["generate", "hi", "--logprobs", "1"], "add --json"),
        (["generate", "hi", "--response-format", "json_object"], "json_object: this is no JSON"),
        (["generate", "hi", "--response-format", "@nowhere.json"], "@nowhere.json: No such file"),
        (["chat", "hi", "--response-format", '{"type": "regex"}'], "the type 'regex' needs `regex`"),
        (["generate", "hi", "--device-map", "{"], "this is no JSON"),
        (["chat", "hi", "--endpoint", "somewhere"], "grpc://HOST:PORT"),
        (["chat", "hi", "--endpoint", "http://127.0.0.1:9"], "is `rungpt serve` running there?"),
        (["serve", "smolm2"], "did you mean smollm2"),
        (["generate", "hi", "--model", "./nothing-here"], "there is no file or folder"),
        (["models", "show", "nothing"], "rungpt models list"),
        (["models", "rm", "nothing"], "rungpt models list"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_one_line_before_a_model_is_loaded(fail, arguments, words):
    assert words in fail(*arguments)


def test_a_port_in_use_is_told_with_the_option_that_changes_it(fail):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = fail("serve", "--http-port", port)
    assert port in said
    assert "--http-port" in said
