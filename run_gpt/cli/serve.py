"""`rungpt serve`."""

from typing import Annotated, Any

import typer

from run_gpt.cli import options
from run_gpt.config import DEFAULT_MODEL, ServeConfig
from run_gpt.errors import SetupError


@options.with_loading
@options.with_serving
def serve(
    model_name: options.ModelName = DEFAULT_MODEL,
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the Flow's YAML, which `jina flow --uses FILE` runs, and end.")
    ] = False,
    loading: dict[str, Any] | None = None,
    serving: dict[str, Any] | None = None,
) -> None:
    """Serve MODEL over gRPC and HTTP until Ctrl-C, which lets running requests finish."""
    config = ServeConfig(
        model_name=model_name,
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        **(serving or {}),
        **(loading or {}),
    )
    if dry_run:
        if config.log_format != ServeConfig.log_format:
            raise SetupError(
                f"--log-format {config.log_format} is in no Flow, and `jina flow` writes a log of its own: leave it out"
            )
        from run_gpt.flows import render_flow

        print(render_flow(config), end="")
        return
    from run_gpt.cli.serving import run_server

    raise typer.Exit(run_server(config))
