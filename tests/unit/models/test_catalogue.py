"""Without these tests, the short name that a user types could find the wrong model, or none."""

from pathlib import Path

import families
import pytest

from run_gpt.config import DEFAULT_MODEL, ModelConfig
from run_gpt.errors import ModelLoadError, ModelNotFound
from run_gpt.models import CATALOGUE, fetch, find, near_matches, own_name, served_name, served_names
from run_gpt.models.cache import ModelCache
from run_gpt.models.catalogue import FAMILIES
from run_gpt.models.files import hub_name
from run_gpt.models.hub_names import HubName


def test_every_name_and_alias_finds_its_entry_and_no_other() -> None:
    names = [name.lower() for entry in CATALOGUE for name in entry.names]
    assert len(names) == len(set(names))
    for entry in CATALOGUE:
        assert all(find(name) is entry for name in entry.names)


@pytest.mark.parametrize("name", ["smollm2", "SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_the_default_model_has_one_served_name(name: str) -> None:
    assert served_name(ModelConfig(model_name=name)) == DEFAULT_MODEL == served_name(ModelConfig())


def test_a_local_model_is_served_under_its_own_name_or_the_given_one() -> None:
    assert served_name(ModelConfig(model_name="./weights/mine.gguf")) == "mine"
    assert served_name(ModelConfig(model_path="/data/my-model")) == "my-model"
    assert served_name(ModelConfig(model_name="house", model_path="/data/my-model")) == "house"
    assert served_name(ModelConfig(model_name="org/model")) == "org/model"


def test_given_names_replace_the_model_s_own_and_the_first_is_shown() -> None:
    config = ModelConfig(model_name="org/model", served_model_name=("house", "gpt-4o", "house"))
    assert served_names(config) == ("house", "gpt-4o")
    assert served_name(config) == "house"
    assert own_name(config) == "org/model"


@pytest.mark.parametrize("name", ["", " ", "a\n", " a"])
def test_a_name_that_no_request_can_give_is_refused(name: str) -> None:
    with pytest.raises(ModelLoadError, match="is no name"):
        served_names(ModelConfig(served_model_name=(name,)))


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    assert near_matches("smolm2")[0] == "smollm2"
    with pytest.raises(ModelNotFound, match=r"no model 'smolm2'.*rungpt models list.*did you mean smollm2"):
        fetch(ModelConfig(model_name="smolm2"))


def test_a_short_name_stands_for_its_pinned_commit_and_a_hub_id_for_the_newest(cache: Path) -> None:
    commit = "c1899de289a04d12100db370d81485cdf75e47ca"
    assert hub_name(ModelCache(cache), "qwen3-0.6b") == HubName("Qwen/Qwen3-0.6B", commit)
    assert hub_name(ModelCache(cache), "qwen3-0.6b", "main") == HubName("Qwen/Qwen3-0.6B", "main")
    assert hub_name(ModelCache(cache), "Qwen/Qwen3-0.6B") == HubName("Qwen/Qwen3-0.6B")


def test_a_short_name_takes_the_main_branch_that_is_here_already(cache: Path, tmp_path: Path) -> None:
    """Without it a model that another program fetched would be fetched again, in another commit."""
    root = tmp_path / "hf/hub/models--Qwen--Qwen3-0.6B"
    (root / "snapshots/abc").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs/main").write_text("abc")
    for name in ("config.json", "model.safetensors"):
        (root / "snapshots/abc" / name).write_text("{}")
    assert hub_name(ModelCache(cache), "qwen3-0.6b") == HubName("Qwen/Qwen3-0.6B")


def test_the_families_of_today_are_listed_first() -> None:
    families = list(dict.fromkeys(entry.family for entry in CATALOGUE[1:]))
    assert families[:4] == ["Qwen 3", "Qwen 3, experts", "Qwen 3.5", "Gemma 3"]
    assert families.index("OLMo 3") < families.index("Mixtral") < families.index("GPT-J")


def test_every_family_has_a_model_and_is_tested() -> None:
    assert {entry.family for entry in CATALOGUE} == set(FAMILIES)
    tested = {families.build(family).config.model_type for family in families.FAMILIES.values()}
    assert set(FAMILIES.values()) - {"moss"} <= tested  # MOSS's test checkpoint has a type of its own
