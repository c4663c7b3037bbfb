"""GGUF files: users must get the model that the files hold, or a line that names what is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import Metadata, llama, llama_tensors, stored, unpaired, write_llama, write_parts

from run_gpt.config import ModelConfig
from run_gpt.errors import ModelLoadError
from run_gpt.models import load
from run_gpt.models.gguf.configuration import read_configuration
from run_gpt.models.gguf.keys import uses_of
from run_gpt.models.gguf.parts import GgufModel, read_parts
from run_gpt.models.sampling import sampling_defaults

IDS = torch.arange(5, 45)[None]


def loaded(path: Path, cache: Path) -> Any:
    return load(ModelConfig(model_path=str(path), precision="fp32", device="cpu", cache_dir=cache))


def check_same(path: Path, model: Any, cache: Path) -> None:
    """Fail unless the file's model has the logits of `model`."""
    with torch.inference_mode():
        assert torch.allclose(loaded(path, cache).model(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def tiny() -> Any:
    return llama()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_the_parts_of_a_split_file_are_one_model(tmp_path: Path, cache: Path, tiny: Any) -> None:
    folder = tmp_path / "split"
    folder.mkdir()
    parts = write_parts(folder, tiny, 3)
    for path in (parts[0], parts[2], folder):
        check_same(path, tiny, cache)
    assert loaded(parts[1], cache).name == "tiny"
    (folder / "config.json").write_text("{}")  # as repositories of GGUF files have it
    check_same(folder, tiny, cache)
    parts[1].unlink()
    for path in (parts[0], parts[2], folder):
        with pytest.raises(ModelLoadError, match=r"tiny-00002-of-00003\.gguf is missing"):
            loaded(path, cache)


def test_a_folder_of_several_models_asks_for_one(tmp_path: Path, cache: Path, tiny: Any) -> None:
    write_llama(tmp_path / "a.gguf", tiny)
    check_same(tmp_path, tiny, cache)
    write_llama(tmp_path / "b.gguf", tiny)
    with pytest.raises(ModelLoadError, match=r"give the path of one of its GGUF files: .*a\.gguf"):
        loaded(tmp_path, cache)


def test_a_part_that_does_not_fit_is_named(tmp_path: Path, cache: Path, tiny: Any) -> None:
    parts = write_parts(tmp_path, tiny, 2)
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(parts[1].read_bytes())
    with pytest.raises(ModelLoadError, match=r"alone\.gguf is part 2 of 2.*alone-00002-of-00002\.gguf"):
        loaded(alone, cache)
    parts[1].write_bytes(parts[0].read_bytes())
    with pytest.raises(ModelLoadError, match=r"tiny-00002-of-00002\.gguf does not fit"):
        loaded(parts[0], cache)


Change = Callable[[Metadata, dict[str, torch.Tensor]], object]
FAULTS: dict[str, tuple[Change, str]] = {
    "missing": (lambda m, t: t.pop("blk.1.ffn_up.weight"), r"lacks the tensor blk\.1\.ffn_up\.weight"),
    "no embedding": (lambda m, t: t.pop("token_embd.weight"), r"lacks the tensor token_embd\.weight"),
    "no norm": (lambda m, t: t.pop("output_norm.weight"), r"lacks the tensor output_norm\.weight"),
    "unknown": (lambda m, t: t.update({"blk.0.extra.weight": torch.ones(4)}), r"has the tensor blk\.0\.extra\.weight"),
    "a layer more": (lambda m, t: m.update({"llama.block_count": 1}), r"has the tensor blk\.1\."),
    "a layer less": (lambda m, t: m.update({"llama.block_count": 3}), r"lacks the tensor blk\.2\."),
    "shape": (lambda m, t: m.update({"llama.feed_forward_length": 128}), r"blk\.0\.ffn_\w+\.weight has the shape"),
    "rows": (lambda m, t: m.update({"llama.vocab_size": 299}), r"llama\.vocab_size 299"),
    "bias of some": (lambda m, t: t.update({"blk.0.attn_q.bias": torch.ones(64)}), r"lacks the tensor blk\.0\.attn_k"),
    "scale": (lambda m, t: m.update({"llama.attention.scale": 0.5}), r"llama\.attention\.scale = 0\.5"),
    "logits": (lambda m, t: m.update({"llama.logit_scale": 0.25}), r"llama\.logit_scale = 0\.25"),
    "softcap": (lambda m, t: m.update({"llama.final_logit_softcapping": 30.0}), r"final_logit_softcapping = 30"),
    "no key": (lambda m, t: m.pop("llama.attention.layer_norm_rms_epsilon"), r"does not say llama\.attention\.layer"),
    "new key": (lambda m, t: m.update({"llama.new_trick": 1}), r"llama\.new_trick = 1"),
    "new room": (lambda m, t: m.update({"tokenizer.ggml.trick": True}), r"tokenizer\.ggml\.trick = True"),
    "projector": (lambda m, t: m.update({"general.type": "mmproj"}), r"general\.type = mmproj"),
    "family": (lambda m, t: m.update({"general.architecture": "rwkv7"}), r"of the architecture 'rwkv7'"),
    "by layer": (lambda m, t: m.update({"llama.feed_forward_length": [96, 64]}), r"another llama\.feed_forward_length"),
    "values": (lambda m, t: m.update({"llama.attention.value_length": 8}), r"attention\.value_length = 8"),
    "rotated": (
        lambda m, t: m.update({"llama.rope.dimension_count": 8, "llama.attention.key_length": 16}),
        r"rope\.dimension_count = 8",
    ),
    "scaling": (lambda m, t: m.update({"llama.rope.scaling.type": "su"}), r"rope\.scaling\.type 'su'"),
    "yarn": (lambda m, t: m.update({"llama.rope.scaling.yarn_log_multiplier": 0.1}), r"yarn_log_multiplier = 0\.1"),
    "magnitude": (lambda m, t: m.update({"llama.rope.scaling.attn_factor": 1.2}), r"rope\.scaling\.attn_factor 1\.2"),
    "two scalings": (
        lambda m, t: (
            m.update({"llama.rope.scaling.factor": 4.0}),
            t.update({"rope_freqs.weight": torch.arange(1.0, 9.0)}),
        ),
        r"rope_freqs\.weight beside the scaling 'linear'",
    ),
    "long": (lambda m, t: m.update({"llama.rope.scaling.type": "longrope"}), r"LongRoPE needs rope_factors_long"),
    "experts": (lambda m, t: m.update({"llama.expert_count": 4, "llama.expert_used_count": 2}), r"lacks the tensor"),
    "pooling": (lambda m, t: m.update({"llama.pooling_type": 3}), r"llama\.pooling_type = 3"),
    "factors": (lambda m, t: t.update({"rope_freqs.weight": torch.ones(3)}), r"rope_freqs\.weight has 3 factors"),
    "splitting": (lambda m, t: m.update({"tokenizer.ggml.pre": "dreamt"}), r"'dreamt' \(tokenizer\.ggml\.pre\)"),
    "tokenizer": (lambda m, t: m.update({"tokenizer.ggml.model": "t5"}), r"'t5' \(tokenizer\.ggml\.model\)"),
    "end": (lambda m, t: m.update({"tokenizer.ggml.eos_token_id": 999}), r"eos_token_id is 999"),
    "separator": (lambda m, t: m.update({"tokenizer.ggml.add_sep_token": True}), r"tokenizer\.ggml\.add_sep_token"),
    "spaces": (lambda m, t: m.update({"tokenizer.ggml.remove_extra_whitespaces": True}), r"remove_extra_whitespaces"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_honoured_is_refused_by_name(tmp_path: Path, cache: Path, tiny: Any, fault: str) -> None:
    change, words = FAULTS[fault]
    path = write_llama(tmp_path / "tiny.gguf", tiny, change=change)
    with pytest.raises(ModelLoadError, match=words) as caught:
        loaded(path, cache)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert not list((cache / "converted").iterdir())


def test_a_file_that_is_cut_short_is_named(tmp_path: Path, cache: Path, tiny: Any) -> None:
    path = write_llama(tmp_path / "tiny.gguf", tiny)
    data = path.read_bytes()
    for length in (30, 2000, len(data) // 2, len(data) - 4):
        path.write_bytes(data[:length])
        with pytest.raises(ModelLoadError, match=r"tiny\.gguf.*cut short"):
            loaded(path, cache)


def test_keys_without_effect_change_nothing(tmp_path: Path, cache: Path, tiny: Any) -> None:
    plain = {
        "general.type": "model",
        "general.license.link": "x",
        "general.base_model.0.repo_url": "x",
        "general.file_type": 0,
        "general.sampling.temp": 0.7,
        "quantize.imatrix.file": "x",
        "tokenizer.ggml.fim_pre_token_id": 4,
        "llama.expert_count": 0,
        "llama.attention.causal": True,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.rope.scaling.type": "none",
    }
    check_same(write_llama(tmp_path / "tiny.gguf", tiny, change=lambda m, t: m.update(plain)), tiny, cache)


def test_sampling_defaults_of_the_file_are_those_of_requests(tmp_path: Path, cache: Path, tiny: Any) -> None:
    values = {"temp": 0.7, "top_k": 20, "top_p": 1.0, "penalty_repeat": 1.05, "xtc_probability": 0.5, "mirostat": 0}
    metadata = {f"general.sampling.{name}": value for name, value in values.items()}
    path = write_llama(tmp_path / "tiny.gguf", tiny, change=lambda m, t: m.update(metadata))
    own = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05}
    assert sampling_defaults(path, None)[0] == own  # before it is converted
    model = loaded(path, cache)
    assert model.sampling == own
    assert "the model has xtc_probability = 0.5, which RunGPT does not apply" in model.notes
    uses = {key: is_read for key, _, is_read, _ in uses_of(read_parts(path))}
    assert uses["general.sampling.temp"]
    assert not uses["general.sampling.xtc_probability"]
    none = load(ModelConfig(model_path=str(path), device="cpu", cache_dir=cache, generation_config="none"))
    assert none.sampling == {}
    assert not any("does not apply" in note for note in none.notes)


def rope(**values: Any) -> dict[str, Any]:
    return {"rope_theta": 5000.0, **values}


def factors(model: Any) -> torch.Tensor:
    """Return what the converter writes as `rope_freqs.weight`: each frequency without scaling over that with it."""
    base, size = model.config.rope_parameters["rope_theta"], model.config.head_dim
    return 1 / base ** (torch.arange(0, size, 2) / size) / model.model.rotary_emb.inv_freq


LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FREQUENCIES: dict[str, dict[str, Any]] = {
    "tiny": rope(**LLAMA3, factor=8.0, original_max_position_embeddings=64),
    "3.1": {**LLAMA3, "rope_theta": 500000.0, "factor": 8.0, "original_max_position_embeddings": 8192},
    "3.2": {**LLAMA3, "rope_theta": 500000.0, "factor": 32.0, "original_max_position_embeddings": 8192},
    "other": rope(
        rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=5.0, original_max_position_embeddings=40
    ),
    "scaled": rope(
        rope_type="llama3", factor=4.0, low_freq_factor=2.0, high_freq_factor=6.0, original_max_position_embeddings=80
    ),
}


@pytest.mark.parametrize("name", FREQUENCIES)
def test_factors_of_frequencies_are_llama_3s_scaling(tmp_path: Path, cache: Path, name: str) -> None:
    model = llama(head_dim=64, rope_parameters=FREQUENCIES[name])
    path = write_llama(tmp_path / "a.gguf", model, change=lambda m, t: t.update({"rope_freqs.weight": factors(model)}))
    check_same(path, model, cache)
    found = read_configuration(read_parts(path)).rope_parameters
    assert found["rope_type"] == "llama3"
    if name != "scaled":  # there another pair of factors and context means the same
        assert found == FREQUENCIES[name]


def test_any_factors_of_frequencies_are_applied(tmp_path: Path, cache: Path) -> None:
    own = torch.linspace(1.5, 7.0, 8)
    model = llama()
    path = write_llama(tmp_path / "a.gguf", model, change=lambda m, t: t.update({"rope_freqs.weight": own}))
    model.model.rotary_emb.inv_freq /= own
    check_same(path, model, cache)


SCALED: dict[str, tuple[dict[str, Any], Metadata]] = {
    "linear": (rope(rope_type="linear", factor=4.0), {"type": "linear", "factor": 4.0}),
    "linear by default": (rope(rope_type="linear", factor=2.0), {"factor": 2.0}),
    "yarn": (
        rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
        {"type": "yarn", "factor": 4.0, "original_context_length": 32},
    ),
    "yarn, all": (
        rope(
            rope_type="yarn",
            factor=4.0,
            original_max_position_embeddings=32,
            beta_fast=16.0,
            beta_slow=2.0,
            attention_factor=1.5,
        ),
        {
            "type": "yarn",
            "factor": 4.0,
            "original_context_length": 32,
            "yarn_beta_fast": 16.0,
            "yarn_beta_slow": 2.0,
            "yarn_attn_factor": 1.5,
            "yarn_ext_factor": 1.0,
        },
    ),
}


@pytest.mark.parametrize("name", SCALED)
def test_scaled_contexts_are_applied(tmp_path: Path, cache: Path, name: str) -> None:
    parameters, said = SCALED[name]
    model = llama(rope_parameters=parameters)
    keys = {f"llama.rope.scaling.{key}": value for key, value in said.items()}
    check_same(write_llama(tmp_path / "a.gguf", model, change=lambda m, t: m.update(keys)), model, cache)


def test_a_sliding_window_is_applied(tmp_path: Path, cache: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    model = llama()
    theirs = MistralForCausalLM(MistralConfig(**{**model.config.to_dict(), "sliding_window": 8})).eval()
    theirs.load_state_dict(model.state_dict())
    path = write_llama(tmp_path / "a.gguf", model, change=lambda m, t: m.update({"llama.attention.sliding_window": 8}))
    check_same(path, theirs, cache)


def test_biases_are_read(tmp_path: Path, cache: Path) -> None:
    model = llama(attention_bias=True, mlp_bias=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    check_same(write_llama(tmp_path / "a.gguf", model), model, cache)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q6_K"])
def test_a_quantised_file_gives_the_tokens_of_its_own_weights(tmp_path: Path, cache: Path, kind: str) -> None:
    """A shape of Llama 3.2 1B, with few layers and tokens."""
    parameters = {**FREQUENCIES["3.2"], "original_max_position_embeddings": 8192}
    shape = {"hidden_size": 2048, "intermediate_size": 1024, "num_attention_heads": 32, "num_key_value_heads": 8}
    model = llama(1, **shape, head_dim=64, num_hidden_layers=1, rope_parameters=parameters, tie_word_embeddings=False)
    own = stored(llama_tensors(model), kind)
    path = write_llama(
        tmp_path / "a.gguf", model, change=lambda m, t: t.update({"rope_freqs.weight": factors(model)}), kind=kind
    )
    with torch.no_grad():
        for name, parameter in zip(own, model.parameters(), strict=True):
            heads = {"attn_q": 32, "attn_k": 8}.get(name.split(".")[-2])
            values = own[name] if heads is None else unpaired(own[name], heads)
            parameter.copy_(values)
    ours = loaded(path, cache).model
    options = {"max_new_tokens": 24, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    expected = model.generate(IDS, **options).tolist()
    assert len(set(expected[0][IDS.shape[1] :])) > 5  # answers that vary, or nothing is compared
    assert ours.generate(IDS, **options).tolist() == expected


def test_each_key_has_its_use_or_the_reason_why_it_has_none() -> None:
    """`rungpt models check` shows them: a table of another reader would call honoured what is not."""
    metadata = {
        "general.architecture": "llama",
        "general.name": "x",
        "general.type": "model",
        "llama.block_count": 2,
        "llama.rope.freq_base": 1e4,
        "llama.pooling_type": 0,
        "tokenizer.ggml.merges": ["a b"],
    }
    found = {key: (is_read, use) for key, _, is_read, use in uses_of(GgufModel(Path("x.gguf"), metadata, {}))}
    assert found == {
        "general.architecture": (True, "the family"),
        "general.name": (False, "description"),
        "general.type": (False, "the value at which it has none"),
        "llama.block_count": (True, ""),
        "llama.rope.freq_base": (True, ""),
        "llama.pooling_type": (False, "the value at which it has none"),
        "tokenizer.ggml.merges": (True, "the vocabulary and its merges"),
    }
