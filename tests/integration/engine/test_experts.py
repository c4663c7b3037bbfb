"""Without these tests a model with experts could choose other ones than transformers, or other ones in a batch."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import transformers
from plain_run import ScheduledTokens

from run_gpt.config import EngineConfig
from run_gpt.engine.runners.native.binding import Kernels
from run_gpt.engine.runners.native.build import built, unsupported
from run_gpt.engine.runners.native.families import shape_of
from run_gpt.engine.runners.native.runner import NativeRunner, fits, fits_config
from run_gpt.engine.runners.native.targets import BUILDS, NATIVE
from run_gpt.engine.runners.native.weights import PackedWeights
from run_gpt.models.cache import cache_root

pytestmark = pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))
SIZE = {
    **{"vocab_size": 200, "max_position_embeddings": 256, "num_hidden_layers": 2, "intermediate_size": 96},
    **{"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1},
}
EIGHT = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
DEEPSEEK = {"moe_intermediate_size": 32, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "head_dim": 16}
SHAPES = {
    "mixtral": ("Mixtral", {"num_local_experts": 4, "sliding_window": None}),
    "mixtral, a window": ("Mixtral", {"num_local_experts": 20, "sliding_window": 40}),
    "qwen 2, a dense layer": ("Qwen2Moe", {**EIGHT, "shared_expert_intermediate_size": 64, "mlp_only_layers": [0]}),
    "qwen 3": ("Qwen3Moe", {**EIGHT, "head_dim": 16, "norm_topk_prob": True}),
    "olmoe": ("Olmoe", {"num_experts": 8, "num_experts_per_tok": 2}),
    "flex olmo": ("FlexOlmo", {"num_experts": 8, "num_experts_per_tok": 2}),
    "granite": ("GraniteMoe", {"num_local_experts": 8, "residual_multiplier": 0.5, "attention_multiplier": 0.3}),
    "granite, shared": ("GraniteMoeShared", {"num_local_experts": 8, "shared_intermediate_size": 160}),
    "glm 4": ("Glm4Moe", {**DEEPSEEK, "n_routed_experts": 16, "routed_scaling_factor": 2.0, "n_shared_experts": 2}),
    "dots": ("Dots1", {**DEEPSEEK, "n_routed_experts": 16, "n_shared_experts": 1, "first_k_dense_replace": 1}),
    "exaone": ("ExaoneMoe", {**DEEPSEEK, "num_experts": 16, "sliding_window": 30, "sliding_window_pattern": 2}),
    "solar": ("SolarOpen", {**DEEPSEEK, "n_routed_experts": 16}),
    "minimax": ("MiniMaxM2", {"num_local_experts": 8, "head_dim": 16}),
    "mellum": ("Mellum", {**EIGHT, "head_dim": 16}),
    "gpt-oss": ("GptOss", {"num_local_experts": 8, "num_experts_per_tok": 3, "head_dim": 16, "sliding_window": 30}),
}


PRECISIONS = ("fp32", "fp16", "bf16", "bit8", "bit4")
"""Precisions that a matrix of numbers can be packed in."""
SOME = ("mixtral", "granite, shared", "gpt-oss")
"""Shapes that differ in more than the choice of experts."""


@pytest.fixture(scope="module")
def kernels():
    return Kernels(built(cache_root() / "kernels"))


def build(shape):
    torch.manual_seed(0)
    family, sizes = SHAPES[shape]
    config = getattr(transformers, f"{family}Config")(**{**SIZE, **sizes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if "correction" in name:
                parameter.normal_(std=0.3)
            elif "sinks" in name or "bias" in name:
                parameter.normal_()
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif parameter.dim() > 1:
                parameter.normal_(std=0.12)
    return model


def native(model, kernels, precision="fp32", **config):
    return NativeRunner(model, PackedWeights.of(model, kernels, precision), EngineConfig(**config))


def forward(runner, runs):
    """Return a copy of the logits, which the next call does not overwrite."""
    return runner.forward(runs).clone()


def reference(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float()


def tokens(count, seed=1):
    return tuple(torch.randint(0, 200, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def close(ours, theirs, relative):
    return (ours - theirs).norm() <= relative * theirs.norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pass_is_that_of_the_model(kernels, shape):
    """Check many tokens, so that experts have many of them or none, and single ones."""
    model, ids = build(shape), tokens(150)
    assert fits(model)
    expected = reference(model, ids)
    runner = native(model, kernels, max_running=2)
    assert close(forward(runner, [ScheduledTokens(1, 0, ids, 150)]), expected, 1e-5)
    few = [forward(runner, [ScheduledTokens(0, i, ids[i : i + 1], 1)]) for i in range(3)]
    assert close(torch.cat(few), expected[:3], 1e-5)


@pytest.mark.parametrize("target", [NATIVE, BUILDS[-1].options], ids=["native", BUILDS[-1].name])
@pytest.mark.parametrize("shape", SOME)
def test_a_row_is_the_same_to_the_last_bit_whatever_runs_beside_it(shape, target, monkeypatch):
    """Check parts and wholes, alone and in a batch, on one thread and on three, in each precision."""
    kernels, model = Kernels(built(cache_root() / "kernels", target)), build(shape)
    ids, other = tokens(100), tokens(100, seed=2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for precision in PRECISIONS:
        runner = native(model, kernels, precision, max_running=4)
        whole = forward(runner, [ScheduledTokens(0, 0, ids, 100)])
        runner._pace = SimpleNamespace(step=lambda tokens: nullcontext(tokens < 50))
        first = forward(runner, [ScheduledTokens(2, 0, other[:20], 0), ScheduledTokens(1, 0, ids[:37], 1)])
        second = forward(
            runner,
            [
                ScheduledTokens(2, 20, other[20:21], 1),
                ScheduledTokens(1, 37, ids[37:38], 1),
                ScheduledTokens(3, 0, other[:3], 1),
            ],
        )
        third = forward(runner, [ScheduledTokens(2, 21, other[21:], 0), ScheduledTokens(1, 38, ids[38:], 62)])
        assert torch.equal(torch.cat([first, second[1:2], third]), whole[36:])
        if precision == "fp32":
            assert close(whole, reference(model, ids), 1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SOME)
def test_the_models_own_pass_on_the_packed_weights_is_what_it_was(kernels, shape, precision):
    """Check what a beam search runs, and that no weight is held twice."""
    model, ids = build(shape), tokens(60)
    expected = reference(model, ids)
    runner = native(model, kernels, precision, max_running=1)
    ours = forward(runner, [ScheduledTokens(0, 0, ids, 60)])
    runner.take_over()
    limit = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 0.03, "bit8": 0.06, "bit4": 0.7}[precision]
    for logits in (ours, reference(model, ids)):
        # Of most rows: coarse inputs choose other experts for a few.
        moved = (logits - expected).norm(dim=1) / expected.norm(dim=1)
        assert moved.median() <= limit
    kept = [name for name, parameter in model.named_parameters() if parameter.dim() > 1 and parameter.numel()]
    assert all(name.endswith(("gate.weight", "router.weight")) for name in kept)


def test_rows_that_are_no_numbers_leave_the_others_as_they_are(kernels):
    """Check that a broken row neither chooses an expert that there is not nor breaks the rows beside it."""
    model, ids = build("dots"), tokens(30)
    with torch.no_grad():
        model.model.embed_tokens.weight[199] = torch.nan
    clean = tuple(min(token, 198) for token in ids)
    for precision in PRECISIONS:
        runner = native(model, kernels, precision, max_running=2)
        alone = forward(runner, [ScheduledTokens(0, 0, clean, 30)])
        both = forward(runner, [ScheduledTokens(1, 0, (199,) * 40, 1), ScheduledTokens(0, 0, clean, 30)])
        assert both[0].isnan().all()
        assert torch.equal(both[1:], alone)


def test_a_mixture_that_the_kernels_cannot_compute_does_not_fit():
    for change in ({"moe_intermediate_size": 40}, {"shared_expert_intermediate_size": 72}):
        config = transformers.Qwen2MoeConfig(**{**SIZE, **EIGHT, "shared_expert_intermediate_size": 64, **change})
        assert not fits_config(config)
    assert shape_of(transformers.OlmoeConfig(**SIZE, clip_qkv=8.0)) is None
    model = build("mixtral")
    model.model.layers[1].mlp.experts.scales = torch.nn.Parameter(torch.ones(3))
    assert not fits(model)
