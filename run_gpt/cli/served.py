"""`rungpt models served`, `load` and `unload`: the models that a running server holds."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from run_gpt.cli import options
from run_gpt.cli.adapters import ENDPOINT, Endpoint
from run_gpt.models.sizes import size_text

Name = Annotated[str, typer.Argument(help="Name in the server: see `rungpt models served`.")]


def served(endpoint: Endpoint = ENDPOINT, api_key: options.ApiKey = None) -> None:
    """List the models of a server, the default one first: state, most memory, tokens of context."""
    from run_gpt.client import Client

    table = Table("name", "state", "memory", "context", box=None, pad_edge=False)
    for card in Client(options.token(api_key)).list_models(endpoint):
        context = f"{card.max_model_len:,}" if card.max_model_len else "-"
        table.add_row(card.id, card.state, _size(card.memory), context)
    Console(highlight=False, markup=False).print(table)


def load(name: Name, endpoint: Endpoint = ENDPOINT, api_key: options.ApiKey = None) -> None:
    """Load a model into a server's memory, which a request for it does, too."""
    from run_gpt.cli.progress import progress_bars
    from run_gpt.client import Client

    with Client(options.token(api_key)).get_model(name, endpoint) as model, progress_bars() as on_progress:
        state = model.load(on_progress=on_progress)
    print(f"{name} is loaded, and takes {_size(state.memory)} at most" if state.memory else f"{name} is loaded")


def unload(name: Name, endpoint: Endpoint = ENDPOINT, api_key: options.ApiKey = None) -> None:
    """Take a model that nobody uses out of a server's memory; the next request for it loads it again."""
    from run_gpt.client import Client

    with Client(options.token(api_key)).get_model(name, endpoint) as model:
        print(f"{name} is {model.unload().state}")


def _size(count: float | None) -> str:
    return "-" if count is None else size_text(int(count))
