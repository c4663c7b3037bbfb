"""The two forms of `--adapter`: an error here would apply an adapter to all requests instead of some, or to none."""

import pytest
import yaml
from typer.testing import CliRunner

from run_gpt.cli.app import app


def settings(*arguments):
    done = CliRunner().invoke(app, ["serve", "--dry-run", *arguments])
    assert done.exit_code == 0, done.output
    flow = yaml.safe_load(done.stdout)
    return flow["executors"][0]["uses"]["with"], flow["gateway"]["uses"].get("with", {})


def test_one_adapter_without_a_name_goes_with_several_that_have_one():
    options = ["--adapter", "a=./one", "--adapter", "org/two", "--adapter", "5=/x=y"]
    executor, gateway = settings(*options, "--runtime-adapters")
    assert executor["adapter_name_or_path"] == "org/two"
    assert executor["adapters"] == {"a": "./one", "5": "/x=y"}
    assert gateway == {"runtime_adapters": True}


def test_a_path_with_an_equals_sign_is_no_name():
    assert settings("--adapter", "./a=b")[0] == {"model_name": "smollm2", "adapter_name_or_path": "./a=b"}


def test_without_the_option_nothing_may_be_changed():
    assert settings() == ({"model_name": "smollm2"}, {})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--adapter", "x", "--adapter", "y"], "only one may have no name; write NAME=y"),
        (["serve", "--adapter", "a=x", "--adapter", "a=y"], "two adapters called a"),
        (["serve", "--adapter", "./nothing/here"], "no adapter folder ./nothing/here"),
        (["serve", "--adapter", "base=x"], "'base', which is the model itself"),
        (["embed", ""], "texts[0]"),
        (["adapters", "load", "a b", "x", "--endpoint", "http://127.0.0.1:9"], "name"),
        (["adapters", "list", "--endpoint", "somewhere"], "grpc://HOST:PORT"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_one_line(fail, arguments, words):
    assert words in fail(*arguments)
