"""Deployments that every target renders, and the check against the golden files in tests/golden/deploy."""

import difflib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from run_gpt.config import ServeConfig
from run_gpt.deploy import Autoscale, Deployment

GOLDEN = Path(__file__).parents[2] / "golden" / "deploy"
"""Folder with a folder for each target; tests/golden/README.md describes the files."""
WHOLE = "plain"
"""Name of the deployment whose rendering is kept whole."""
RENEW = "RUNGPT_RENEW_GOLDEN"
"""Environment variable with which the tests rewrite the golden files, to be reviewed in the diff."""
HINT = f"if this change is meant: {RENEW}=1, run the test, and read the diff"
IMAGE = "example/rungpt:1.2.3"
KEY = "secret-key-of-the-test"

DEPLOYMENTS: dict[str, Callable[[Path], Deployment]] = {
    "plain": lambda keys: Deployment(server=ServeConfig(replicas=2), image=IMAGE, memory_gib=3, open=True),
    "key": lambda keys: Deployment(
        server=ServeConfig(model_name="org/model-7b", precision="bit4", api_key=KEY, replicas=3, drain_seconds=60.0),
        image=IMAGE,
        name="chat",
        gateways=2,
        cpus=8,
        memory_gib=12,
    ),
    "gpu": lambda keys: Deployment(
        server=ServeConfig(
            model_name="org/model-70b",
            device_map="balanced",
            adapters={"law": "org/law-lora", "odd": "/adapters/$(odd) ${one}"},
            api_key_file=keys,
            replicas=2,
            max_running=128,
        ),
        image=IMAGE,
        cpus=16,
        memory_gib=160,
        gpus=2,
    ),
    "autoscale": lambda keys: Deployment(
        server=ServeConfig(api_key=KEY), image=IMAGE, memory_gib=3, autoscale=Autoscale(least=1, most=8, in_flight=12)
    ),
}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    """Return the path of a key file on this machine."""
    file = tmp_path / "keys"
    file.write_text(f"alice: {KEY}-of-alice\n")
    return file


@pytest.fixture
def deployments(keys_file: Path) -> dict[str, Deployment]:
    """Return all of the deployments, by their names."""
    return {name: make(keys_file) for name, make in DEPLOYMENTS.items()}


@pytest.fixture(params=sorted(DEPLOYMENTS))
def case(request: pytest.FixtureRequest, keys_file: Path) -> tuple[str, Deployment]:
    """Return each of the deployments in turn, with its name."""
    return request.param, DEPLOYMENTS[request.param](keys_file)


Files = dict[str, str]
CheckGolden = Callable[[str, dict[str, Files]], None]


@pytest.fixture
def check_golden() -> CheckGolden:
    """Return `check_golden("docker", {"plain": files, ...})`: asserts that a target renders what its folder holds.

    Each deployment has one file, compared byte for byte.
    """

    def check(target: str, rendered: dict[str, Files]) -> None:
        made, folder = golden_files(rendered), GOLDEN / target
        if os.environ.get(RENEW):
            renew(folder, made)
        expected = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
        assert made.keys() == expected.keys(), HINT
        for name, text in made.items():
            assert text == expected[name], f"{name}: {HINT}"
        texts = [text for files in rendered.values() for text in files.values()]
        assert not any(KEY in text for text in texts), "a key stands in a file that people commit"

    return check


def golden_files(rendered: dict[str, Files]) -> dict[str, str]:
    """Return the file of the deployment WHOLE as it is, and each other one as a unified diff against it."""
    ((file, whole),) = rendered[WHOLE].items()
    golden = {file: whole}
    for name, files in rendered.items():
        assert files.keys() == {file}
        if name != WHOLE:
            lines = (text.splitlines(keepends=True) for text in (whole, files[file]))
            golden[f"{name}.diff"] = "".join(difflib.unified_diff(*lines, WHOLE, name, n=1))
    return golden


def renew(folder: Path, files: Files) -> None:
    """Write the files into the folder, and remove all others from it."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
