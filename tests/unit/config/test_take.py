"""Without these tests a setting could reach an executor or a gateway with the type that YAML gave it."""

from pathlib import Path

from run_gpt.config import GatewayConfig, ModelConfig


def test_values_of_a_flow_get_the_types_that_are_declared() -> None:
    settings = {"model_name": 7, "device": "cpu", "adapters": {"law": 1}, "cache_dir": "/models", "max_running": 4}
    config = ModelConfig.take(settings)
    assert config == ModelConfig(model_name="7", device="cpu", adapters={"law": "1"}, cache_dir=Path("/models"))
    assert settings == {"max_running": 4}, "others may take the rest"


def test_names_and_revisions_stay_texts() -> None:
    taken = ModelConfig.take({"served_model_name": ["house", 4], "revision": 2})
    assert taken == ModelConfig(served_model_name=("house", "4"), revision="2")
    assert ModelConfig.take({"served_model_name": "house"}).served_model_name == ("house",)


def test_a_gateways_lists_and_files_get_the_types_that_are_declared() -> None:
    settings = {"cors_origins": ["https://a.example"], "api_key_file": "/run/keys", "log_load": 5}
    config = GatewayConfig.take(settings)
    assert config == GatewayConfig(cors_origins=("https://a.example",), api_key_file=Path("/run/keys"), log_load=5)
