"""Without these tests the compiled kernels could give wrong tokens or use wrong memory, here or with AVX2 only."""

import copy
import itertools
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import transformers
from plain_run import ScheduledTokens

from run_gpt.config import EngineConfig
from run_gpt.engine.runner import BROKEN
from run_gpt.engine.runners.lora import Lora
from run_gpt.engine.runners.native.binding import Context, Kernels, Matrix
from run_gpt.engine.runners.native.build import built, unsupported
from run_gpt.engine.runners.native.families import shape_of
from run_gpt.engine.runners.native.runner import NativeRunner, fits
from run_gpt.engine.runners.native.targets import BUILDS, NATIVE
from run_gpt.engine.runners.native.weights import PackedWeights
from run_gpt.engine.slots import Copy
from run_gpt.models.cache import cache_root

pytestmark = pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))
PRECISIONS = ("fp32", "fp16", "bf16", "bit8", "bit4")
SIZE = {"vocab_size": 200, "max_position_embeddings": 256, "num_hidden_layers": 2, "intermediate_size": 96}
SHAPES = {
    "a head of each kind": ("Llama", {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}),
    "a head for each key": ("Llama", {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}),
    "many heads for one key, more than attention takes at once": (
        "Llama",
        {"hidden_size": 160, "num_attention_heads": 20, "num_key_value_heads": 1, "head_dim": 16},
    ),
    "heads that fill no vector": (
        "Llama",
        {"hidden_size": 160, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 20},
    ),
    "wide heads": ("Mistral", {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 144}),
    "biases": ("Qwen2", {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}),
    "norms of queries and keys, tied": (
        "Qwen3",
        {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
}


@pytest.fixture(scope="module", params=[NATIVE, BUILDS[-1].options], ids=["native", BUILDS[-1].name])
def kernels(request):
    return Kernels(built(cache_root() / "kernels", request.param))


def build(shape):
    torch.manual_seed(0)
    family, sizes = SHAPES[shape]
    config = getattr(transformers, f"{family}Config")(**{**SIZE, **sizes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
            elif "bias" in name:
                parameter.normal_()
            else:
                parameter.uniform_(0.5, 1.5)
    return model


def native(model, kernels, precision="fp32", **config):
    return NativeRunner(model, PackedWeights.of(model, kernels, precision), EngineConfig(**config))


def matrix_of(kernels, precision, weight, bias=None):
    matrix = Matrix(kernels, precision, *weight.shape, bias=bias is not None)
    matrix.fill(weight)
    if bias is not None:
        matrix.fill_bias(bias)
    return matrix


def forward(runner, runs):
    """Return a copy of the logits, which the next call does not overwrite."""
    return runner.forward(runs).clone()


def reference(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float()


@pytest.fixture(params=SHAPES)
def shape(request):
    return request.param


def tokens(count, seed=1):
    return tuple(torch.randint(0, 200, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def close(ours, theirs, relative):
    return (ours - theirs).norm() <= relative * theirs.norm()


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 30, 33, 64, 130])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_product_is_that_of_the_weights_it_holds(kernels, precision, rows):
    torch.manual_seed(rows)
    weight, bias, x = torch.randn(72, 96), torch.randn(72), torch.randn(rows, 96)
    matrix = matrix_of(kernels, precision, weight, bias)
    held = matrix.rows(torch.arange(72))
    assert close(held, weight, {"fp32": 0, "fp16": 0.0003, "bf16": 0.003, "bit8": 0.01, "bit4": 0.1}[precision])
    # Quantised weights have inputs of 8 bits, too.
    tolerance = {"fp32": 1e-6, "fp16": 1e-6, "bf16": 0.004}.get(precision, 0.01)
    assert close(Context(kernels, 2).linear(matrix, x), torch.nn.functional.linear(x, held, bias), tolerance)


def grid(kind):
    """Return weights as in a GGUF file of this kind: [64, 64]."""
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 16, (64, 2, 32), generator=generator).float()
    scale = (torch.rand(64, 2, 1, generator=generator) * 0.02 + 0.001).half().float()
    if kind == "Q4_1":
        codes[..., 0], codes[..., 1] = 0, 15
        return (codes * scale + torch.randn(64, 2, 1, generator=generator).half().float()).view(64, 64)
    if kind == "Q4_0":  # the number of largest size is eight steps below zero, or above it
        codes[..., 0] = 0
        sign = torch.randint(0, 2, (64, 2, 1), generator=generator) * 2 - 1
        return ((codes - 8) * scale * sign).view(64, 64)
    wide = torch.randint(-127, 128, (64, 2, 32), generator=generator).float()
    wide[..., 3] = 127
    return (wide * scale).view(64, 64)


@pytest.mark.parametrize(("kind", "precision"), [("Q4_0", "bit4"), ("Q4_1", "bit4"), ("Q8_0", "bit8")])
def test_the_weights_of_a_gguf_file_are_held_without_a_loss(kernels, kind, precision):
    weight = grid(kind)
    matrix = matrix_of(kernels, precision, weight)
    assert matrix.error < 1e-6
    assert torch.allclose(matrix.rows(torch.arange(64)), weight, rtol=1e-5, atol=1e-6)


def test_what_is_not_a_number_stays_none(kernels):
    for precision in PRECISIONS:
        matrix = matrix_of(kernels, precision, torch.randn(32, 64))
        x = torch.randn(3, 64)
        x[1, 5] = torch.nan
        out = Context(kernels, 1).linear(matrix, x)
        assert out[1].isnan().all()
        assert not out[[0, 2]].isnan().any()


def test_a_pass_is_that_of_the_model(kernels, shape):
    model, ids = build(shape), tokens(150)
    assert fits(model)
    expected = reference(model, ids)
    runner = native(model, kernels, max_running=3)
    assert close(forward(runner, [ScheduledTokens(1, 0, ids, 150)]), expected, 1e-5)
    runner.take_over()  # and the model's own pass on the packed weights is what it was
    assert close(reference(model, ids), expected, 1e-5)


def test_a_row_is_the_same_to_the_last_bit_whatever_runs_beside_it(kernels, shape):
    """Check parts and wholes, alone and in a batch, after a copied prefix and a wrong draft, in each precision."""
    ids, other = tokens(150), tokens(150, seed=2)
    for precision in PRECISIONS:
        runner = native(build(shape), kernels, precision, max_running=4)
        whole = forward(runner, [ScheduledTokens(0, 0, ids, 150)])
        first = forward(runner, [ScheduledTokens(2, 0, other[:70], 0), ScheduledTokens(1, 0, ids[:67], 1)])
        forward(runner, [ScheduledTokens(1, 67, other[:9], 9)])
        second = forward(
            runner,
            [
                ScheduledTokens(2, 70, other[70:71], 1),
                ScheduledTokens(1, 67, ids[67:68], 1),
                ScheduledTokens(3, 0, other[:3], 1),
            ],
        )
        third = forward(runner, [ScheduledTokens(1, 68, ids[68:], 82)])
        assert torch.equal(torch.cat([first, second[1:2], third]), whole[66:])
        runner.copy([Copy(1, 3, 77)])
        assert torch.equal(forward(runner, [ScheduledTokens(3, 77, ids[77:], 73)]), whole[77:])
        runner.release([1])
        assert torch.equal(forward(runner, [ScheduledTokens(1, 0, ids[:20], 20)]), whole[:20])


def test_one_thread_alone_makes_the_same_to_the_last_bit(kernels, shape, monkeypatch):
    """Check that an answer does not depend on the number of threads, which measured times decide."""
    ids, other = tokens(100), tokens(20, seed=2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for precision in PRECISIONS:
        ways = []
        for pattern in ("all", "alone", "both"):
            runner = native(build(shape), kernels, precision, max_running=2)
            turns = itertools.cycle({"all": [False], "alone": [True], "both": [False, True]}[pattern])
            runner._pace = SimpleNamespace(step=lambda tokens, turns=turns: nullcontext(next(turns)))
            logits = [forward(runner, [ScheduledTokens(0, 0, ids[:60], 60)])]
            for i in range(60, 100):
                logits.append(
                    forward(
                        runner, [ScheduledTokens(0, i, ids[i : i + 1], 1), ScheduledTokens(1, i - 60, other[:1], 1)]
                    )
                )
            ways.append(torch.cat(logits))
        assert torch.equal(ways[0], ways[1])
        assert torch.equal(ways[0], ways[2])


def test_a_broken_row_leaves_nothing_for_the_next_one_in_its_slot(kernels):
    model, ids = build("biases"), tokens(40)
    with torch.no_grad():
        model.model.embed_tokens.weight[199] = torch.nan
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    for precision in ("fp32", "bf16"):
        runner = native(model, kernels, precision, max_running=1)
        clean = tuple(min(token, 198) for token in ids)
        expected = forward(runner, [ScheduledTokens(0, 0, clean, 40)])
        assert forward(runner, [ScheduledTokens(0, 0, (199,) * 60, 1)]).isnan().all()
        assert torch.equal(forward(runner, [ScheduledTokens(0, 0, clean, 40)]), expected)


@pytest.mark.parametrize("vocabulary", [200, 205, 7])
def test_the_likeliest_token_is_the_first_of_the_largest_logit(kernels, vocabulary):
    """Check that a greedy answer is the same as that of the model itself."""
    runner = native(build("a head of each kind"), kernels)
    logits = torch.randint(0, 40, (50, vocabulary), generator=torch.Generator().manual_seed(1)).float()
    logits[3] = -torch.inf
    assert runner.likeliest(logits) == logits.numpy().argmax(-1).tolist()
    logits[4, vocabulary - 1] = logits[5, 0] = torch.nan
    assert [i for i, token in enumerate(runner.likeliest(logits)) if token == BROKEN] == [4, 5]


def test_what_does_not_fit_is_refused(kernels):
    runner = native(build("biases"), kernels, max_running=1, max_context=64)
    with pytest.raises(IndexError, match="200"):
        forward(runner, [ScheduledTokens(0, 0, (5, 200), 1)])
    with pytest.raises(IndexError, match="65 tokens, of 64"):
        forward(runner, [ScheduledTokens(0, 64, (5,), 1)])
    for change in ({"intermediate_size": 100}, {"mlp_bias": True}, {"hidden_act": "quick_gelu"}):
        config = transformers.LlamaConfig(**{**SIZE, "hidden_size": 64, "num_attention_heads": 4, **change})
        assert not fits(transformers.AutoModelForCausalLM.from_config(config))


def test_a_window_is_kept_and_attention_to_later_tokens_is_refused():
    """A scaled context is longer than the number of positions that the window has in the configuration."""
    sizes = {**SIZE, "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64, "sliding_window": 64}
    shape = shape_of(transformers.MistralConfig(**sizes))
    assert shape is not None
    assert shape.windows == {"sliding_attention": 64}
    both = transformers.Gemma3TextConfig(**sizes, head_dim=16)
    assert shape_of(both) is not None
    both.use_bidirectional_attention = True
    assert shape_of(both) is None


def test_weights_and_cache_take_the_memory_they_say(kernels):
    runner = native(build("a head of each kind"), kernels, "bf16", max_running=3)
    assert runner.cache_bytes_per_token == 2 * 2 * 2 * 16 * 2  # keys and values, layers, heads, size, bytes


def test_the_models_own_weights_are_freed(kernels, shape):
    model = build(shape)
    native(model, kernels, max_running=1).take_over()
    assert not [m for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)]
    assert not [name for name, parameter in model.named_parameters() if parameter.dim() > 1 and parameter.numel()]
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())


def lora_of(model, rank, seed, projections=("q", "k", "v", "o", "gate", "up", "down")):
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, module in model.named_modules():
        if name.endswith(tuple(f".{projection}_proj" for projection in projections)):
            a = torch.randn(rank, module.in_features, generator=generator) * 0.1
            weights[name] = a, torch.randn(module.out_features, rank, generator=generator) * 0.1
    return Lora(f"lora-{seed}", weights)


def merged(model, lora):
    model = copy.deepcopy(model)
    for name, (a, b) in lora.weights.items():
        model.get_submodule(name).weight.data += b @ a
    return model


def test_rows_with_adapters_are_those_of_merged_weights_whatever_runs_beside_them(kernels, shape):
    model, ids, other = build(shape), tokens(60), tokens(60, seed=2)
    one, two = lora_of(model, 8, 1), lora_of(model, 3, 2, ("q", "v", "down"))
    expected = [reference(merged(model, lora), ids) for lora in (one, two)]
    for precision in PRECISIONS:
        runner = native(model, kernels, precision, max_running=4)
        plain = forward(runner, [ScheduledTokens(0, 0, ids, 60)])
        runner.add_adapter(one)
        runner.add_adapter(two)
        alone = [forward(runner, [ScheduledTokens(1, 0, ids, 60, lora)]) for lora in (one, two)]
        for ours, theirs in zip(alone, expected, strict=True):
            assert close(ours, theirs, {"fp32": 1e-5, "fp16": 2e-3, "bf16": 0.03, "bit8": 0.1, "bit4": 0.8}[precision])
        begin = [
            ScheduledTokens(0, 0, ids[:30], 30),
            ScheduledTokens(1, 0, ids[:30], 30, one),
            ScheduledTokens(2, 0, other[:9], 0, two),
        ]
        first = forward(runner, begin)
        end = [
            ScheduledTokens(1, 30, ids[30:], 30, one),
            ScheduledTokens(2, 0, ids, 60, two),
            ScheduledTokens(3, 0, other, 1),
            ScheduledTokens(0, 30, ids[30:], 30),
        ]
        second = forward(runner, end)
        assert torch.equal(torch.cat([first[:30], second[91:]]), plain)
        assert torch.equal(torch.cat([first[30:], second[:30]]), alone[0])
        assert torch.equal(second[30:90], alone[1])
        runner.remove_adapter(one)
        assert torch.equal(forward(runner, [ScheduledTokens(1, 0, ids, 60, two)]), alone[1])
        assert torch.equal(forward(runner, [ScheduledTokens(1, 0, ids, 60)]), plain)


def test_hidden_states_are_summed_for_each_run(kernels, shape):
    model, ids, other = build(shape), tokens(60), tokens(40, seed=2)
    lora = lora_of(model, 4, 3)
    with torch.inference_mode():
        states = [
            copied.base_model(torch.tensor([text])).last_hidden_state[0]
            for copied, text in ((model, ids), (merged(model, lora), other))
        ]
    runner = native(model, kernels, max_running=3)
    runner.add_adapter(lora)
    first = runner.embed([ScheduledTokens(0, 0, ids[:50], 0), ScheduledTokens(1, 0, other, 0, lora)])
    second = runner.embed([ScheduledTokens(0, 50, ids[50:], 0)])
    assert close(first[0] + second[0], states[0].sum(0), 1e-5)
    assert close(first[1], states[1].sum(0), 1e-5)


def test_an_adapter_of_another_layer_is_refused(kernels):
    model = build("biases")
    runner = native(model, kernels, max_running=1)
    with pytest.raises(ValueError, match=r"lm_head.*--runner generic"):
        runner.add_adapter(Lora("head", {"lm_head": (torch.ones(2, 64), torch.ones(200, 2))}))
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj has 64 inputs"):
        runner.add_adapter(Lora("wide", {"model.layers.0.mlp.up_proj": (torch.ones(2, 96), torch.ones(96, 2))}))
    with pytest.raises(ValueError, match=r"no layer model\.layers\.7"):
        runner.add_adapter(Lora("deep", {"model.layers.7.mlp.up_proj": (torch.ones(2, 64), torch.ones(96, 2))}))
