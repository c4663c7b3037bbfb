"""`rungpt playground` opens the page of a running server, or says how to start one."""

import http.server
import threading
import webbrowser

import pytest
from typer.testing import CliRunner

from run_gpt.cli import main
from run_gpt.cli.app import app


@pytest.fixture
def answering():
    """Yield a function: `answering(status)` returns the URL of a server that answers every request with this status."""
    servers = []

    def start(status):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status if self.path == "/health" else 404)
                self.end_headers()

            def log_message(self, *_):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def opened(monkeypatch):
    """Return the list of URLs that a browser was asked to open."""
    urls = []
    monkeypatch.setattr(webbrowser, "open", lambda url: urls.append(url) or True)
    return urls


def test_it_opens_the_page_and_prints_its_url(answering, opened):
    url = answering(200)
    done = CliRunner().invoke(app, ["playground", "--url", f"{url}/"])
    assert done.stdout == f"{url}/playground\n"
    assert opened == [f"{url}/playground"]


def test_print_opens_nothing(answering, opened):
    url = answering(200)
    assert CliRunner().invoke(app, ["playground", "--url", url, "--print"]).stdout == f"{url}/playground\n"
    assert opened == []


def test_a_machine_without_a_browser_is_told(answering, monkeypatch):
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    done = CliRunner().invoke(app, ["playground", "--url", answering(200)])
    assert done.exit_code == 0
    assert "open the URL yourself" in done.stderr


def fail(monkeypatch, capsys, url):
    monkeypatch.setattr("sys.argv", ["rungpt", "playground", "--url", url])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_no_server_is_one_line_that_says_how_to_start_one(monkeypatch, capsys, opened):
    said = fail(monkeypatch, capsys, "http://name:secret@127.0.0.1:9")
    assert "rungpt serve" in said
    assert "secret" not in said
    assert opened == []


def test_another_server_is_told(monkeypatch, capsys, answering):
    assert "500" in fail(monkeypatch, capsys, answering(500))


@pytest.mark.parametrize("url", ["127.0.0.1:52000", "grpc://127.0.0.1:51000", "http://"])
def test_what_is_no_http_url_is_told(monkeypatch, capsys, url):
    assert "http://HOST:PORT" in fail(monkeypatch, capsys, url)


def test_without_an_address_it_asks_where_serve_listens(monkeypatch, capsys):
    """Most users type the command without an address."""
    asked = []
    monkeypatch.setattr("run_gpt.cli.playground.check_alive", asked.append)
    assert CliRunner().invoke(app, ["playground", "--print"]).stdout == "http://127.0.0.1:52000/playground\n"
    assert asked == ["http://127.0.0.1:52000"]
