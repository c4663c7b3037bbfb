"""Endpoints, tokens and models that a user names. A fault in them must be reported at once, in one line."""

import subprocess
import sys

import pytest

from run_gpt.client import Client
from run_gpt.client.endpoint import Endpoint
from run_gpt.errors import InvalidRequest


@pytest.mark.parametrize(
    ("url", "full", "address"),
    [
        ("grpc://0.0.0.0:51000", "grpc://0.0.0.0:51000", "127.0.0.1:51000"),
        ("grpc://localhost", "grpc://localhost:51000", "localhost:51000"),
        ("grpcs://example.org/", "grpcs://example.org:443", "example.org:443"),
        ("http://example.org", "http://example.org:52000", "example.org:52000"),
        ("HTTPS://Example.org/a/b/", "https://example.org:443/a/b", "example.org:443"),
        ("http://[::1]:8080", "http://[::1]:8080", "[::1]:8080"),
        ("grpc://[::]:51000", "grpc://[::]:51000", "[::1]:51000"),
    ],
)
def test_endpoints_in_every_form(url, full, address):
    endpoint = Endpoint.parse(url)
    assert (str(endpoint), endpoint.address) == (full, address)
    assert endpoint.is_grpc == full.startswith("grpc")
    assert endpoint.is_secure == full.split(":")[0].endswith("s")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "localhost:51000",
        "grpc://",
        "http:///generate",
        "ftp://example.org",
        "grpc://example.org:port",
        "grpc://example.org:99999",
        "grpc://example.org/path",
        "http://user:password@example.org",
        "http://example.org/?a=b",
        "http://example.org/#a",
        "http://exa mple.org",
        "http://[::1",
        None,
        51000,
        b"http://example.org",
    ],
)
def test_another_form_is_refused_with_the_forms_that_there_are(url):
    with pytest.raises(InvalidRequest, match=r"grpc://HOST:PORT, .*https://HOST:PORT") as raised:
        Client().get_model(endpoint=url)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("token", ["", " ", "geheim\nb", " geheim", "gehéim"])
def test_a_token_that_no_header_can_carry_is_refused_without_being_shown(token):
    with pytest.raises(InvalidRequest, match="token") as raised:
        Client(token=token)
    assert "geh" not in str(raised.value)


def test_the_client_loads_neither_torch_nor_jina_nor_docarray():
    """They take seconds to load, and a script that only sends requests to a server must not wait for them."""
    script = """
import sys
from run_gpt import Client
for endpoint in ("grpc://127.0.0.1:1", "http://127.0.0.1:1"):
    model = Client().get_model(endpoint=endpoint)
    try:
        model.generate("hi")
    except Exception as error:
        print(type(error).__name__)
print(sorted({"torch", "transformers", "jina", "docarray", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-W", "default", "-c", script], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Unavailable\nUnavailable\n[]\n", b"")
