"""Quantised weights and LoRA adapters, on a tiny model: they must load, answer, and mean what PEFT says they mean."""

from pathlib import Path
from typing import Any

import pytest
import torch

from run_gpt.config import ModelConfig
from run_gpt.models import load

IDS = torch.tensor([[1, 6, 7, 9]])


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w2").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter whose weights are not zero, as a training would leave it."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("adapters") / "lora"
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model: Any = get_peft_model(LlamaForCausalLM.from_pretrained(tiny_model), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return folder


def logits(config: ModelConfig) -> torch.Tensor:
    with torch.inference_mode():
        return load(config).model(IDS).logits.float()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "bit8", "bit4"])
def test_each_precision_generates_and_is_near_fp32(tiny_model: Path, precision: str) -> None:
    loaded = load(ModelConfig(model_name=str(tiny_model), precision=precision, device="cpu"))
    out = loaded.model.generate(IDS, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert out.shape == (1, IDS.shape[1] + 2)
    assert loaded.precision == precision
    exact = logits(ModelConfig(model_name=str(tiny_model), precision="fp32", device="cpu"))
    near = loaded.model(IDS).logits.detach().float()
    assert torch.nn.functional.cosine_similarity(near, exact, dim=-1).min() > 0.95


def test_quantised_weights_take_less_memory(tiny_model: Path) -> None:
    sizes = {
        precision: load(ModelConfig(model_name=str(tiny_model), precision=precision, device="cpu"))
        .model.model.layers[0]
        .mlp.up_proj.weight.nbytes
        for precision in ("fp32", "bit8", "bit4")
    }
    assert sizes["fp32"] == 4 * sizes["bit8"] == 8 * sizes["bit4"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # between peft and transformers
def test_an_adapter_gives_the_logits_that_peft_gives(tiny_model: Path, adapter: Path) -> None:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    config = ModelConfig(model_name=str(tiny_model), precision="fp32", device="cpu")
    with torch.inference_mode():
        expected = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_model), adapter)(IDS).logits
    adapted = ModelConfig(model_name=str(tiny_model), adapter_name_or_path=str(adapter), precision="fp32", device="cpu")
    torch.testing.assert_close(logits(adapted), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, logits(config), atol=1e-2)


@pytest.mark.parametrize("precision", ["bit8", "bit4"])
def test_an_adapter_works_beside_quantised_weights(tiny_model: Path, adapter: Path, precision: str) -> None:
    exact = logits(
        ModelConfig(model_name=str(tiny_model), adapter_name_or_path=str(adapter), precision="fp32", device="cpu")
    )
    near = logits(
        ModelConfig(model_name=str(tiny_model), adapter_name_or_path=str(adapter), precision=precision, device="cpu")
    )
    assert torch.nn.functional.cosine_similarity(near, exact, dim=-1).min() > 0.9
