"""Tests of the project: one version, documents that match the code, constraints that cover the dependencies.

Without them the README would drift from what the server does, and `make install` from what was tested.
"""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import ModuleType

import pytest

import run_gpt

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def script(name: str) -> ModuleType:
    """Import a file of scripts/ as a module."""
    if (folder := str(ROOT / "scripts")) not in sys.path:  # they import each other
        sys.path.append(folder)
    return importlib.import_module(name)


def requirement_names(lines: list[str]) -> set[str]:
    """Return the normalised names of requirement lines."""
    return {re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", line)[0]).lower() for line in lines}


def constraints() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_readme_has_the_parameters_and_errors_that_the_code_has() -> None:
    text = (ROOT / "README.md").read_text()
    assert script("readme_tables").made() == text, "run: python scripts/readme_tables.py --write"


def test_the_documents_have_the_settings_that_the_configuration_declares() -> None:
    for document in script("option_tables").TABLES:
        made = script("option_tables").made(document)
        assert made == document.read_text(), "run: python scripts/option_tables.py --write"


def test_the_gguf_document_has_the_keys_that_the_code_reads() -> None:
    made = script("gguf_tables").made()
    assert made == (ROOT / "docs" / "gguf.md").read_text(), "run: python scripts/gguf_tables.py --write"


def test_the_openai_document_has_the_fields_of_the_schemas_and_of_the_client() -> None:
    """A newer client's field must be supported or refused by name; else users get a 400 that says `not known here`."""
    text = (ROOT / "docs" / "openai.md").read_text()
    assert script("openai_table").made() == text, "run: python scripts/openai_table.py --write"


def test_the_document_of_messages_has_the_fields_of_the_schemas() -> None:
    text = (ROOT / "docs" / "messages.md").read_text()
    assert script("messages_table").made() == text, "run: python scripts/messages_table.py --write"


def test_the_document_of_ollamas_api_has_the_fields_of_the_schemas() -> None:
    text = (ROOT / "docs" / "ollama.md").read_text()
    assert script("ollama_table").made() == text, "run: python scripts/ollama_table.py --write"


def test_a_field_of_openais_that_the_server_does_not_know_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this a new client's fields would be missing from the tables, without a decision about them."""
    table = script("openai_table")
    monkeypatch.setattr(table.REQUESTS["embeddings"][0], "FIELDS", table.field_tables.Table())
    with pytest.raises(SystemExit, match=r"neither has nor refuses .*\['dimensions'\]"):
        table.request_table("embeddings")


def test_what_is_said_of_openais_fields_is_said_of_fields_that_there_are() -> None:
    table = script("openai_table")
    for name, (request, _) in table.REQUESTS.items():
        assert not set(request.FIELDS.names) & request.model_fields.keys()
        ours = {field for field in request.model_fields if f"| `{field}` | ours |" in table.request_table(name)}
        assert request.DIFFERS.keys() <= request.model_fields.keys() - ours


def test_the_types_of_keyword_parameters_are_those_of_the_schema_and_the_configuration() -> None:
    for path, make in script("keyword_types").MODULES.items():
        assert make() == path.read_text(), "run: python scripts/keyword_types.py --write"


def test_the_model_zoo_is_that_of_the_catalogue() -> None:
    text = (ROOT / "MODEL_ZOO.md").read_text()
    assert script("model_zoo").model_zoo() == text, "run: python scripts/model_zoo.py --write"


def test_the_support_matrix_has_the_families_that_are_tested() -> None:
    """A row without a checkpoint would promise users an untested family."""
    from families import FAMILIES

    text = (ROOT / "docs" / "support-matrix.md").read_text()
    table = text.split("<!-- families: compared with tests/families.py -->")[1].split("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()[2:]]
    assert {(row[0].strip("`"), row[1], row[2].split(",")[0]) for row in rows} == {
        (name, family.architecture, family.runner) for name, family in FAMILIES.items()
    }
    assert {row[0].strip("`") for row in rows if row[5] != "yes"} == {
        name for name, family in FAMILIES.items() if "bit4" not in family.precisions
    }
    for name in set(re.findall(r"`(?:tests/[\w/]*)?(test_\w+\.py)`", text)):
        assert list((ROOT / "tests").rglob(name)), f"docs/support-matrix.md names {name}, which is not there"


def test_there_is_one_version() -> None:
    assert run_gpt.__version__ == version("rungpt") == PROJECT["project"]["version"]
    assert f"## {run_gpt.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_package_is_declared() -> None:
    """A folder missing in pyproject.toml would be missing from the wheel, and from a user's machine."""
    packages = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for folder in ("run_gpt", "executors", "flows")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    mapped = {name if name.startswith("run_gpt") else f"run_gpt.{name}" for name in packages}
    assert mapped == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_dependency_is_constrained_to_one_version() -> None:
    lines = constraints()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "a local part such as +cpu is not portable"
    project = PROJECT["project"]
    wanted = requirement_names([*project["dependencies"], *project["optional-dependencies"]["dev"]])
    assert wanted - {"rungpt"} <= requirement_names(lines)


def third_party_imports() -> set[str]:
    """Return the top-level names that the package imports anywhere, without the standard library."""
    names = set()
    for folder in ("run_gpt", "executors", "flows"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    names.add(str(node.module).split(".")[0])
    return names - {"run_gpt", *sys.stdlib_module_names}


def test_every_import_is_a_declared_dependency() -> None:
    """An undeclared import breaks for users when another package drops that dependency."""
    project = PROJECT["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    declared = requirement_names([*project["dependencies"], *extras])
    homes = packages_distributions()
    for name in third_party_imports():
        assert requirement_names(homes.get(name, [name])) & declared, f"{name} is imported but not declared"


def test_the_lean_environment_has_no_model_library() -> None:
    names = requirement_names(script("lean_requirements").lean_requirements())
    assert {"jina", "httpx", "pytest"} <= names
    assert not names & {"torch", "transformers", "tokenizers", "accelerate", "bitsandbytes", "gguf", "peft", "rungpt"}


@pytest.mark.parametrize("path", sorted((ROOT / "run_gpt").rglob("*.py")), ids=lambda path: path.name)
def test_every_module_says_what_it_owns(path: Path) -> None:
    text = path.read_text()
    assert not text.strip() or text.startswith(('"""', "#!")), "begin with one sentence that says what this module owns"


def test_the_licence_is_the_whole_apache_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "APPENDIX: How to apply the Apache License to your work." in text


@pytest.mark.skipif(sys.platform == "win32", reason="make is not usual there")
def test_make_says_which_python_it_needs(tmp_path: Path) -> None:
    """A user with too old a Python gets one line, not a page of pip's output."""
    arguments = [f"VENV={tmp_path / 'venv'}", "PYTHON=no-such-python"]
    done = subprocess.run(["make", "-C", str(ROOT), "install", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "RunGPT needs Python 3.11 to 3.13" in done.stderr
    assert not (tmp_path / "venv").exists()
