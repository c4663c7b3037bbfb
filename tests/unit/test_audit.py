"""The audit of dependencies: a report without a look-up must not pass for one without a vulnerability."""

import importlib
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
if str(ROOT / "scripts") not in sys.path:
    sys.path.append(str(ROOT / "scripts"))
audit = importlib.import_module("audit")

HOLE = {"id": "GHSA-1", "fix_versions": ["2.1"]}
VULNERABLE = {
    "aiohttp": "3.13.2",
    "filelock": "3.20.2",
    "grpcio": "1.66.1",
    "h11": "0.15",
    "jinja2": "3.1.5",
    "protobuf": "5.29.5",
    "sentencepiece": "0.2.0",
    "setuptools": "78.1.0",
    "starlette": "1.2.9",
    "tqdm": "4.66.2",
}
"""Newest releases with a known vulnerability, which the bounds of pyproject.toml must leave out."""


def run(tmp_path: Path, report: str) -> int:
    """Run the audit with a pip-audit that prints this report."""
    (tmp_path / "report").write_text(report)
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/report\n")
    program.chmod(0o755)
    status: int = audit.main(str(program))
    return status


def report(*entries: dict[str, Any]) -> str:
    return json.dumps({"dependencies": entries, "fixes": []})


def test_a_vulnerability_is_a_line_that_names_its_remedy(tmp_path: Path, capsys: Any) -> None:
    sound = {"name": "a", "version": "1", "vulns": []}
    assert run(tmp_path, report(sound)) == 0
    assert run(tmp_path, report(sound, {"name": "b", "version": "2.0", "vulns": [HOLE]})) == 1
    assert "b 2.0: GHSA-1, mended in 2.1" in capsys.readouterr().out


def test_what_cannot_be_mended_is_shown_with_its_reason(tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path, report({"name": "urllib3", "version": "1.26.20", "vulns": [HOLE]})) == 0
    assert "accepted: urllib3: " in capsys.readouterr().out


@pytest.mark.parametrize("said", ["", "no route", report(), report({"name": "a", "skip_reason": "not found"})])
def test_without_an_index_nothing_counts_as_audited(tmp_path: Path, capsys: Any, said: str) -> None:
    """pip-audit itself ends with 0 when it has looked up nothing."""
    assert run(tmp_path, said) == 2
    assert "nothing was audited" in capsys.readouterr().err


def test_the_bounds_leave_vulnerable_releases_out() -> None:
    """`pip install rungpt` without our constraints takes what the bounds admit."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {Requirement(line).name: Requirement(line).specifier for line in project["dependencies"]}
    admitted = [f"{name} {version}" for name, version in VULNERABLE.items() if version in bounds[name]]
    assert not admitted
