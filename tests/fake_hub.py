"""A small hub on this machine: the API, files and revisions that huggingface_hub asks for."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import unquote, urlsplit

import pytest

SHA = "1" * 40


@dataclass
class Hub:
    """The hub, which serves `repos`."""

    url: str
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files of each repository's main branch."""
    tags: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    """Files of other revisions, by repository and tag."""
    asked: list[str] = field(default_factory=list)
    """Paths of the requests so far."""
    tokens: list[str | None] = field(default_factory=list)
    """Authorization of each request so far."""
    stalled: Event = field(default_factory=Event)
    """Set when half of a file of weights has been sent; the rest is sent after `go_on`."""
    go_on: Event = field(default_factory=Event)
    slow: bool = False
    gated: bool = False
    """True when files need consent that was not given; their list is public, as on the hub."""

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """Return the files of a revision, given as a branch, a tag or a commit; None if there is none."""
        for (name, tag), files in {(repo, "main"): self.repos[repo], **self.tags}.items():
            if name == repo and revision in (tag, commit(tag)):
                return files
        return None

    def commit_of(self, repo: str, revision: str) -> str:
        """Return the commit of a revision that there is."""
        tags = ["main", *(tag for name, tag in self.tags if name == repo)]
        return next(commit(tag) for tag in tags if revision in (tag, commit(tag)))


def commit(tag: str) -> str:
    """Return the commit of a branch or a tag."""
    return SHA if tag == "main" else hashlib.sha1(tag.encode()).hexdigest()


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """Return the handler of the hub's requests."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path.strip("/"))
            hub.asked.append(path)
            hub.tokens.append(self.headers.get("Authorization"))
            parts = path.split("/")
            if parts[0] == "api":
                self._api("/".join(parts[2:4]), parts[4:])
                return
            if hub.gated:
                self._answer(b"", 403, {"X-Error-Code": "GatedRepo"})
                return
            files = hub.files("/".join(parts[:2]), parts[3]) or {}
            self._file(files["/".join(parts[4:])], hub.commit_of("/".join(parts[:2]), parts[3]))

        def _api(self, repo: str, rest: list[str]) -> None:
            if repo not in hub.repos:
                self._answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
                return
            if rest[:1] == ["refs"]:
                tags = [tag for name, tag in hub.tags if name == repo]
                refs = {"branches": [_ref("main")], "tags": [_ref(tag) for tag in tags], "converts": []}
                self._answer(json.dumps(refs).encode(), 200, {"Content-Type": "application/json"})
                return
            revision = rest[1] if len(rest) > 1 else "main"
            files = hub.files(repo, revision)
            if files is None:
                self._answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
            elif rest[:1] == ["tree"]:
                tree = [{"type": "file", "path": n, "size": len(c), "oid": etag(c)} for n, c in files.items()]
                self._answer(json.dumps(tree).encode(), 200, {"Content-Type": "application/json"})
            else:
                siblings = [{"rfilename": n, "size": len(c)} for n, c in files.items()]
                body = {"id": repo, "modelId": repo, "sha": hub.commit_of(repo, revision), "private": False}
                body |= {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0}
                self._answer(json.dumps(body).encode(), 200, {"Content-Type": "application/json"})

        def _file(self, content: bytes, sha: str) -> None:
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            headers = {"ETag": f'"{etag(content)}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
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
    """Return the name of a file's content."""
    return hashlib.sha1(content).hexdigest()


def _ref(name: str) -> dict[str, str]:
    return {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit(name)}


@contextmanager
def serving_hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub, and let this process and its children use it, with caches of their own in `root`."""
    from huggingface_hub import constants

    server = Hub("")
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler(server))
    server.url = f"http://127.0.0.1:{httpd.server_port}"
    for name in ("HF_HUB_OFFLINE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "RUNGPT_CACHE": str(root / "cache"),
        "HF_HOME": str(root / "hf"),
        "HF_HUB_CACHE": str(root / "hf/hub"),
        "HF_ENDPOINT": server.url,
        "HF_HUB_DISABLE_XET": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root / "hf/hub"))
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    thread = Thread(target=httpd.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.go_on.set()
        httpd.shutdown()
        thread.join(10)
        httpd.server_close()
