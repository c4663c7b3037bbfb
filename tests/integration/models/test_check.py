"""`rungpt models check`: users must see what of a model's files is honoured, and be warned of other tokens."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import write_checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from run_gpt.cli.app import app
from run_gpt.config import ModelConfig
from run_gpt.engine.runners.native.build import unsupported
from run_gpt.local import check as module
from run_gpt.local.check import check_model
from run_gpt.models.check import compare_tokens, keys_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("gemma-3", tmp_path_factory.mktemp("models") / "gemma-3")


def config(folder: Path) -> ModelConfig:
    return ModelConfig(model_name=str(folder), precision="fp32", device="cpu")


def test_an_exact_model_has_no_difference_and_the_command_says_so(checkpoint: Path) -> None:
    run = [sys.executable, "-m", "run_gpt.cli", "models", "check", str(checkpoint), "--precision", "fp32", "--json"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["exact"]
    assert {one["name"]: one["verdict"] for one in report["comparisons"]} == {"tokens": "same", "greedy tokens": "same"}
    facts = {one["name"]: one["value"] for one in report["facts"]}
    assert facts["context"].startswith(str(AutoConfig.from_pretrained(checkpoint).max_position_embeddings))
    assert facts["chat template"] == "the model's own"
    packed = unsupported() is None
    assert facts["weights: packed" if packed else "weights: layers"] == "fp32"
    assert "transformers' model in fp32" in done.stderr
    keys = {one["name"]: one["verdict"] for one in report["keys"]["config.json"]}
    assert (keys["sliding_window"], keys["transformers_version"]) == ("honoured", "no effect")


def test_other_tokens_are_a_difference_and_the_exit_code_is_1(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*_: Any) -> Any:
        model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(model.get_input_embeddings().weight.roll(1, 0))
        return model

    monkeypatch.setattr(module, "_reference", other)
    done = CliRunner().invoke(app, ["models", "check", str(checkpoint), "--precision", "fp32", "--device", "cpu"])
    assert done.exit_code == 1
    line = next(line for line in done.stdout.splitlines() if "greedy tokens" in line)
    assert line.strip().startswith("differs")
    assert "and transformers has" in line
    assert done.stdout.endswith("1 of these differ\n")


def test_without_the_memory_for_a_comparison_the_report_says_so(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 1000)
    answer = check_model(config(checkpoint)).comparisons[-1]
    assert answer.verdict == "not compared"
    assert "are free" in answer.note


def test_tokens_that_tokenizer_json_does_not_give_are_a_difference(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert compare_tokens(checkpoint, tokenizer).verdict == "same"
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Whitespace()]
    )
    found = compare_tokens(checkpoint, tokenizer)
    assert found.verdict == "differs"
    assert "tokenizer.json has" in found.note


SETTINGS = {"eos_token_id": [2, 7], "temperature": 0.6, "typical_p": 0.9, "use_cache": True}


def test_a_key_that_nothing_reads_and_an_end_that_does_not_end_are_named(checkpoint: Path, tmp_path: Path) -> None:
    content = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "attention_twist": 3}))
    (tmp_path / "generation_config.json").write_text(json.dumps(SETTINGS))
    found = keys_of(tmp_path, AutoConfig.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(checkpoint), (2,))
    by_name = {one.name: one for keys in found.values() for one in keys}
    assert (by_name["attention_twist"].verdict, by_name["hidden_size"].verdict) == ("no effect", "honoured")
    assert "Gemma3TextConfig does not read it" in by_name["attention_twist"].note
    assert (by_name["eos_token_id"].verdict, by_name["eos_token_id"].note) == ("differs", "[7] do not end")
    assert (by_name["temperature"].verdict, by_name["temperature"].note) == ("honoured", "a default of requests")
    assert (by_name["typical_p"].verdict, by_name["typical_p"].note) == ("no effect", "RunGPT does not apply it")
    assert by_name["use_cache"].note == "the engine decides it"
