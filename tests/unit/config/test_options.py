"""Without these tests a setting could be undocumented, or take a value in Python that the command line refuses."""

from dataclasses import fields
from typing import Any

import pytest

from run_gpt import create_model
from run_gpt.config import EngineConfig, ModelConfig, ModelOptions, ServeConfig, check_bounds, flag_of, options_of
from run_gpt.errors import SetupError


def test_every_setting_is_declared() -> None:
    """A field without an Option would be missing from the command line, from models.yml and from the documents."""
    assert options_of(ServeConfig).keys() == {field.name for field in fields(ServeConfig)} - {"models"}
    assert all(option.help.endswith(".") for option in options_of(ServeConfig).values())


def test_the_flag_is_the_name_unless_it_is_declared() -> None:
    flags = {name: flag_of(name, option) for name, option in options_of(ServeConfig).items()}
    assert (flags["max_running"], flags["cors_origins"], flags["memory"]) == (
        "--max-running",
        "--cors-origin",
        "memory",
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_running": 0}, "--max-running must be at least 1, not 0"),
        ({"tensor_parallel": 0}, "--tensor-parallel must be at least 1, not 0"),
    ],
)
def test_create_model_checks_the_bounds_of_the_command_line(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SetupError, match=words):
        create_model("/no/such/model", **settings)


def test_bounds_are_checked_on_both_sides() -> None:
    check_bounds(ServeConfig(max_waiting=0, grpc_port=1))
    with pytest.raises(SetupError, match=r"^here: --http-port must be at most 65535, not 65536"):
        check_bounds(ServeConfig(http_port=65536), "here: ")


def test_create_model_names_each_option_in_its_help_and_refuses_others() -> None:
    by_position = set(create_model.__code__.co_varnames[: create_model.__code__.co_argcount])
    names = {field.name for config in (ModelConfig, EngineConfig) for field in fields(config)}
    assert ModelOptions.__annotations__.keys() == names - by_position
    assert all(f"`{name}`" in (create_model.__doc__ or "") for name in ModelOptions.__annotations__)
    with pytest.raises(TypeError, match="max_runing"):
        create_model("/no/such/model", max_runing=1)  # type: ignore[call-arg]
