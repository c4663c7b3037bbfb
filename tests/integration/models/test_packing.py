"""Without these tests, a model could take far more memory to load than to run, or be loaded with wrong weights."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from gguf_files import random_blocks
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from run_gpt import create_model
from run_gpt.engine.runners.native.build import unsupported
from run_gpt.engine.runners.native.runner import NativeRunner
from run_gpt.engine.runners.native.weights import PackedWeights
from run_gpt.errors import ModelLoadError
from run_gpt.models.cache import cache_root
from run_gpt.models.convert import converted_record

pytestmark = pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))
IDS = torch.randint(3, 300, (1, 24), generator=torch.Generator().manual_seed(1))
CONFIG = LlamaConfig(
    vocab_size=320,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
)


def save_tokenizer(folder: Path, words: int = 320) -> None:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w2").save_pretrained(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Llama in bf16, in several files."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    model.bfloat16().save_pretrained(folder, max_shard_size="500KB")
    save_tokenizer(folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return an empty model cache, but for the compiled kernels."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "kernels").symlink_to(cache_root() / "kernels")
    return folder


def logits(model: Any) -> torch.Tensor:
    """Return the logits of the packed model's own forward pass."""
    with torch.inference_mode():
        return model._engine._runner._model(IDS).logits.float()


def near(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "bit8", "bit4"])
def test_weights_that_are_packed_as_they_are_read_are_those_of_the_model(checkpoint: Path, precision: str) -> None:
    whole = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    later = PackedWeights.of(whole, kernels(), precision)
    later.replace(whole)
    with create_model(str(checkpoint), precision=precision) as model, torch.inference_mode():
        assert isinstance(model._engine._runner, NativeRunner)  # type: ignore[attr-defined]
        assert model.precision == precision
        assert torch.equal(logits(model), whole(IDS).logits)


def kernels() -> Any:
    from run_gpt.engine.runners.native.binding import Kernels
    from run_gpt.engine.runners.native.build import built

    return Kernels(built(cache_root() / "kernels"))


MEASURE = """
import sys
from pathlib import Path
from run_gpt import create_model

def peak(folder, precision):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = value("VmRSS")
    with create_model(folder, precision=precision, max_running=1, max_context=64) as model:
        model.generate("w5 w6", max_new_tokens=2)
    return value("VmHWM") - before

def value(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

peak(sys.argv[1], sys.argv[3])  # modules, threads, tokenizers
print(peak(sys.argv[2], sys.argv[3]))
"""


@pytest.mark.alone
def test_the_memory_while_a_model_loads_is_little_more_than_that_of_its_weights(
    checkpoint: Path, tmp_path: Path, cache: Path
) -> None:
    """Besides the weights there are threads, a tokenizer and rows that are being packed, 40 to 60 MB in all.

    A second copy of the weights would take 112 MB.
    """
    config = LlamaConfig(**{**CONFIG.to_dict(), "vocab_size": 2000, "hidden_size": 1024, "intermediate_size": 4096})
    config.num_hidden_layers = 4
    torch.manual_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "large", max_shard_size="30MB")
    save_tokenizer(tmp_path / "large")
    size = sum(file.stat().st_size for file in (tmp_path / "large").glob("*.safetensors")) / 1024
    for precision, bits in (("bf16", 16), ("bit8", 8.5), ("bit4", 5.2)):
        command = [sys.executable, "-c", MEASURE, str(checkpoint), str(tmp_path / "large"), precision]
        environment = {**os.environ, "RUNGPT_CACHE": str(cache)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < bits / 16 * size + 80_000


def damage(folder: Path, name: str, change: Any) -> None:
    """Change the tensors of the file that holds the tensor `name`."""
    file = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("precision", ["fp32", "bit4"])
@pytest.mark.parametrize("runner", ["native", "generic"])
def test_weights_that_are_missing_or_of_another_shape_are_named(
    checkpoint: Path, tmp_path: Path, precision: str, runner: Any
) -> None:
    name = "lm_head.weight"
    for change, words in (
        (lambda tensors: tensors.pop(name), f"lacks {name}"),
        (lambda tensors: tensors.update({name: torch.zeros(7, 256)}), name),
    ):
        folder = shutil.copytree(checkpoint, tmp_path / f"bad{len(words)}")
        damage(folder, name, change)
        with pytest.raises(ModelLoadError, match=words):
            create_model(str(folder), precision=precision, runner=runner)


# GGUF ------------------------------------------------------------------------------------------------------------


def blocks(kind: str, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Return the bytes of a weight of this kind; random bytes with small scales if the library cannot write it."""
    generator = np.random.default_rng(seed)
    number = GGMLQuantizationType[kind]
    if kind.endswith("_K") or kind.startswith("IQ4"):
        return random_blocks(kind, shape, seed)
    return quantize((generator.standard_normal(shape) * 0.06).astype(np.float32), number)


def write_gguf(path: Path, kind: str) -> LlamaForCausalLM:
    """Write a Llama with matrices of this kind and an embedding in Q8_0; return it with the file's own weights.

    A kind like `Q4_K+Q6_K` stands for a file with more bits in some of the matrices.
    """
    kind, _, better = kind.partition("+")
    model = LlamaForCausalLM(CONFIG).eval()
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_rope_dimension_count(64)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(CONFIG.vocab_size)
    letters = sorted(bytes_to_unicode().values())
    tokens = ["<unk>", "<s>", "</s>", "ab", *letters, *(f"<extra{i}>" for i in range(CONFIG.vocab_size - 260))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, CONFIG.num_hidden_layers)
    for seed, (name, parameter) in enumerate(model.named_parameters()):
        target = f"{names.get_name(name.removesuffix('.weight'))}.weight"
        if parameter.dim() == 1:
            writer.add_tensor(target, np.ones(len(parameter), dtype=np.float32))
            parameter.data.fill_(1)
            continue
        used = better if better and any(part in name for part in ("v_proj", "up_proj", "down_proj")) else kind
        used = "Q8_0" if "embed" in name else used
        data = blocks(used, tuple(parameter.shape), seed)
        number = GGMLQuantizationType[used]
        writer.add_tensor(target, data, raw_dtype=number)
        values = torch.from_numpy(dequantize(data, number).reshape(parameter.shape).copy())
        if "q_proj" in name or "k_proj" in name:  # the file has another order of rotary pairs
            heads = CONFIG.num_attention_heads if "q_proj" in name else CONFIG.num_key_value_heads
            values = values.view(heads, -1, 2, values.shape[1]).transpose(1, 2).reshape(values.shape)
        parameter.data.copy_(values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def bytes_to_unicode() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return dict(bytes_to_unicode())


# By kind: the precision that is shown, and the largest error of the logits: quantised layers have 8-bit inputs.
KINDS = {
    "F32": ("fp32", 1e-5),
    "F16": ("fp16", 1e-5),
    "BF16": ("bf16", 0.01),
    "Q8_0": ("bit8", 0.02),
    "Q5_0": ("bit8", 0.02),
    "Q5_1": ("bit8", 0.02),
    "Q5_K": ("bit8", 0.02),
    "Q6_K": ("bit8", 0.02),
    "Q4_0": ("bit4", 0.02),
    "Q4_1": ("bit4", 0.02),
    "Q4_K": ("bit4", 0.02),
    "Q3_K": ("bit4", 0.02),
    "Q2_K": ("bit4", 0.02),
    "IQ4_NL": ("bit4", 0.02),
    "IQ4_XS": ("bit4", 0.02),
    "Q4_K+Q6_K": ("bit8", 0.02),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_gguf_file_is_loaded_at_its_own_precision(tmp_path: Path, cache: Path, kind: str) -> None:
    precision, tolerance = KINDS[kind]
    reference = write_gguf(tmp_path / "tiny.gguf", kind)
    with create_model(str(tmp_path / "tiny.gguf"), cache_dir=cache) as model, torch.inference_mode():
        assert (model.name, model.precision) == ("tiny", precision)
        assert isinstance(model._engine._runner, NativeRunner)  # type: ignore[attr-defined]
        assert near(logits(model), reference(IDS).logits) < tolerance
        assert model.generate("ab", max_new_tokens=3).usage.completion_tokens
    folder = next((cache / "converted").iterdir())
    assert not list(folder.glob("*.safetensors"))  # the weights are in the file, once
    assert converted_record(folder)["precisions"]["model.embed_tokens.weight"] == "bit8"
    # On request, another precision is used.
    with create_model(str(tmp_path / "tiny.gguf"), cache_dir=cache, precision="fp32", runner="generic") as model:
        assert near(logits(model), reference(IDS).logits) < 1e-5


def test_a_gguf_file_that_has_gone_or_was_cut_is_named(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, "Q4_0")
    create_model(str(path), cache_dir=cache).close()
    folder = next((cache / "converted").iterdir())
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(ModelLoadError, match=r"tiny\.gguf has gone"):
        create_model(str(folder), cache_dir=cache)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelLoadError, match=r"tiny\.gguf is cut short"):
        create_model(str(folder), cache_dir=cache)


@pytest.fixture
def keeps_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("run_gpt.models.packed_files.LEAST_BYTES", 1)


def restored(model: Any) -> bool:
    return bool(model._engine._runner._weights.restored)


@pytest.mark.parametrize(("precision", "runner"), [("bf16", "native"), ("bit4", "native"), ("bit4", "generic")])
def test_the_next_start_takes_the_packed_weights_from_the_cache(
    checkpoint: Path, cache: Path, precision: str, runner: str, keeps_all: None
) -> None:
    found = []
    for _ in range(2):
        with create_model(str(checkpoint), cache_dir=cache, precision=precision, runner=runner) as model:
            found.append((logits(model), model.generate("w5", max_new_tokens=8).choices[0].text))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert len(list(cache.glob("packed/*/weights"))) == 1


def test_weights_in_the_cache_are_neither_read_nor_packed_again(
    tmp_path: Path, cache: Path, keeps_all: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "tiny.gguf", "Q4_K")
    with create_model(str(tmp_path / "tiny.gguf"), cache_dir=cache) as model:
        first = logits(model)
    real = dequantize

    def only_vectors(data: Any, kind: Any) -> Any:
        assert data.ndim == 1, "a matrix is read"
        return real(data, kind)

    monkeypatch.setattr("gguf.quants.dequantize", only_vectors)
    with create_model(str(tmp_path / "tiny.gguf"), cache_dir=cache) as model:
        assert restored(model)
        assert torch.equal(logits(model), first)


def test_packed_weights_are_shared_by_processes_or_copied(
    checkpoint: Path, cache: Path, keeps_all: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from run_gpt.engine.runners.native.binding import Memory

    with create_model(str(checkpoint), cache_dir=cache, precision="bf16") as model:
        first = logits(model)
    for huge in (2**40, 0):  # the system maps files in huge pages, or does not
        monkeypatch.setattr(Memory, "_huge_bytes", lambda self, huge=huge: huge)
        with create_model(str(checkpoint), cache_dir=cache, precision="bf16") as model:
            assert restored(model)
            weights = model._engine._runner._weights  # type: ignore[attr-defined]
            assert (weights.shared_bytes > 0) == (huge > 0)
            assert torch.equal(logits(model), first)


def test_a_checkpoint_that_lacks_weights_leaves_no_packed_ones(
    checkpoint: Path, tmp_path: Path, cache: Path, keeps_all: None
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    name = "model.layers.1.mlp.up_proj.weight"
    damage(folder, name, lambda tensors: tensors.pop(name))
    with pytest.raises(ModelLoadError):
        create_model(str(folder), cache_dir=cache, precision="bit4")
    assert not list(cache.glob("packed/*"))
