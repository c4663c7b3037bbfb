"""Without these tests a quantised checkpoint could be served with other weights than its own, or under a false name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, build, copied_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GptOssConfig, GptOssForCausalLM

import run_gpt
from run_gpt.errors import ModelLoadError
from run_gpt.models import quantised

PROMPT = "Every morning the cat asked for news"
TOKENS = 12
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32], "fmt": "e4m3"}
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Return the folder of a model that is not quantised."""
    build(FAMILIES["llama"]).save_pretrained(tmp_path / "model")
    copied_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, tensors: Mapping[str, torch.Tensor] | None = None, **settings: Any) -> Path:
    """Replace the weights, if any are given, and some settings of a checkpoint."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    if tensors is not None:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def weights(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def in_blocks(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight in FP8, and the scales of its blocks of 32 x 32."""
    rows, columns = weight.shape
    blocks = weight.view(rows // 32, 32, columns // 32, 32)
    scales = blocks.abs().amax((1, 3)) / 448
    return (blocks / scales[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn), scales


def write_fp8(folder: Path) -> tuple[Tensors, Tensors]:
    """Return the tensors of a checkpoint in FP8, and the plain ones that they stand for."""
    stored, meant = weights(folder), weights(folder)
    for name, weight in weights(folder).items():
        if "_proj" in name:
            stored[name], scales = in_blocks(weight)
            stored[f"{name}_scale_inv"] = scales
            meant[name] = stored[name].float() * scales.repeat_interleave(32, 0).repeat_interleave(32, 1)
    return stored, meant


def answer(model: Any) -> str:
    """Return the answer of transformers' own model in fp32."""
    tokenizer = copied_tokenizer()
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS, eos_token_id=2
        )
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False))


def served(folder: Path, precision: str = "fp32") -> tuple[str, str, str]:
    """Return our answer, the precision that we tell, and the notes."""
    with run_gpt.create_model(str(folder), precision=precision, device="cpu") as model:
        return model.generate(PROMPT, max_new_tokens=TOKENS).text, model.precision, "; ".join(model.notes)


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_fp8_is_dequantised_into_the_weights_that_it_stands_for(plain: Path) -> None:
    stored, meant = write_fp8(plain)
    change(plain, meant)
    expected = answer(loaded(plain))
    change(plain, stored, quantization_config=FP8)
    assert served(plain)[:2] == (expected, "fp32")
    _, precision, notes = served(plain, "bf16")
    assert precision == "bf16"
    assert "(FP8) are dequantised to bf16" in notes
    for name in ("bit8", "bit4"):
        with pytest.raises(ModelLoadError, match=rf"already quantised \(FP8\).*{name}.*or use bf16"):
            served(plain, name)


def test_mxfp4_is_dequantised_into_the_weights_that_it_stands_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = GptOssConfig(vocab_size=320, eos_token_id=2, pad_token_id=0, sliding_window=8, **sizes, **more)
    model = GptOssForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    copied_tokenizer().save_pretrained(tmp_path)
    stored: Tensors = {}
    for name, weight in weights(tmp_path).items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = weight
            continue
        experts, inputs, outputs = weight.shape
        codes = torch.randint(0, 16, (experts, outputs, inputs // 32, 32))
        scales = torch.randint(122, 128, (experts, outputs, inputs // 32))
        stored[f"{name}_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
        stored[f"{name}_scales"] = scales.to(torch.uint8)
        values = torch.tensor(FP4)[codes] * 2.0 ** (scales[..., None] - 127)
        model.get_parameter(name).data = values.view(experts, outputs, inputs).transpose(1, 2).contiguous()
    change(tmp_path, stored, quantization_config={"quant_method": "mxfp4"})
    assert served(tmp_path)[:2] == (answer(model), "fp32")
    with pytest.raises(ModelLoadError, match=r"already quantised \(MXFP4\).*bit4"):
        served(tmp_path, "bit4")


@pytest.mark.parametrize("bits", [4, 8])
def test_saved_bitsandbytes_stays_as_it_is_and_says_so(plain: Path, tmp_path: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    kind: dict[str, Any] = {"load_in_8bit": True} if bits == 8 else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    options = {"quantization_config": BitsAndBytesConfig(**kind), "device_map": {"": "cpu"}, "dtype": torch.float32}
    folder = tmp_path / "saved"
    AutoModelForCausalLM.from_pretrained(plain, **options).save_pretrained(folder)
    copied_tokenizer().save_pretrained(folder)
    expected, own, other = answer(loaded(folder)), f"bit{bits}", f"bit{12 - bits}"
    text, precision, notes = served(folder)
    assert (text, precision) == (expected, own)
    assert f"stay as they are (bitsandbytes in {bits} bits), and only the rest is fp32" in notes
    assert served(folder, "auto")[1] == own
    assert served(folder, own)[1] == own
    with pytest.raises(ModelLoadError, match=rf"already quantised \(bitsandbytes in {bits} bits\).*{other}"):
        served(folder, other)


KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GPTQ in 4 bits.*pip install"),
    "awq": ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "AWQ in 4 bits.*pip install"),
    "compressed-tensors": (
        {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
        "compressed-tensors.*pip install",
    ),
    "hqq": ({"quantization_config": {"quant_method": "hqq"}}, "HQQ.*pip install hqq"),
    "torchao": ({"quantization_config": {"quant_method": "torchao"}}, "torchao.*pip install torchao"),
    "quanto": ({"quantization_config": {"quant_method": "quanto"}}, "quanto.*pip install optimum-quanto"),
    "mlx": ({"quantization": {"group_size": 64, "bits": 4}}, "MLX checkpoint in 4 bits"),
    "mlx, twice": (
        {"quantization": {"group_size": 64, "bits": 8}, "quantization_config": {"group_size": 64, "bits": 8}},
        "MLX checkpoint in 8 bits",
    ),
    "exl2": ({"quantization_config": {"quant_method": "exl2"}}, "not served.*'exl2'"),
    "modelopt": ({"quantization_config": {"quant_method": "modelopt"}}, "not served.*'modelopt'"),
    "none": ({"quantization_config": {"bits": 4}}, "not served.*None"),
    "no object": ({"quantization_config": "fp8"}, "'fp8'"),
    "old compressed-tensors": ({"compression_config": {"quant_method": "compressed-tensors"}}, "compression_config"),
    "nested": ({"text_config": {"quantization_config": {"quant_method": "exl3"}}}, "not served.*'exl3'"),
}


@pytest.mark.parametrize("precision", ["auto", "bit4"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_cannot_be_read_here_is_named(
    plain: Path, monkeypatch: pytest.MonkeyPatch, kind: str, precision: str
) -> None:
    monkeypatch.setattr(quantised, "_is_installed", lambda module: False)
    settings, words = KINDS[kind]
    if precision == "bit4" and "pip" in words:  # another fault comes first for those that hold other bits
        words = f"{words}|already quantised"
    with pytest.raises(ModelLoadError, match=words) as refused:
        served(change(plain, **settings), precision)
    assert "model that it was made of" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json", "quant_config.json"])
def test_settings_in_a_file_of_their_own_are_named(plain: Path, name: str) -> None:
    (plain / name).write_text("{}")
    with pytest.raises(ModelLoadError, match=name):
        served(plain)


def test_scales_and_biases_that_the_configuration_does_not_mention_are_named(plain: Path) -> None:
    stored, _ = write_fp8(plain)
    with pytest.raises(ModelLoadError, match=r"down_proj\.weight_scale_inv, which LlamaForCausalLM does not apply"):
        served(change(plain, stored))
    held = loaded_plain = weights(change(plain, build(FAMILIES["llama"]).state_dict()))
    expected = answer(loaded(plain))
    bias = "model.layers.0.self_attn.q_proj.bias"
    with pytest.raises(ModelLoadError, match=r"q_proj\.bias, which LlamaForCausalLM does not apply"):
        served(change(plain, {**held, bias: torch.ones(64)}))
    assert served(change(plain, {**loaded_plain, bias: torch.zeros(64)}))[0] == expected


def test_integers_without_a_kind_are_named(plain: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(ModelLoadError, match=rf"{name} has the type I8"):
        served(change(plain, {**weights(plain), name: weights(plain)[name].to(torch.int8)}))


@pytest.mark.parametrize("kinds", ["float8", "mixed", "fp32 that config.json calls bf16", "fp16 and bf16"])
@pytest.mark.parametrize("runner", ["native", "fast", "generic"])
def test_each_weight_keeps_its_own_type_until_it_is_converted(plain: Path, kinds: str, runner: str) -> None:
    held = weights(plain)
    if kinds == "float8":
        held = {k: v.to(torch.float8_e5m2) if "_proj" in k else v.bfloat16() for k, v in held.items()}
    elif kinds == "mixed":
        held = {k: v.bfloat16() if "q_proj" in k else v for k, v in held.items()}
    elif kinds == "fp16 and bf16":
        held = {k: v.bfloat16() if "q_proj" in k else v.half() for k, v in held.items()}
    change(plain, held, dtype="bfloat16", torch_dtype="bfloat16")
    with run_gpt.create_model(str(plain), precision="fp32", device="cpu", runner=runner) as model:
        assert model.generate(PROMPT, max_new_tokens=TOKENS).text == answer(loaded(plain))
