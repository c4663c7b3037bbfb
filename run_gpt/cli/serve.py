"""`rungpt serve`."""

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from run_gpt.cli import options
from run_gpt.config import DEFAULT_MODEL, ServeConfig, ServedModel
from run_gpt.errors import SetupError

HOSTING = "Memory"
_OF_A_MODEL = {f.name for f in fields(ServedModel)}


@options.with_loading
@options.with_serving
def serve(
    context: typer.Context,
    model_names: options.ModelNames = None,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            dir_okay=False,
            help="A YAML file that has the models and the server's settings; instead of MODEL.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen on; default: 127.0.0.1, and 0.0.0.0, the network, once there is a key.",
            rich_help_panel=options.DOORS,
        ),
    ] = None,
    grpc_port: Annotated[
        int, typer.Option(min=1, max=65535, help="gRPC port.", rich_help_panel=options.DOORS)
    ] = ServeConfig.grpc_port,
    http_port: Annotated[
        int, typer.Option(min=1, max=65535, help="HTTP port.", rich_help_panel=options.DOORS)
    ] = ServeConfig.http_port,
    preload: Annotated[
        bool | None,
        typer.Option(
            help="Load at the start, else when a request needs it; default: the first of several models only.",
            rich_help_panel=HOSTING,
        ),
    ] = None,
    unload_after: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds without a request until a model is unloaded; 0: never. Default: 600 with several models.",
            rich_help_panel=HOSTING,
        ),
    ] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Most memory of all loaded models together, such as 8GB.", rich_help_panel=HOSTING
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the Flow's YAML, which `jina flow --uses FILE` runs, and end.")
    ] = False,
    loading: dict[str, Any] | None = None,
    serving: dict[str, Any] | None = None,
) -> None:
    """Serve MODEL, or several, over gRPC and HTTP until Ctrl-C, which lets running requests finish."""
    from run_gpt.cli.serving import check_names, run_server

    doors = {
        "host": host,
        "grpc_port": grpc_port,
        "http_port": http_port,
        "memory_budget": _parse_budget(memory_budget),
    }
    if config_file is not None:
        config = _of_file(config_file, context, {**doors, **(serving or {})})
    else:
        hosted = {"preload": preload, "unload_after": unload_after}
        config = _of_names(model_names or [DEFAULT_MODEL], {**doors, **(serving or {}), **(loading or {})}, hosted)
    check_names(config)
    if dry_run:
        if config.log_format != ServeConfig.log_format:
            raise SetupError(
                f"--log-format {config.log_format} is in no Flow, and `jina flow` writes a log of its own: leave it out"
            )
        from run_gpt.flows import render_flow

        print(render_flow(config), end="")
        return
    raise typer.Exit(run_server(config))


def _of_names(names: list[str], settings: dict[str, Any], hosted: dict[str, Any]) -> ServeConfig:
    """Return the configuration of one model, or of several models with the same settings."""
    from run_gpt.cli.models_file import hosting

    count = len(names)
    if count == 1:
        return ServeConfig(model_name=names[0], **settings, **hosting(0, count, **hosted))
    shared = {name: value for name, value in settings.items() if name in _OF_A_MODEL}
    server = {name: value for name, value in settings.items() if name not in _OF_A_MODEL}
    models = [ServedModel(model_name=n, **shared, **hosting(i, count, **hosted)) for i, n in enumerate(names)]
    return ServeConfig(models=tuple(models), **server)


def _of_file(file: Path, context: typer.Context, settings: dict[str, Any]) -> ServeConfig:
    """Return the configuration in the file, with the server options of the command line taking precedence.

    Raises SetupError if the command line also names models or gives options of models.
    """
    from run_gpt.cli.models_file import read_models_file

    if _given(context, ["model_names"]):
        raise SetupError("MODEL beside --config: the file has the models, under `models`")
    of_models = [name for name in context.params if name in _OF_A_MODEL or name in options.LOADING_OPTIONS]
    for name in _given(context, of_models):
        flag = options.LOADING_OPTIONS.get(name, f"--{name.replace('_', '-')}")
        raise SetupError(f"{flag} beside --config: the file says it of its models, under `defaults` or of each")
    return replace(read_models_file(file), **{name: settings[name] for name in _given(context, settings)})


def _given(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Return the names of the parameters that the user set, on the command line or in the environment."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return [name for name, source in sources.items() if source and source.name in ("COMMANDLINE", "ENVIRONMENT")]


def _parse_budget(text: str | None) -> int | None:
    from run_gpt.models.sizes import parse_size

    try:
        return None if text is None else parse_size(text)
    except ValueError as error:
        raise SetupError(f"--memory-budget {error}") from None
