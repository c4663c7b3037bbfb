"""Without these tests an adapter of a family with names of its own could be refused, or added to the wrong outputs."""

import copy
from functools import cache

import pytest
import torch
from families import FAMILIES, build
from plain_run import ScheduledTokens
from transformers.pytorch_utils import Conv1D

from run_gpt.config import EngineConfig
from run_gpt.engine.runners.lora import Lora
from run_gpt.engine.runners.native.binding import Kernels
from run_gpt.engine.runners.native.build import built, unsupported
from run_gpt.engine.runners.native.families import family_of
from run_gpt.engine.runners.native.runner import NativeRunner
from run_gpt.engine.runners.native.weights import PackedWeights
from run_gpt.models.cache import cache_root

pytestmark = pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))
NATIVE = [name for name, family in FAMILIES.items() if family.runner == "native"]
IDS = tuple(torch.randint(3, 128, (30,), generator=torch.Generator().manual_seed(1)).tolist())


@cache
def kernels():
    return Kernels(built(cache_root() / "kernels"))


def lora_of(model):
    """Return an adapter of every linear module but the output layer, routers and MLPs beside experts."""
    generator, weights = torch.Generator().manual_seed(2), {}
    for path, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear | Conv1D) or module is model.get_output_embeddings():
            continue
        if "shared_expert" in path:
            continue
        outputs, inputs = module.weight.T.shape if isinstance(module, Conv1D) else module.weight.shape
        a, b = (torch.randn(size, generator=generator) * 0.1 for size in ((3, inputs), (outputs, 3)))
        weights[path] = a, b
    return Lora("every", weights)


def merged(model, lora):
    model = copy.deepcopy(model)
    for path, (a, b) in lora.weights.items():
        module = model.get_submodule(path)
        module.weight.data += (b @ a).T if isinstance(module, Conv1D) else b @ a
    return model


def close(ours, theirs):
    return (ours - theirs).norm() <= 1e-4 * theirs.norm()


@pytest.mark.parametrize("name", NATIVE)
def test_an_adapter_of_every_module_gives_what_merged_weights_give(name):
    model = build(FAMILIES[name])
    lora = lora_of(model)
    with torch.inference_mode():
        plain, adapted = (one(torch.tensor([IDS])).logits[0].float() for one in (model, merged(model, lora)))
    assert not close(plain, adapted)
    own = copy.deepcopy(model)
    runner = NativeRunner(own, PackedWeights.of(own, kernels(), "fp32"), EngineConfig(max_running=2))
    runner.add_adapter(lora)
    runs = [ScheduledTokens(0, 0, IDS, len(IDS)), ScheduledTokens(1, 0, IDS, len(IDS), lora)]
    logits = runner.forward(runs)
    assert close(logits[: len(IDS)], plain)
    assert close(logits[len(IDS) :], adapted)
    family = family_of(model.config)
    assert all(family.adapts(path) for path in lora.weights)
    assert not family.adapts("lm_head")
