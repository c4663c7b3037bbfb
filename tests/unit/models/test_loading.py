"""Loading: users must get the requested precision and device, and one clear line for each kind of damage."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import as_sentencepiece_files, write_checkpoint

from run_gpt.config import ModelConfig
from run_gpt.errors import ModelLoadError
from run_gpt.models import load
from run_gpt.models.adapters import read_adapter
from run_gpt.models.target import choose_target, has_native_bf16
from run_gpt.process.devices import free_bytes

IDS = torch.tensor([[1, 6, 7]])


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_the_weights_have_the_precision_asked_for(tiny_model: Path, precision: str, dtype: torch.dtype) -> None:
    loaded = load(ModelConfig(model_name=str(tiny_model), precision=precision, device="cpu"))
    assert (loaded.name, loaded.precision, loaded.device, loaded.context_length) == ("tiny", precision, "cpu", 96)
    assert loaded.notes == (
        "this model has no chat template: chats are written as plain lines, `User: ...`, `Assistant: ...`",
    )
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
        target = choose_target(ModelConfig(device_map=name))
        assert (target.device_map, target.device.type) == (name, "cpu")
        assert 0 < (target.max_memory or {})["cpu"] < free_bytes("cpu")

    @pytest.mark.parametrize(("wish", "missing"), [([0, 1], "0, 1"), ({"": 3}, "3"), ({"": "cuda:2"}, "2")])
    def test_gpus_that_are_not_there_are_named(self, wish: Any, missing: str) -> None:
        with pytest.raises(ModelLoadError, match=f"no GPU {missing} "):
            choose_target(ModelConfig(device_map=wish))

    def test_a_gpu_that_is_not_there_is_named(self) -> None:
        with pytest.raises(ModelLoadError, match=r"'cuda'.*no GPU 0"):
            choose_target(ModelConfig(device="cuda"))


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
        choose_target(ModelConfig(**wish))


def test_a_dict_maps_parts_and_offloads_to_disk(tiny_model: Path) -> None:
    parts = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    device_map = {**parts, "model.rotary_emb": "cpu", "lm_head": "cpu"}
    plain = load(ModelConfig(model_name=str(tiny_model), precision="fp32", device="cpu"))
    split = load(ModelConfig(model_name=str(tiny_model), precision="fp32", device="cpu", device_map=device_map))
    assert torch.equal(split.model(IDS).logits, plain.model(IDS).logits)
    assert split.device == "cpu"


@pytest.fixture(scope="module")
def whole_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("llama", tmp_path_factory.mktemp("parts") / "tiny")


@pytest.fixture
def parts(whole_parts: Path, tmp_path: Path) -> Path:
    """Return a checkpoint in several parts, which the test may damage."""
    return Path(shutil.copytree(whole_parts, tmp_path / "tiny"))


PART, INDEX = "model-00002-of-00004.safetensors", "model.safetensors.index.json"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def change_header(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a safetensors file's header. A file has the header's length (64 bits), the header as JSON, the numbers."""
    data = file.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    change(header)
    changed = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(changed)) + changed + data[8 + length :])


def first_tensor(header: dict[str, Any]) -> str:
    return next(name for name in header if name != "__metadata__")


def lie_about_a_size(header: dict[str, Any]) -> None:
    header[first_tensor(header)]["shape"][0] *= 2


def lie_about_a_name(header: dict[str, Any]) -> None:
    header["another"] = header.pop(first_tensor(header))


def lie_about_an_end(header: dict[str, Any]) -> None:
    header[first_tensor(header)]["data_offsets"][1] += 1000


def lose_a_weight(file: Path) -> None:
    index = json.loads(file.read_text())
    del index["weight_map"]["lm_head.weight"]
    file.write_text(json.dumps(index))


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a part cut short": (PART, cut, "not fully covered"),
    "an empty part": (PART, lambda file: file.write_bytes(b""), "header too small"),
    "a part of something else": (PART, lambda file: file.write_bytes(b"x" * 1000), "header too large"),
    "a part that is missing": (PART, Path.unlink, f"it is missing, and {INDEX} names it"),
    "a size that is not true": (PART, lambda file: change_header(file, lie_about_a_size), "invalid shape"),
    "a name that is not true": (PART, lambda file: change_header(file, lie_about_a_name), "it lacks model.layers"),
    "an end that is not true": (PART, lambda file: change_header(file, lie_about_an_end), "invalid"),
    "an index cut short": (INDEX, cut, "delimiter|Expecting|Unterminated"),
    "an index of nothing": (INDEX, lambda file: file.write_text("{}"), "does not say which file holds"),
    "an index that is missing": (INDEX, Path.unlink, "it is missing, though the weights are in parts"),
    "a configuration cut short": ("config.json", cut, "delimiter|Expecting|Unterminated"),
    "a configuration that is a list": ("config.json", lambda file: file.write_text("[]"), "not a JSON object"),
    "a configuration of bytes": ("config.json", lambda file: file.write_bytes(b"\xff\x00"), "can't decode"),
    "generation settings cut short": ("generation_config.json", cut, "delimiter|Expecting|Unterminated"),
    "tokenizer settings cut short": ("tokenizer_config.json", cut, "delimiter|Expecting|Unterminated"),
    "a tokenizer cut short": ("tokenizer.json", cut, "EOF"),
    "a tokenizer without a model": ("tokenizer.json", lambda file: file.write_text("{}"), "Model missing"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_named(parts: Path, what: str) -> None:
    name, damage, reason = DAMAGE[what]
    damage(parts / name)
    with pytest.raises(ModelLoadError, match=reason) as caught:
        load(ModelConfig(model_name=str(parts)))
    assert str(parts / name) in caught.value.message
    assert "\n" not in caught.value.message


def test_weights_that_no_file_has_are_not_made_up(parts: Path) -> None:
    lose_a_weight(parts / INDEX)
    with pytest.raises(ModelLoadError, match=rf"{parts}.*no weights for lm_head.weight"):
        load(ModelConfig(model_name=str(parts), precision="fp32", device="cpu"))


def test_weights_of_another_size_are_told(parts: Path) -> None:
    config = (parts / "config.json").read_text()
    (parts / "config.json").write_text(config.replace('"hidden_size": 64', '"hidden_size": 32'))
    with pytest.raises(ModelLoadError, match=rf"{parts}.*has the shape .*configuration says"):
        load(ModelConfig(model_name=str(parts), precision="fp32", device="cpu"))


def test_a_tokenizer_in_sentencepieces_file_makes_its_tokens(parts: Path) -> None:
    theirs = as_sentencepiece_files(parts)
    ours = load(ModelConfig(model_name=str(parts))).tokenizer
    for text in ("In a village", "USER: What  is\nthat? 0123 ASSISTANT:", "日本 é"):
        assert ours(text)["input_ids"] == [1, *theirs.encode(text)]


def test_a_damaged_sentencepiece_file_is_named(parts: Path) -> None:
    as_sentencepiece_files(parts)
    cut(parts / "tokenizer.model")
    with pytest.raises(ModelLoadError, match=r"tokenizer.model \(it is not a SentencePiece model"):
        load(ModelConfig(model_name=str(parts)))


def test_a_folder_without_a_tokenizer_says_what_it_lacks(parts: Path) -> None:
    (parts / "tokenizer.json").unlink()
    with pytest.raises(ModelLoadError, match=r"holds no tokenizer: there is no tokenizer.json"):
        load(ModelConfig(model_name=str(parts)))


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


def pickle_weights(folder: Path) -> None:
    """Replace each part by the file that PyTorch would save."""
    from safetensors.torch import load_file

    for file in folder.glob("*.safetensors"):
        torch.save(load_file(file), folder / f"{file.stem.replace('model', 'pytorch_model')}.bin")
        file.unlink()
    index = (folder / INDEX).read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
    (folder / INDEX).unlink()
    (folder / "pytorch_model.bin.index.json").write_text(index)


def test_pickled_weights_need_the_flag(parts: Path, whole_parts: Path) -> None:
    pickle_weights(parts)
    with pytest.raises(ModelLoadError, match=r"pytorch_model-00001-of-00004.bin.*--allow-pickle"):
        load(ModelConfig(model_name=str(parts)))
    theirs = load(ModelConfig(model_name=str(parts), allow_pickle=True, precision="fp32", device="cpu"))
    ours = load(ModelConfig(model_name=str(whole_parts), precision="fp32", device="cpu"))
    assert torch.equal(theirs.model(IDS).logits, ours.model(IDS).logits)


def test_a_pickled_part_that_is_missing_is_named(parts: Path) -> None:
    pickle_weights(parts)
    (parts / "pytorch_model-00003-of-00004.bin").unlink()
    with pytest.raises(ModelLoadError, match=r"pytorch_model-00003-of-00004.bin \(it is missing"):
        load(ModelConfig(model_name=str(parts), allow_pickle=True))


class Trap:
    """Object that would write a file if it were unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_pickled_weights_run_no_code_even_with_the_flag(parts: Path, tmp_path: Path) -> None:
    pickle_weights(parts)
    torch.save({"lm_head.weight": Trap(tmp_path / "ran")}, parts / "pytorch_model-00001-of-00004.bin")
    with pytest.raises(ModelLoadError) as caught:
        load(ModelConfig(model_name=str(parts), allow_pickle=True))
    assert str(parts) in caught.value.message
    assert not (tmp_path / "ran").exists()


OWN_CODE = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM

pathlib.Path(__file__).with_name("ran").touch()


class Config(LlamaConfig):
    model_type = "mine"


class Model(LlamaForCausalLM):
    config_class = Config
"""


def test_code_of_the_model_needs_the_flag(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    config = (tiny_model / "config.json").read_text()
    own = '{"auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}, "model_type": "mine",'
    config = config.replace('"model_type": "llama",', "").replace("{", own, 1)
    (tiny_model / "config.json").write_text(config)
    (tiny_model / "mine.py").write_text(OWN_CODE)
    with pytest.raises(ModelLoadError, match="--trust-remote-code"):
        load(ModelConfig(model_name=str(tiny_model)))
    assert not list(tmp_path.rglob("ran"))
    loaded = load(ModelConfig(model_name=str(tiny_model), trust_remote_code=True, device="cpu"))
    assert loaded.model.config.model_type == "mine"
    assert list(tmp_path.rglob("ran"))


def test_a_folder_without_an_adapter_is_named(tiny_model: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"adapter_config.json"):
        read_adapter(tiny_model)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"adapter_name_or_path": "here/one", "adapters": {"one": "there"}}, "two adapters are called 'one'"),
        ({"adapters": {"base": "there"}}, "'base', which is the model itself"),
        ({"adapters": {"a b": "there"}}, "adapter 'a b'"),
        ({"adapters": {"one": "nowhere"}}, "no adapter folder nowhere"),
    ],
)
def test_adapters_that_cannot_be_named_or_found_are_refused_before_a_download(
    tiny_model: Path, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelLoadError, match=words):
        load(ModelConfig(model_name=str(tiny_model), **config))


def test_a_load_is_silent(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(ModelConfig(model_name=str(tiny_model), device="cpu"))
    assert capfd.readouterr() == ("", "")


def test_second_copies_are_not_loaded_and_another_layout_is_named(tiny_model: Path) -> None:
    (tiny_model / "consolidated.safetensors").write_bytes(b"cut short")
    assert load(ModelConfig(model_name=str(tiny_model), device="cpu")).name == "tiny"
    (tiny_model / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"in consolidated.safetensors only.*model.safetensors.index.json"):
        load(ModelConfig(model_name=str(tiny_model), device="cpu"))


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": {"a": "a.safetensors"}}', '{"weight_map": [1]}'])
def test_an_index_of_files_with_other_names_is_checked(tiny_model: Path, content: str) -> None:
    (tiny_model / "model.safetensors").rename(tiny_model / "weights.safetensors")
    (tiny_model / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"model.safetensors.index.json|a.safetensors"):
        load(ModelConfig(model_name=str(tiny_model), device="cpu"))
