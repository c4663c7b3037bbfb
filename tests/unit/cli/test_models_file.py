"""The file of `rungpt serve --config`: if a mistake in it is not reported, a model is served with wrong settings."""

import re
from pathlib import Path
from typing import Any

import pytest

from run_gpt.cli import models_file
from run_gpt.cli.models_file import read_models_file
from run_gpt.config import ServeConfig, ServedModel
from run_gpt.errors import SetupError

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "many-models.md"


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Return a function: `read(text)` reads a file `models.yml` with this text."""

    def run(text: str) -> ServeConfig:
        file = tmp_path / "models.yml"
        file.write_text(text)
        return read_models_file(file)

    return run


def test_every_setting_is_read_as_it_is_meant(read: Any, tmp_path: Path) -> None:
    config = read("""
host: 0.0.0.0
grpc_port: 1
drain_seconds: 5
api_key_file: keys
cors_origins: [https://a.example]
memory_budget: 12GB
defaults: {max_running: 8, precision: bit4, unload_after: 60, cache_dir: cache}
models:
  - smollm2
  - name: law
    model_path: models/law
    adapters: {tone: ./tone, other: org/other}
    device_map: {"": cpu}
    precision: fp32
    memory: 2GiB
    unload_after: 0
    preload: true
  - model_name: org/model
    device_map: [0, 1]
    max_memory: {cpu: 8GB, 0: 1000}
    compile: yes
    replicas: 2
""")
    assert (config.host, config.grpc_port, config.drain_seconds, config.memory_budget) == (
        "0.0.0.0",
        1,
        5.0,
        12 * 10**9,
    )
    assert (config.api_key_file, config.cors_origins) == (tmp_path / "keys", ("https://a.example",))
    shared: dict[str, Any] = {"max_running": 8, "cache_dir": tmp_path / "cache"}
    assert config.models == (
        ServedModel(model_name="smollm2", precision="bit4", unload_after=60.0, **shared),
        ServedModel(
            model_name="law",
            model_path=str(tmp_path / "models/law"),
            adapters={"tone": str(tmp_path / "tone"), "other": "org/other"},
            device_map={"": "cpu"},
            precision="fp32",
            memory=2 * 2**30,
            **shared,
        ),
        ServedModel(
            model_name="org/model",
            device_map=[0, 1],
            max_memory={"cpu": "8GB", "0": 1000},
            compile=True,
            replicas=2,
            precision="bit4",
            unload_after=60.0,
            preload=False,
            **shared,
        ),
    )


def test_paths_are_relative_to_the_file_and_names_stay_names(read: Any, tmp_path: Path) -> None:
    """Servers may be started from any folder."""
    (tmp_path / "here").mkdir()
    (tmp_path / "smollm2").mkdir()
    config = read("models: [here, ./there, a.gguf, smollm2, org/model, 'org/model:a.gguf', /abs/x]")
    assert [model.model_name for model in config.models] == [
        str(tmp_path / "here"),
        str(tmp_path / "there"),
        str(tmp_path / "a.gguf"),
        "smollm2",
        "org/model",
        "org/model:a.gguf",
        "/abs/x",
    ]


def test_one_model_of_a_file_is_as_one_of_the_command_line(read: Any) -> None:
    assert read("models: [smollm2]").models == (ServedModel(model_name="smollm2"),)


def test_an_anchor_may_be_merged_and_changed(read: Any) -> None:
    config = read("""
models:
  - &small {name: smollm2, max_running: 2, precision: fp32}
  - <<: *small
    name: qwen3-0.6b
    precision: bf16
""")
    assert [(m.model_name, m.max_running, m.precision) for m in config.models] == [
        ("smollm2", 2, "fp32"),
        ("qwen3-0.6b", 2, "bf16"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "models.yml: this must be a mapping"),
        ("- smollm2", "models.yml: this must be a mapping"),
        ("models: [", "models.yml is no YAML: while parsing"),
        ("http_port: 1", "models.yml: models: this must be a list with a model or more"),
        ("models: []", "models: this must be a list with a model or more"),
        ("models: {name: a}", "models: this must be a list with a model or more"),
        ("models: [7]", "models[0]: this must be a mapping of settings"),
        ("models: [a, {replicas: 2}]", "models[1]: a model needs a name, or model_path"),
        ("models: [{name: a, model_name: b}]", "models[0]: name and model_name are the same"),
        ("models: [{name: 7}]", "models[0]: name: input should be a valid string, not 7"),
        ("models: [{name: a, max_runing: 2}]", "models[0]: there is no setting 'max_runing'; did you mean max_running"),
        ("models: [{name: a, zzz: 2}]", "models[0]: there is no setting 'zzz'; there are name, "),
        ("model: [a]", "models.yml: there is no setting 'model'; did you mean models"),
        ("models: [{name: a, http_port: 2}]", "models[0]: http_port is of the whole server: write it at the top"),
        ("max_running: 3\nmodels: [a]", "max_running is of a model: write it beside its name, or under `defaults`"),
        ("defaults: {model_path: x}\nmodels: [a]", "defaults: model_path is of one model: write it in the list"),
        ("name: x\nmodels: [a]", "models.yml: name is of one model: write it in the list `models`"),
        ("api_key: sesame-sesame\nmodels: [a]", "a key does not belong in this file: set RUNGPT_API_KEY"),
        ("defaults: [a]\nmodels: [a]", "defaults: this must be a mapping"),
        ("models: [{name: a, max_running: '3'}]", "models[0]: max_running: input should be a valid integer, not '3'"),
        ("models: [{name: a, max_running: 0}]", "max_running: input should be greater than or equal to 1, not 0"),
        ("models: [{name: a, compile: 1}]", "compile: input should be a valid boolean, not 1"),
        ("models: [{name: a, precision: int8}]", "precision: input should be 'auto', 'fp32', 'fp16', 'bf16', 'bit8'"),
        ("models: [{name: a, memory: big}]", "memory: 'big' is no size: write 8GB, 7.5GiB or a number of bytes"),
        ("models: [{name: a, unload_after: -1}]", "unload_after: input should be greater than or equal to 0"),
        ("models: [{name: a, max_running: 1, max_running: 2}]", "'max_running' is there twice in "),
        ("models: [{name: a, adapters: {2024-01-01: b}}]", "adapters: this is no plain value"),
        ("models: [{? [b] : c}]", "models.yml is no YAML: while constructing a mapping"),
        ("http_port: 0\nmodels: [a]", "models.yml: http_port: input should be greater than or equal to 1, not 0"),
        ("grpc_port: 70000\nmodels: [a]", "grpc_port: input should be less than or equal to 65535"),
    ],
)
def test_each_mistake_is_one_line_with_its_place(read: Any, text: str, words: str) -> None:
    with pytest.raises(SetupError) as raised:
        read(text)
    assert words in raised.value.message
    assert "\n" not in raised.value.message
    assert "models.yml" in raised.value.message
    assert "sesame" not in raised.value.message


def test_the_documentation_has_every_setting_and_its_file_is_read(read: Any, tmp_path: Path) -> None:
    text = DOCUMENTATION.read_text()
    named = set(re.findall(r"`(\w+)`", text))
    assert models_file.MODEL.keys() | models_file.SERVER.keys() <= named
    (shown,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    config = read(shown)
    assert [model.model_name for model in config.models] == ["smollm2", "qwen2.5-0.5b", "law"]
    assert config.models[2].model_path == str(tmp_path / "checkpoints/law-7b")


def test_every_setting_of_the_command_line_may_stand_in_the_file() -> None:
    """A new option must not be missing from the file."""
    known = models_file.MODEL.keys() | models_file.SERVER.keys() | {"api_key", "models"}
    assert ServeConfig.__dataclass_fields__.keys() <= known
