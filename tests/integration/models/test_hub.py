"""Models from a small hub on this machine: complete downloads, safe weights, and no network needed later."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import urlsplit

import pytest

from run_gpt.config import ModelConfig
from run_gpt.errors import DownloadError, ModelLoadError, ModelNotFound
from run_gpt.models import fetch, list_models, remove

SHA = "1" * 40


@dataclass
class Hub:
    url: str
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Paths of the requests so far."""
    stalled: Event = field(default_factory=Event)
    """Set when half of a file of weights has been sent; the rest is sent after `go_on`."""
    go_on: Event = field(default_factory=Event)
    slow: bool = False


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urlsplit(self.path).path.strip("/")
            hub.asked.append(path)
            parts = path.split("/")
            if parts[0] == "api":
                self._api("/".join(parts[2:4]), parts[4:])
            else:
                self._file(hub.repos["/".join(parts[:2])]["/".join(parts[4:])])

        def _api(self, repo: str, rest: list[str]) -> None:
            files = hub.repos.get(repo)
            if files is None:
                self._answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
            elif rest[:1] == ["tree"]:
                tree = [{"type": "file", "path": n, "size": len(c), "oid": etag(c)} for n, c in files.items()]
                self._answer(json.dumps(tree).encode(), 200, {"Content-Type": "application/json"})
            else:
                siblings = [{"rfilename": n, "size": len(c)} for n, c in files.items()]
                body = {"id": repo, "modelId": repo, "sha": SHA, "private": False, "siblings": siblings, "tags": []}
                body |= {"downloads": 0, "likes": 0}
                self._answer(json.dumps(body).encode(), 200, {"Content-Type": "application/json"})

        def _file(self, content: bytes) -> None:
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            headers = {"ETag": f'"{etag(content)}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._answer(content[start:], 206 if start else 200, headers)

        def _answer(self, body: bytes, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.slow and self.path.endswith(".safetensors"):
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                hub.stalled.set()
                hub.go_on.wait(60)
                body = body[len(body) // 2 :]
            self.wfile.write(body)

    return Handler


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setenv("RUNGPT_CACHE", str(tmp_path / "cache"))
    server = Hub("")
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler(server))
    server.url = f"http://127.0.0.1:{httpd.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    thread = Thread(target=httpd.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.go_on.set()
    httpd.shutdown()
    thread.join(10)
    httpd.server_close()


MODEL = {"config.json": b"{}", "model.safetensors": b"x" * 5000, "README.md": b"read me"}


def test_a_model_is_fetched_once_and_then_needs_no_network(hub: Hub) -> None:
    hub.repos["org/tiny"] = {**MODEL, "pytorch_model.bin": b"y" * 5000, "original/consolidated.00.pth": b"z"}
    seen: list[tuple[int, int | None]] = []
    files = fetch(ModelConfig(model_name="org/tiny"), on_progress=lambda _, done, total: seen.append((done, total)))
    assert files.name == "org/tiny"
    assert sorted(file.name for file in files.folder.iterdir()) == ["config.json", "model.safetensors"]
    assert seen[-1] == (5002, 5002)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    hub.asked.clear()
    assert fetch(ModelConfig(model_name="org/tiny")) == files
    assert hub.asked == []


def test_it_is_listed_with_its_size_and_removed(hub: Hub) -> None:
    hub.repos["org/tiny"] = MODEL
    folder = fetch(ModelConfig(model_name="org/tiny")).folder
    row = list_models()[-1]
    assert (row.name, row.cached) == ("org/tiny", True)
    assert row.disk_bytes >= 5002
    assert remove("org/tiny") >= row.disk_bytes
    assert not folder.exists()


def test_pickled_weights_are_not_even_fetched_without_the_flag(hub: Hub) -> None:
    hub.repos["org/old"] = {"config.json": b"{}", "pytorch_model.bin": b"y" * 5000}
    with pytest.raises(ModelLoadError, match=r"org/old has only pickled weights.*--allow-pickle"):
        fetch(ModelConfig(model_name="org/old"))
    assert not any("resolve" in path for path in hub.asked)
    folder = fetch(ModelConfig(model_name="org/old", allow_pickle=True)).folder
    assert (folder / "pytorch_model.bin").is_file()
    with pytest.raises(ModelLoadError, match="--allow-pickle"):
        fetch(ModelConfig(model_name="org/old"))


def test_a_model_that_the_hub_does_not_have_is_not_found(hub: Hub) -> None:
    with pytest.raises(ModelNotFound, match="org/nothing"):
        fetch(ModelConfig(model_name="org/nothing"))


def test_a_hub_that_cannot_be_reached_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="check the network") as caught:
        fetch(ModelConfig(model_name="org/tiny"))
    assert "\n" not in caught.value.message


FETCH = """
from run_gpt.config import ModelConfig
from run_gpt.models import fetch

def report(step, done, total):
    if "Waiting for another process" in step:
        print("waits", flush=True)

print(fetch(ModelConfig(model_name="org/tiny"), on_progress=report).folder, flush=True)
"""


@contextmanager
def fetching(hub: Hub) -> Iterator[subprocess.Popen[str]]:
    """Return a user's process that fetches the model."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    process = subprocess.Popen([sys.executable, "-c", FETCH], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_process_waits_for_the_first_ones_download(hub: Hub) -> None:
    hub.repos["org/tiny"], hub.slow = MODEL, True
    with fetching(hub) as first:
        assert hub.stalled.wait(60)
        with fetching(hub) as second:
            assert line_of(second) == "waits"
            hub.go_on.set()
            folder = line_of(first)
            assert line_of(second) == folder
    assert (Path(folder) / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert len([path for path in hub.asked if path.endswith("model.safetensors")]) == 2  # HEAD and GET, once


def test_a_download_that_is_killed_is_no_model_and_is_fetched_again(hub: Hub) -> None:
    hub.repos["org/tiny"], hub.slow = MODEL, True
    with fetching(hub) as first:
        assert hub.stalled.wait(60)
        first.kill()
        first.wait()
    assert not any(model.cached for model in list_models() if model.source == "org/tiny")
    hub.slow = False
    hub.go_on.set()
    folder = fetch(ModelConfig(model_name="org/tiny")).folder
    assert (folder / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
