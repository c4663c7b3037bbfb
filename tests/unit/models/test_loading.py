"""Loading: the precision and place that were asked for, and one clear line for each kind of damage."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from run_gpt.config import ModelConfig
from run_gpt.devices import free_bytes
from run_gpt.errors import ModelLoadError
from run_gpt.models import load
from run_gpt.models.placement import choose_placement, has_native_bf16

IDS = torch.tensor([[1, 6, 7]])


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_the_weights_have_the_precision_asked_for(tiny_model: Path, precision: str, dtype: torch.dtype) -> None:
    loaded = load(ModelConfig(model_name=str(tiny_model), precision=precision, device="cpu"))
    assert (loaded.name, loaded.precision, loaded.device, loaded.context_length) == ("tiny", precision, "cpu", 96)
    assert loaded.notes == ()
    assert not loaded.model.training
    assert {p.dtype for p in loaded.model.parameters()} == {dtype}
    assert torch.isfinite(loaded.model(IDS).logits).all()


def test_auto_loses_nothing_on_a_cpu_without_bf16(tiny_model: Path) -> None:
    loaded = load(ModelConfig(model_name=str(tiny_model), device="cpu"))
    assert loaded.precision == ("bf16" if has_native_bf16() else "fp32")


def test_model_path_is_loaded_and_model_name_stays(tiny_model: Path) -> None:
    loaded = load(ModelConfig(model_name="house", model_path=str(tiny_model), device="cpu"))
    assert loaded.name == "house"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
class TestWithoutGpu:
    @pytest.mark.parametrize("name", ["balanced", "auto", "sequential"])
    def test_a_named_map_is_bounded_by_the_cpus_memory(self, name: str) -> None:
        placement = choose_placement(ModelConfig(device_map=name))
        assert (placement.device_map, placement.device.type) == (name, "cpu")
        assert 0 < (placement.max_memory or {})["cpu"] < free_bytes("cpu")

    @pytest.mark.parametrize(("wish", "missing"), [([0, 1], "0, 1"), ({"": 3}, "3"), ({"": "cuda:2"}, "2")])
    def test_gpus_that_are_not_there_are_named(self, wish: Any, missing: str) -> None:
        with pytest.raises(ModelLoadError, match=f"no GPU {missing} "):
            choose_placement(ModelConfig(device_map=wish))

    def test_a_gpu_that_is_not_there_is_named(self) -> None:
        with pytest.raises(ModelLoadError, match=r"'cuda'.*no GPU 0"):
            choose_placement(ModelConfig(device="cuda"))


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"precision": "fp8"}, "fp8.*fp32, fp16"),
        ({"device": "toaster"}, "toaster"),
        ({"device_map": "everywhere"}, "everywhere.*balanced"),
    ],
)
def test_a_wish_that_is_unknown_names_what_is_known(wish: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        choose_placement(ModelConfig(**wish))


def test_a_dict_maps_parts_and_offloads_to_disk(tiny_model: Path) -> None:
    parts = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    device_map = {**parts, "model.rotary_emb": "cpu", "lm_head": "cpu"}
    plain = load(ModelConfig(model_name=str(tiny_model), precision="fp32", device="cpu"))
    split = load(ModelConfig(model_name=str(tiny_model), precision="fp32", device="cpu", device_map=device_map))
    assert torch.equal(split.model(IDS).logits, plain.model(IDS).logits)
    assert split.device == "cpu"


def test_a_truncated_weight_file_is_named(tiny_model: Path) -> None:
    file = tiny_model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match=r"cannot read .*model.safetensors") as caught:
        load(ModelConfig(model_name=str(tiny_model)))
    assert "\n" not in caught.value.message


def test_a_damaged_configuration_is_one_line(tiny_model: Path) -> None:
    (tiny_model / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=str(tiny_model)) as caught:
        load(ModelConfig(model_name=str(tiny_model)))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "there is no file or folder"),
        (lambda path: path.mkdir(), "it has no config.json"),
        (lambda path: path.write_bytes(b"hello"), "not a GGUF file"),
    ],
)
def test_a_path_that_is_no_model_is_named(tmp_path: Path, make: Any, reason: str) -> None:
    path = tmp_path / "nothing"
    make(path)
    with pytest.raises(ModelLoadError, match=reason) as caught:
        load(ModelConfig(model_path=str(path)))
    assert str(path) in caught.value.message


@pytest.mark.parametrize("content", [b"hello", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\x10" * 50])
def test_a_damaged_gguf_file_is_named_and_nothing_is_kept(tmp_path: Path, cache: Path, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError) as caught:
        load(ModelConfig(model_path=str(path)))
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert list((cache / "converted").iterdir()) == []


def test_pickled_weights_need_the_flag(tiny_model: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(tiny_model / "model.safetensors")
    (tiny_model / "model.safetensors").unlink()
    torch.save(weights, tiny_model / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="--allow-pickle"):
        load(ModelConfig(model_name=str(tiny_model)))
    assert load(ModelConfig(model_name=str(tiny_model), allow_pickle=True)).name == "tiny"


def test_code_of_the_model_needs_the_flag(tiny_model: Path) -> None:
    config = (tiny_model / "config.json").read_text()
    own = '{"auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}, "model_type": "mine",'
    config = config.replace('"model_type": "llama",', "").replace("{", own, 1)
    (tiny_model / "config.json").write_text(config)
    (tiny_model / "mine.py").write_text("raise SystemExit('the code ran')")
    with pytest.raises(ModelLoadError, match="--trust-remote-code"):
        load(ModelConfig(model_name=str(tiny_model)))


def test_a_missing_peft_gives_the_pip_line(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else found(name))
    with pytest.raises(ModelLoadError, match=r"pip install 'rungpt\[adapters\]'"):
        load(ModelConfig(model_name=str(tiny_model), adapter_name_or_path="somewhere"))


def test_a_folder_without_an_adapter_is_named(tiny_model: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"adapter_config.json"):
        load(ModelConfig(model_name=str(tiny_model), adapter_name_or_path=str(tiny_model)))


def test_a_load_is_silent(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(ModelConfig(model_name=str(tiny_model), device="cpu"))
    assert capfd.readouterr() == ("", "")
