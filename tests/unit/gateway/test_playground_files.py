"""The playground's files: complete, of the right type, without outside resources, and true to their descriptions."""

import hashlib
import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from run_gpt.api.openai.chat import ChatCompletionRequest
from run_gpt.api.schema import ChatRequest
from run_gpt.gateway.playground import ASSETS, HEADERS, LIBRARIES, PLAYGROUND, playground_files

ROOT = Path(__file__).parents[3]
FOLDER = files("run_gpt.gateway.playground")
PAGE = FOLDER.joinpath("index.html").read_text()


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    for path, function in playground_files().items():
        app.add_route(path, function)
    return TestClient(app)


@pytest.mark.parametrize("path", [PLAYGROUND, *(f"{PLAYGROUND}/{name}" for name in ASSETS)])
def test_every_file_is_served_with_its_type_and_without_the_outside(client, path):
    kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.content
    assert answer.headers["content-type"].partition(";")[0] == kinds.get(path.rpartition(".")[2], "text/html")
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(path, headers={"If-None-Match": '"another"'}).status_code == 200


@pytest.mark.parametrize("path", ["/playground/../http.py", "/playground/%2e%2e/http.py", "/playground/vendor/"])
def test_nothing_else_is_served(client, path):
    assert client.get(path).status_code == 404


def test_the_page_has_no_script_or_style_of_its_own():
    """The policy forbids inline scripts and styles: the browser would ignore one."""
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", PAGE)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", PAGE))


def test_what_the_page_loads_is_what_is_served():
    """A file that is missing on either side makes a page that does not start."""
    loaded = set(re.findall(r'(?:src|href)="playground/([^"]+)"', PAGE))
    for name in ASSETS:
        if name.endswith(".js") and not name.startswith("vendor/"):
            loaded |= set(re.findall(r'from "\./([^"]+)"', FOLDER.joinpath(name).read_text()))
    assert loaded == set(ASSETS)


def test_the_wheel_has_every_file():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in ("run_gpt.gateway.playground", "run_gpt.gateway.playground.vendor"):
        for path in (ROOT / package.replace(".", "/")).iterdir():
            shipped = path.is_dir() or path.suffix == ".py" or any(map(path.match, declared[package]))
            assert shipped, f"{path} would be missing from the wheel"


def test_the_libraries_are_those_that_were_published():
    """A library that is changed here would be ours to maintain; and each may be used under its licence only."""
    told = FOLDER.joinpath("vendor", "VERSIONS.md").read_text()
    rows = dict(re.findall(r"^\| `([^`]+)` \|.*`([0-9a-f]{64})` \|$", told, re.MULTILINE))
    assert set(rows) == set(LIBRARIES)
    for name, digest in rows.items():
        assert hashlib.sha256(FOLDER.joinpath("vendor", name).read_bytes()).hexdigest() == digest
        licence = FOLDER.joinpath("vendor", f"{name.split('.')[0].replace('purify', 'dompurify')}.LICENSE.txt")
        assert licence.read_text().strip()


def test_the_controls_have_the_limits_of_the_server():
    """Otherwise the page would refuse values that the server takes, or offer values that it refuses."""
    schema = ChatCompletionRequest.model_json_schema()["properties"]
    # The OpenAI route folds any seed into the native range, so that all seeds are valid.
    schema["seed"] = ChatRequest.model_json_schema()["properties"]["seed"]
    for name in ("temperature", "top_p", "max_tokens", "seed"):
        limits = schema[name]["anyOf"][0]
        tag = re.search(rf'<input id="{name}"[^>]*>', PAGE)[0]
        shown = {key: re.search(rf'{key}="([^"]+)"', tag) for key in ("min", "max")}
        assert float(shown["min"][1]) == limits["minimum"]
        assert (float(shown["max"][1]) if shown["max"] else None) == limits.get("maximum")
