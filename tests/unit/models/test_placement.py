"""Placement: without these tests the processes of a model could not share it, and folders could stay behind."""

import pickle
from pathlib import Path

import pytest

from run_gpt.config import ModelConfig
from run_gpt.errors import SetupError
from run_gpt.models.offload import offload_folder
from run_gpt.models.placement import place


def test_a_placement_goes_to_another_process(tiny_model: Path) -> None:
    placement = place(ModelConfig(model_name=str(tiny_model), precision="fp32", device="cpu"))
    assert pickle.loads(pickle.dumps(placement)) == placement
    assert (placement.files.folder, placement.model_type, placement.target.precision) == (tiny_model, "llama", "fp32")


def test_a_model_is_checked_before_it_is_split(tiny_model: Path) -> None:
    with pytest.raises(SetupError, match="attention heads"):
        place(ModelConfig(model_name=str(tiny_model), device="cpu", tensor_parallel=64))


@pytest.mark.parametrize(("model_type", "trusted"), [("llama", True), ("moss", False)])
def test_code_of_a_checkpoint_runs_only_where_it_is_needed(tiny_model: Path, model_type: str, trusted: bool) -> None:
    config = (tiny_model / "config.json").read_text()
    (tiny_model / "config.json").write_text(config.replace('"llama"', f'"{model_type}"'))
    placement = place(ModelConfig(model_name=str(tiny_model), device="cpu", trust_remote_code=True))
    assert placement.trust_remote_code == trusted


def test_a_failed_load_leaves_no_folder_for_offloaded_weights(tmp_path: Path) -> None:
    def load() -> None:
        with offload_folder(tmp_path) as folder:
            (folder / "part").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load()
    assert not list(tmp_path.iterdir())
