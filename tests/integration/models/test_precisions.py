"""Weights in the formats of torch and bitsandbytes must load and answer if our own kernels are not available."""

from pathlib import Path

import pytest
import torch
from tiny_model import write_tiny_model

from run_gpt.config import ModelConfig
from run_gpt.models import load

IDS = torch.tensor([[1, 6, 7, 9]])


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


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
