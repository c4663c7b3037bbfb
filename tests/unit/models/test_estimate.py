"""Without these tests, users could download for hours models that cannot run here, or be refused models that can."""

import json
from pathlib import Path
from typing import Any

import pytest

from run_gpt.config import ModelConfig
from run_gpt.config.windows import ring_size
from run_gpt.errors import ModelLoadError
from run_gpt.models import files
from run_gpt.models.cache import ModelCache
from run_gpt.models.catalogue import HubSource, find
from run_gpt.models.estimate import Estimate, estimate_folder
from run_gpt.models.hub_names import HubName


def check(cache: Path, **wish: Any) -> None:
    entry = find("mistral-7b")
    assert entry is not None
    assert isinstance(entry.source, HubSource)
    files.require_room_before_download(ModelCache(cache), entry, HubName(entry.source.repo), ModelConfig(**wish))


@pytest.mark.parametrize(
    ("free", "wish", "reason"),
    [
        (8, {}, r"mistral-7b: it needs 14.5 GB, 8.0 GB free on cpu: use --precision bit8 or --device-map auto"),
        (5, {"precision": "fp32"}, "29.0 GB.*--precision bit4"),
        (2, {"precision": "bit4"}, r"free on cpu: use --device-map auto --precision bf16 \("),
        (15, {}, None),
        (14, {}, None),
        (2, {"device_map": "auto"}, None),
        (2, {"device": "cuda"}, None),
    ],
)
def test_what_cannot_fit_is_not_fetched(
    cache: Path, monkeypatch: pytest.MonkeyPatch, free: int, wish: dict[str, Any], reason: str | None
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda device: free * 10**9)
    wish = {"device": "cpu", **wish}
    if reason is None:
        check(cache, **wish)
    else:
        with pytest.raises(ModelLoadError, match=reason):
            check(cache, **wish)


def test_few_bits_have_scales_and_a_better_outer_layer() -> None:
    estimate = Estimate(inner=3200, outer=320, vectors=10, cache_numbers=8, context=4096)
    assert estimate.weights("bit8") == 3520 * 34 // 32 + 40
    assert estimate.weights("bit4") == 3200 * 20 // 32 + 320 * 34 // 32 + 40
    assert estimate.cache("bf16") == 8 * 4096 * 2
    assert estimate.least("fp32") == 4 * 3530 + 8 * 512 * 4


@pytest.mark.parametrize(
    ("more", "numbers"),
    [
        ({"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}, 2 * 2 * 32),
        ({"n_layer": 2, "n_embd": 32, "n_head": 4}, 2 * 2 * 32),
        ({"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}, 2 * 2 * 16),
        ({"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "multi_query": True}, 2 * 2 * 8),
        ({"text_config": {"num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 3, "hidden_size": 9}}, 2 * 12),
        ({"num_hidden_layers": 2, "hidden_size": 32}, 0),
    ],
)
def test_the_cache_is_that_of_the_family(tmp_path: Path, more: dict[str, Any], numbers: int) -> None:
    header = b'{"a.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}'
    (tmp_path / "config.json").write_text(json.dumps(more))
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    estimate = estimate_folder(tmp_path)
    assert estimate is not None
    assert estimate.cache_numbers == numbers


@pytest.mark.parametrize(
    ("more", "windows"),
    [
        ({"model_type": "gemma2"}, 9),
        ({"model_type": "gemma3_text"}, 15),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 2}, 9),
        ({"model_type": "olmo3", "layer_types": ["sliding_attention"] * 4 + ["full_attention"] * 14}, 4),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "sliding_window": 100}}, 15),
        ({"model_type": "mistral"}, 18),
        ({"model_type": "mistral", "sliding_window": None}, 0),
        ({"model_type": "qwen2", "use_sliding_window": False}, 0),
        ({"model_type": "gpt_neox"}, 0),
    ],
)
def test_windows_bound_the_cache_of_their_layers(tmp_path: Path, more: dict[str, Any], windows: int) -> None:
    """Check a context of 8000 tokens, in 18 layers with one head of 4, and a window of 100 in `windows` of them."""
    sizes = {"num_hidden_layers": 18, "num_attention_heads": 1, "head_dim": 4, "max_position_embeddings": 8000}
    config = {"sliding_window": 100, **sizes, **more}
    if "text_config" in config:
        config["text_config"] |= sizes
    write(tmp_path / "model.safetensors", {"a.weight": [2, 2]})
    (tmp_path / "config.json").write_text(json.dumps(config))
    estimate = estimate_folder(tmp_path)
    assert estimate is not None
    ring = ring_size(100, 512)
    assert 100 + 1024 < ring < 100 + 1024 + 128
    assert estimate.cache("bf16") == 18 * 2 * 4 * 8000 * 2
    assert estimate.cache("bf16", native=True) == ((18 - windows) * 8000 + windows * ring) * 2 * 4 * 2
    assert estimate.cache("bf16", ring, native=True) == 18 * 2 * 4 * ring * 2


def test_damage_is_left_to_the_loader(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    assert estimate_folder(tmp_path) is None
    assert estimate_folder(tmp_path / "nowhere") is None


def test_the_masks_of_old_checkpoints_count_nothing(tmp_path: Path) -> None:
    shapes = {"wte.weight": [64, 32], "h.0.attn.bias": [1, 1, 96, 96], "h.0.attn.c_attn.weight": [32, 96]}
    header = json.dumps({n: {"dtype": "F32", "shape": s, "data_offsets": [0, 0]} for n, s in shapes.items()}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "config.json").write_text("{}")
    estimate = estimate_folder(tmp_path)
    assert estimate is not None
    assert estimate.parameters == 64 * 32 + 32 * 96


def write(file: Path, shapes: dict[str, list[int]], dtype: str = "BF16") -> None:
    header = json.dumps({n: {"dtype": dtype, "shape": s, "data_offsets": [0, 0]} for n, s in shapes.items()}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)


def parameters(folder: Path, **config: Any) -> int:
    (folder / "config.json").write_text(json.dumps(config))
    estimate = estimate_folder(folder)
    assert estimate is not None
    return estimate.parameters


def test_second_copies_beside_the_loaded_files_count_nothing(tmp_path: Path) -> None:
    write(tmp_path / "model-00001-of-00002.safetensors", {"model.layers.0.q.weight": [8, 8]})
    write(tmp_path / "model-00002-of-00002.safetensors", {"model.layers.1.q.weight": [8, 8]})
    named = {f"model.layers.{i}.q.weight": f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    for copy in ("consolidated.safetensors", "model.fp16.safetensors", "adapter_model.safetensors"):
        write(tmp_path / copy, {"layers.0.attention.wq.weight": [10**5, 10**5]})
    assert parameters(tmp_path) == 128
    write(tmp_path / "model.safetensors", {"model.layers.0.q.weight": [8, 8]})  # transformers prefers it to the index
    assert parameters(tmp_path) == 64


def test_only_what_is_loaded_counts(tmp_path: Path) -> None:
    shapes = {f"model.layers.{i}.q.weight": [8, 8] for i in range(3)} | {"lm_head.weight": [16, 8]}
    write(tmp_path / "model.safetensors", shapes)
    assert parameters(tmp_path) == 3 * 64 + 128
    assert parameters(tmp_path, num_hidden_layers=2) == 2 * 64 + 128  # the third predicts further tokens
    assert parameters(tmp_path, text_config={"tie_word_embeddings": True}) == 3 * 64


@pytest.mark.parametrize(
    ("dtype", "kind", "count"),
    [
        ("U8", {"load_in_4bit": True, "quant_method": "bitsandbytes"}, 128),
        ("I8", {"load_in_8bit": True, "quant_method": "bitsandbytes"}, 64),
        ("U8", {"quant_method": "mxfp4"}, 128),
        ("F8_E4M3", {"quant_method": "fp8"}, 64),
        ("I32", {"quant_method": "gptq", "bits": 4}, 512),
    ],
)
def test_packed_numbers_are_several_weights(tmp_path: Path, dtype: str, kind: dict[str, Any], count: int) -> None:
    write(tmp_path / "model.safetensors", {"model.layers.0.q.weight": [8, 8]}, dtype)
    assert parameters(tmp_path, quantization_config=kind) == count
