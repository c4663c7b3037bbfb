"""`rungpt models`: the cache's content that a user sees, and the space that `rm` frees."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from run_gpt.errors import ModelNotFound
from run_gpt.models import CATALOGUE, list_models, pull, remove, show
from run_gpt.models.catalogue import WheelSource, find
from run_gpt.models.convert import catalogue_key
from run_gpt.models.stored import held_precision, stored_text


def fill_default(cache: Path) -> Path:
    entry = find("smollm2")
    assert entry is not None
    assert isinstance(entry.source, WheelSource)
    (cache / "files/smollm2").mkdir(parents=True)
    (cache / "files/smollm2/model.gguf").write_bytes(b"x" * 100)
    folder = cache / catalogue_key("smollm2", entry.source.sha256)
    folder.mkdir(parents=True)
    (folder / "converted.json").write_text(json.dumps({"name": "smollm2", "source": "x", "sizes": {}}))
    return folder


def fill_hub(cache: Path, repo: str) -> None:
    slug = repo.replace("/", "--")
    snapshot = cache / f"hub/models--{slug}/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"x" * 50)
    record = cache / f"files/{slug}"
    record.mkdir(parents=True)
    data = {"name": repo, "folder": str(snapshot.relative_to(cache)), "pickled": False}
    (record / "hub.json").write_text(json.dumps(data))


def test_an_empty_cache_shows_the_catalogue() -> None:
    models = list_models()
    assert [model.name for model in models] == [entry.name for entry in CATALOGUE]
    assert not any(model.cached or model.disk_bytes for model in models)


def test_what_is_cached_is_shown_with_its_size_and_removed(cache: Path) -> None:
    folder = fill_default(cache)
    info = show("SmolLM2-135M-Instruct")
    assert (info.name, info.cached, info.folder) == ("smollm2", True, folder)
    assert info.disk_bytes > 100
    assert remove("smollm2") == info.disk_bytes
    assert not show("smollm2").cached
    assert remove("smollm2") == 0


def test_a_model_of_the_hub_outside_the_catalogue_is_listed_and_removed(cache: Path) -> None:
    fill_hub(cache, "org/model")
    info = list_models()[-1]
    assert (info.name, info.cached, info.disk_bytes) == ("org/model", True, 50)
    assert show("org/model") == info
    assert remove("org/model") > 50
    assert len(list_models()) == len(CATALOGUE)


def test_a_name_that_is_nothing_is_not_found() -> None:
    for call in (show, pull, remove):
        with pytest.raises(ModelNotFound, match="smollm2"):
            call("smolm2")


def test_listing_needs_no_torch() -> None:
    code = (
        "import sys; from run_gpt.models import list_models; list_models(); "
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_types_of_the_weights_are_shown(tmp_path: Path) -> None:
    def write(**types: tuple[str, int]) -> None:
        held = {
            f"{name}.weight": {"dtype": dtype, "shape": [count, 1], "data_offsets": [0, 0]}
            for name, (dtype, count) in types.items()
        }
        header = json.dumps(held).encode()
        (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)

    (tmp_path / "config.json").write_text("{}")
    write(a=("BF16", 100))
    assert stored_text(tmp_path) == "bf16"
    write(a=("BF16", 100), b=("F32", 300))
    assert stored_text(tmp_path) == "fp32 75.0 %, bf16 25.0 %"
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "awq", "bits": 4}}))
    assert (stored_text(tmp_path), held_precision(tmp_path, "auto")) == ("AWQ in 4 bits", "bit4")
    (tmp_path / "config.json").write_text(json.dumps({"quantization": {"bits": 4, "group_size": 64}}))
    assert str(stored_text(tmp_path)).startswith("not served: ")
    (tmp_path / "config.json").write_text("{")
    assert (stored_text(tmp_path), held_precision(tmp_path, "bf16")) == (None, None)
