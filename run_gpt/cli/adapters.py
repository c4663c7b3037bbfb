"""`rungpt adapters`: the LoRA adapters of a running server."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from run_gpt.cli import options

if TYPE_CHECKING:
    from run_gpt.client.model import Model

app = typer.Typer(help="The LoRA adapters of a running server: list, load, unload.", no_args_is_help=True)

Endpoint = Annotated[
    str, typer.Option("--endpoint", help="The server, such as grpc://127.0.0.1:51000 or http://127.0.0.1:52000.")
]
Name = Annotated[str, typer.Argument(help="Name of the adapter in requests.")]
ENDPOINT = "grpc://127.0.0.1:51000"


@app.command("list")
def list_adapters(endpoint: Endpoint = ENDPOINT, api_key: options.ApiKey = None) -> None:
    """Print the names of the adapters that requests may name."""
    with _opened(endpoint, api_key) as model:
        _print(model.adapters())


@app.command()
def load(
    name: Name,
    path: Annotated[str, typer.Argument(help="A folder on the server's machine, or a hub id.")],
    endpoint: Endpoint = ENDPOINT,
    api_key: options.ApiKey = None,
) -> None:
    """Load an adapter into a server that was started with --runtime-adapters; print all names."""
    with _opened(endpoint, api_key) as model:
        _print(model.load_adapter(name, path))


@app.command()
def unload(name: Name, endpoint: Endpoint = ENDPOINT, api_key: options.ApiKey = None) -> None:
    """Unload an adapter once the requests that have it have ended; print the names of the others."""
    with _opened(endpoint, api_key) as model:
        _print(model.unload_adapter(name))


@contextmanager
def _opened(endpoint: str, api_key: str | None) -> "Iterator[Model]":
    from run_gpt.client import Client

    with Client(options.token(api_key)).get_model(endpoint=endpoint) as model:
        yield model


def _print(names: list[str]) -> None:
    for name in names:
        print(name)
