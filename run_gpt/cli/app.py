"""The `rungpt` application. A command's module is imported when the command is called, or for the help of all."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

_HOME = {
    "serve": ("serve", "serve"),
    "generate": ("ask", "generate"),
    "chat": ("ask", "chat"),
    "embed": ("ask", "embed"),
    "playground": ("playground", "playground"),
    "top": ("top", "top"),
    "models": ("models", "app"),
    "adapters": ("adapters", "app"),
    "deploy": ("deploy", "app"),
    "bench": ("bench", "app"),
}
"""Module of each command, and the name there of its function, or of the application that has its commands."""


class _Commands(Mapping[str, Any]):
    """Commands by their names; each is made when it is looked up."""

    def __getitem__(self, name: str) -> Any:
        module, attribute = _HOME[name]
        found = getattr(import_module(f"run_gpt.cli.{module}"), attribute)
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        if isinstance(found, typer.Typer):
            alone.add_typer(found, name=name)
        else:
            alone.command(name)(found)
        return typer.main.get_group(alone).commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_HOME)

    def __len__(self) -> int:
        return len(_HOME)


class _Group(TyperGroup):
    """Group of all commands."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.commands = _Commands()  # type: ignore[assignment]  # nothing is added to them

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands."""
        return list(_HOME)


def prepare(arguments: list[str]) -> None:
    """Import the module of the command that these arguments call, if they do."""
    if arguments and arguments[0] in _HOME:
        import_module(f"run_gpt.cli.{_HOME[arguments[0]][0]}")


app = typer.Typer(
    cls=_Group,
    help="Serve large language models over gRPC and HTTP, or use them right here.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Users of the first RunGPT write --device_map.
    context_settings={
        "token_normalize_func": lambda token: token.replace("_", "-"),
        "help_option_names": ["-h", "--help"],
    },
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from run_gpt import __version__

        print(f"rungpt {__version__}")
        raise typer.Exit


@app.callback()
def rungpt(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass
