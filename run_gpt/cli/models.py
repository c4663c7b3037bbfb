"""`rungpt models`: the catalogue and the cache."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from run_gpt import models
from run_gpt.cli.check import check
from run_gpt.cli.served import load, served, unload
from run_gpt.errors import SetupError
from run_gpt.models.estimate import BYTES, Estimate, estimate_entry, estimate_folder
from run_gpt.models.files import entry_of
from run_gpt.models.sampling import defaults_text, sampling_defaults
from run_gpt.models.sizes import size_text
from run_gpt.models.stored import possible_precisions, stored_text
from run_gpt.process.devices import free_bytes

CACHE = "Catalogue and cache"
"""Heading of this module's commands in the help."""

app = typer.Typer(help="The models that can be served, and those that a running server holds.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(help="A catalogue name, or a hub id such as org/model, org/model@v1 or org/model:Q4_K_M.")
]
Shown = Annotated[
    str,
    typer.Argument(
        help="A catalogue name, a hub id such as org/model, org/model@v1 or org/model:Q4_K_M, or the path of a folder "
        "or a GGUF file."
    ),
]


@app.command("list", rich_help_panel=CACHE)
def list_models() -> None:
    """List the catalogue, and what else is in the cache."""
    table = Table("name", "download", "on disk", "licence", "description", box=None, pad_edge=False)
    for info in models.list_models():
        on_disk = size_text(info.disk_bytes) if info.disk_bytes else "-"
        incomplete = "" if info.cached or not info.disk_bytes else " (incomplete)"
        download = size_text(info.download_bytes) if info.download_bytes else "-"
        table.add_row(info.name, download, on_disk + incomplete, info.licence or "-", info.description)
    Console().print(table)


@app.command(rich_help_panel=CACHE)
def pull(
    name: Name,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit; default: the newest.")
    ] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Fetch pickled weights too.")] = False,
) -> None:
    """Fetch a model into the cache; print its folder."""
    from run_gpt.cli.progress import progress_bars

    with progress_bars() as on_progress:
        files = models.pull(name, revision=revision, allow_pickle=allow_pickle, on_progress=on_progress)
    print(files.folder)


@app.command(rich_help_panel=CACHE)
def show(name: Shown) -> None:
    """Show what is known of a model."""
    info = models.show(name)
    table = Table(show_header=False, box=None, pad_edge=False)
    for label, value in (
        ("name", info.name),
        ("description", info.description),
        ("also called", ", ".join(info.aliases)),
        ("source", info.source),
        ("licence", info.licence),
        ("parameters", f"{info.parameters:,}" if info.parameters else None),
        ("sampling defaults", defaults_text(sampling_defaults(info.folder, entry_of(name))[0])),
        ("weights in its files", stored_text(info.folder) if info.folder else None),
        ("download", size_text(info.download_bytes) if info.download_bytes else None),
        ("on disk", size_text(info.disk_bytes) if info.disk_bytes else "no"),
        ("folder", str(info.folder) if info.folder else None),
    ):
        if value:
            table.add_row(label, value)
    console = Console(soft_wrap=True)
    console.print(table)
    estimate = estimate_folder(info.folder) if info.folder else None
    if estimate is None and info.parameters:
        estimate = estimate_entry(info.parameters)
        console.print("About, by its number of parameters:")
    if estimate is not None:
        precisions = possible_precisions(info.folder) if info.folder else tuple(BYTES)
        console.print(_memory_table(estimate, free_bytes("cpu"), precisions))


def _memory_table(estimate: Estimate, free: int, precisions: tuple[str, ...]) -> Table:
    """Return a table of the memory that each precision needs, and whether it fits into the free memory of the CPU."""
    table = Table("precision", "weights", "cache of one context", "sum", "on this CPU", box=None, pad_edge=False)
    for precision in precisions:
        weights, cache = estimate.weights(precision), estimate.cache(precision, native=True)
        short = "fits with a shorter --max-context" if estimate.least(precision) <= free else "does not fit"
        verdict = "fits" if weights + cache <= free else short
        cache_text = size_text(cache) if cache else "not known"
        table.add_row(precision, size_text(weights), cache_text, size_text(weights + cache), verdict)
    return table


@app.command(rich_help_panel=CACHE)
def rm(name: Name) -> None:
    """Delete a model from the cache, which for one of the hub is the hub's own; other revisions of it stay."""
    freed = models.remove(name)
    if not freed:
        raise SetupError(f"{name} is not in the cache: nothing was deleted")
    print(f"{size_text(freed)} freed")


app.command(rich_help_panel=CACHE)(check)
for _command in (served, load, unload):
    app.command(rich_help_panel="A running server")(_command)
