"""`rungpt serve`."""

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from run_gpt.cli import options
from run_gpt.config import DEFAULT_MODEL, ServeConfig, ServedModel, flag_of, options_of
from run_gpt.errors import SetupError

_OF_A_MODEL = {f.name for f in fields(ServedModel)}


@options.with_config(ServeConfig, "settings")
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the Flow's YAML, which `jina flow --uses FILE` runs, and end.")
    ] = False,
    settings: dict[str, Any] | None = None,
) -> None:
    """Serve MODEL, or several, over gRPC and HTTP until Ctrl-C, which lets running requests finish."""
    from run_gpt.cli.serving import check_names, run_server

    settings = settings or {}
    if config_file is not None:
        config = _of_file(config_file, context, settings)
    else:
        config = _of_names(model_names or [DEFAULT_MODEL], settings)
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


def _of_names(names: list[str], settings: dict[str, Any]) -> ServeConfig:
    """Return the configuration of one model, or of several models with the same settings."""
    from run_gpt.cli.models_file import hosting

    count = len(names)
    hosted = {name: settings.pop(name) for name in ("preload", "unload_after")}
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
    for name in _given(context, [name for name in settings if name in _OF_A_MODEL]):
        flag = flag_of(name, options_of(ServedModel)[name])
        raise SetupError(f"{flag} beside --config: the file says it of its models, under `defaults` or of each")
    return replace(read_models_file(file), **{name: settings[name] for name in _given(context, settings)})


def _given(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Return the names of the parameters that the user set, on the command line or in the environment."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return [name for name, source in sources.items() if source and source.name in ("COMMANDLINE", "ENVIRONMENT")]
