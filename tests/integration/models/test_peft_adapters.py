"""Without these tests an adapter that PEFT applies would be refused, or taken and not applied as PEFT applies it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, build, copied_tokenizer, write_checkpoint
from safetensors.torch import load_file, save_file

import run_gpt
from run_gpt.errors import ModelLoadError

pytestmark = pytest.mark.filterwarnings("ignore")
PROMPT = "Every morning the cat asked for news"
TOKENS = 12
Write = Callable[..., tuple[Path, Path]]


def adapter(folder: Path, family: str, seed: int = 1, **options: Any) -> Path:
    """Write an adapter of the family's model, as PEFT saves it by default."""
    from peft import LoraConfig, get_peft_model  # here, since it takes 5 s in each worker that only collects

    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options}
    adapted = get_peft_model(build(FAMILIES[family]), LoraConfig(**options))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "lora_embedding" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    return folder


def theirs(family: str, folder: Path | None) -> str:
    """Return the answer of PEFT's own model."""
    from peft import PeftModel

    model, tokenizer = build(FAMILIES[family]), copied_tokenizer()
    adapted = model if folder is None else PeftModel.from_pretrained(model, folder).eval()
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    with torch.inference_mode():
        out = adapted.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS, eos_token_id=2
        )
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False))


def ours(checkpoint: Path, folder: Path | None, **options: Any) -> tuple[str, str]:
    """Return our answers with the adapter and without it."""
    options = {"precision": "fp32", "device": "cpu", **options}
    with run_gpt.create_model(str(checkpoint), adapter_name_or_path=folder and str(folder), **options) as model:
        texts = [model.generate(PROMPT, max_new_tokens=TOKENS, adapter=name).text for name in (None, "base")]
    return texts[0], texts[1]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a family's checkpoint and an adapter of it."""

    def write(family: str = "llama", **options: Any) -> tuple[Path, Path]:
        checkpoint = write_checkpoint(family, tmp_path / family)
        return checkpoint, adapter(tmp_path / "lora", family, **options)

    return write


APPLIED: dict[str, tuple[str, dict[str, Any]]] = {
    "the output layer, saved with its own weights": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "the output layer alone, by a path": ("llama", {"target_modules": ["lm_head"]}),
    "the embedding": ("llama", {"target_modules": ["embed_tokens", "v_proj"]}),
    "the embedding of a tied model": ("gemma-3", {"target_modules": ["embed_tokens", "v_proj"]}),
    "both": ("llama", {"target_modules": ["embed_tokens", "lm_head", "o_proj"]}),
    "a regular expression": ("llama", {"target_modules": r".*\.1\.(self_attn\.[qk]|mlp\.up)_proj"}),
    "all-linear": ("llama", {"target_modules": "all-linear"}),
    "some layers": ("llama", {"layers_to_transform": [1], "layers_pattern": "layers"}),
    "one layer": ("llama", {"layers_to_transform": 0}),
    "excluded": ("llama", {"exclude_modules": r".*\.0\..*"}),
    "excluded by name": ("llama", {"exclude_modules": ["v_proj"]}),
    "patterns": (
        "llama",
        {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"^model.*v_proj": 4}, "use_rslora": True},
    ),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_proj", "lm_head"], "fan_in_fan_out": True}),
}


@pytest.mark.parametrize("case", APPLIED)
def test_an_adapter_is_applied_as_peft_applies_it(write: Write, case: str) -> None:
    family, options = APPLIED[case]
    checkpoint, folder = write(family, **options)
    expected = theirs(family, folder), theirs(family, None)
    assert expected[0] != expected[1]
    assert ours(checkpoint, folder) == expected


@pytest.mark.parametrize("runner", ["fast", "generic"])
def test_output_and_embedding_are_applied_by_each_runner(write: Write, runner: str) -> None:
    checkpoint, folder = write(target_modules=["embed_tokens", "lm_head", "q_proj"])
    assert ours(checkpoint, folder, runner=runner) == (theirs("llama", folder), theirs("llama", None))


def test_packed_weights_take_an_adapter_of_the_output_layer(write: Write) -> None:
    checkpoint, folder = write(target_modules=["embed_tokens", "lm_head"])
    adapted, plain = ours(checkpoint, folder, precision="bit8")
    assert adapted != plain


def change(folder: Path, **settings: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def change_weights(folder: Path, changed: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(changed(load_file(file)), file)


SETTINGS: dict[str, Any] = {
    "use_new_thing": True,
    "task_type": "SEQ_CLS",
    "use_qalora": True,
    "use_bdlora": {"nblocks": 2},
    "monteclora_config": {"num_samples": 8},
    "kasa_config": {"a": 1},
    "arrow_config": {"top_k": 2},
    "enable_lora": [True],
    "megatron_config": {"a": 1},
    "ensure_weight_tying": True,
    "init_lora_weights": "mica",
    "use_rslora": "yes",
    "rank_pattern": {"(": 4},
    "target_modules": None,
    "layers_to_transform": "1",
    "r": True,
}


@pytest.mark.parametrize("key", SETTINGS)
def test_a_setting_that_is_not_served_is_named(write: Write, key: str) -> None:
    checkpoint, folder = write()
    change(folder, **{key: SETTINGS[key]})
    with pytest.raises(ModelLoadError, match=key) as refused:
        ours(checkpoint, folder)
    assert "\n" not in str(refused.value)


def test_settings_without_effect_are_taken(write: Write) -> None:
    checkpoint, folder = write()
    expected = theirs("llama", folder)
    change(folder, some_new_key=None, other_key=False, lora_dropout=0.3, peft_version="99", eva_config={"rho": 2.0})
    assert ours(checkpoint, folder)[0] == expected


def test_an_adapter_of_a_shallower_or_deeper_model_is_refused(write: Write) -> None:
    checkpoint, folder = write()
    change_weights(folder, lambda held: {key: value for key, value in held.items() if ".layers.0." in key})
    with pytest.raises(ModelLoadError, match=r"targets model.layers.1.self_attn.q_proj, for which"):
        ours(checkpoint, folder)
    change_weights(
        folder,
        lambda held: {key.replace("layers.0", f"layers.{i}"): held[key].clone() for key in held for i in range(3)},
    )
    with pytest.raises(ModelLoadError, match=r"no layer model.layers.2.self_attn"):
        ours(checkpoint, folder)


def test_names_of_layers_that_are_not_there_or_not_targeted_are_refused(write: Write) -> None:
    checkpoint, folder = write()
    change(folder, target_modules=["q_proj", "v_proj", "query_key_value"])
    with pytest.raises(ModelLoadError, match="targets query_key_value, which this model does not have"):
        ours(checkpoint, folder)
    change(folder, target_modules=["q_proj"])
    with pytest.raises(ModelLoadError, match=r"weights for model.layers.0.self_attn.v_proj, which"):
        ours(checkpoint, folder)


def test_another_output_layer_than_the_models_is_refused(write: Write) -> None:
    checkpoint, folder = write(target_modules=["lm_head"])
    name = "base_model.model.lm_head.base_layer.weight"
    change_weights(folder, lambda held: {**held, name: held[name].bfloat16()})
    assert ours(checkpoint, folder)[0] == theirs("llama", folder)  # the same in fewer bits
    change_weights(folder, lambda held: {**held, name: held[name] * 1.1})
    with pytest.raises(ModelLoadError, match=r"lm_head.base_layer.weight is not the served model's lm_head.weight"):
        ours(checkpoint, folder)
    change_weights(folder, lambda held: {**held, name: held[name][:10].clone()})
    with pytest.raises(ModelLoadError, match="is not the served model's"):
        ours(checkpoint, folder)


def test_copies_are_found_in_files_without_the_inner_models_name(write: Write) -> None:
    """The hub's oldest checkpoints, such as gpt2, have `wte.weight` for `transformer.wte.weight`."""
    checkpoint, folder = write("gpt2", target_modules=["wte", "lm_head"], fan_in_fan_out=True)
    held = {}
    for file in checkpoint.glob("model*.safetensors"):
        held |= load_file(file)
        file.unlink()
    (checkpoint / "model.safetensors.index.json").unlink()
    save_file(
        {key.removeprefix("transformer."): value for key, value in held.items()}, checkpoint / "model.safetensors"
    )
    assert ours(checkpoint, folder) == (theirs("gpt2", folder), theirs("gpt2", None))


def test_an_adapter_of_a_running_model_is_checked_too(write: Write) -> None:
    checkpoint, folder = write()
    change_weights(folder, lambda held: {key: value for key, value in held.items() if ".layers.0." in key})
    with (
        run_gpt.create_model(str(checkpoint), precision="fp32", device="cpu") as model,
        pytest.raises(run_gpt.errors.InvalidRequest, match=r"targets model.layers.1"),
    ):
        model.load_adapter("a", str(folder))


def test_the_model_that_an_adapter_was_made_for_is_noted(write: Write) -> None:
    checkpoint, folder = write()
    for made_for, noted in (("meta-llama/Llama-2-7b", True), (f"somewhere/{checkpoint.name.upper()}/", False)):
        change(folder, base_model_name_or_path=made_for)
        with run_gpt.create_model(str(checkpoint), adapters={"a": str(folder)}, device="cpu") as model:
            assert any(f"the adapter a was made for {made_for}" in note for note in model.notes) is noted


def test_adapter_files_in_a_models_folder_are_refused(write: Write) -> None:
    checkpoint, folder = write()
    with pytest.raises(ModelLoadError, match=r"is a LoRA adapter and not a model: serve .* with --adapter"):
        ours(folder, None)
    shutil.copytree(folder, checkpoint, dirs_exist_ok=True)
    with pytest.raises(ModelLoadError, match="holds a model and a LoRA adapter"):
        ours(checkpoint, None)
