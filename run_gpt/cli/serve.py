"""`rungpt serve`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from run_gpt.cli import options
from run_gpt.config import API_KEY_VARIABLE, DEFAULT_MODEL, Runner, ServeConfig

DOORS = "Doors"
ACCESS = "Access"
SIZE = "Size"


@options.with_loading
def serve(
    model_name: options.ModelName = DEFAULT_MODEL,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen on; default: 127.0.0.1, and 0.0.0.0, the network, once there is a key.",
            rich_help_panel=DOORS,
        ),
    ] = None,
    grpc_port: Annotated[
        int, typer.Option(min=1, max=65535, help="gRPC port.", rich_help_panel=DOORS)
    ] = ServeConfig.grpc_port,
    http_port: Annotated[
        int, typer.Option(min=1, max=65535, help="HTTP port.", rich_help_panel=DOORS)
    ] = ServeConfig.http_port,
    replicas: Annotated[
        int, typer.Option(min=1, help="Processes that each hold the whole model.", rich_help_panel=SIZE)
    ] = ServeConfig.replicas,
    max_running: Annotated[
        int, typer.Option(min=1, help="Sequences decoded together, in each replica.", rich_help_panel=SIZE)
    ] = ServeConfig.max_running,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Sequences that may wait; one more gets a 429.", rich_help_panel=SIZE)
    ] = ServeConfig.max_waiting,
    max_step_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens in one step; longer prompts are taken in parts.", rich_help_panel=SIZE)
    ] = ServeConfig.max_step_tokens,
    runner: Annotated[
        Runner,
        typer.Option(
            help="native: Llama and its like on a CPU; fast: them elsewhere; generic: all families; alone: row by row.",
            rich_help_panel=SIZE,
        ),
    ] = ServeConfig.runner,
    max_context: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of prompt and answer together.", rich_help_panel=SIZE)
    ] = None,
    max_cache_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens in the cache, of all sequences; default: by free memory.", rich_help_panel=SIZE
        ),
    ] = None,
    reuse_prefixes: Annotated[
        bool, typer.Option(help="Reuse the cache for prompts that begin like earlier ones.", rich_help_panel=SIZE)
    ] = ServeConfig.reuse_prefixes,
    speculate: Annotated[
        bool, typer.Option(help="Draft tokens from earlier text and check several at once.", rich_help_panel=SIZE)
    ] = ServeConfig.speculate,
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Compile the model with torch.compile; generic runner.", rich_help_panel=SIZE),
    ] = ServeConfig.compile,
    request_timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds until a request gets a 504.", rich_help_panel=DOORS)
    ] = ServeConfig.request_timeout,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds that running requests get when it stops.", rich_help_panel=DOORS)
    ] = ServeConfig.drain_seconds,
    max_body_bytes: Annotated[
        int, typer.Option(min=1, help="Largest request body; a larger one gets a 413.", rich_help_panel=DOORS)
    ] = ServeConfig.max_body_bytes,
    runtime_adapters: Annotated[
        bool,
        typer.Option("--runtime-adapters", help="Let requests load and unload LoRA adapters.", rich_help_panel=DOORS),
    ] = ServeConfig.runtime_adapters,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=API_KEY_VARIABLE,
            help="The key that requests must have; better in the environment: others see the command line in `ps`.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            resolve_path=True,
            help="Keys with names, a line NAME: KEY each; read anew when it changes.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin of web pages that may call the HTTP door; * is any; several times.", rich_help_panel=ACCESS
        ),
    ] = None,
    log_requests: Annotated[
        bool,
        typer.Option(
            "--log-requests",
            help="Log a line for each request: route, status, seconds, the key's name.",
            rich_help_panel=ACCESS,
        ),
    ] = ServeConfig.log_requests,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the Flow's YAML, which `jina flow --uses FILE` runs, and end.")
    ] = False,
    loading: dict[str, Any] | None = None,
) -> None:
    """Serve MODEL over gRPC and HTTP until Ctrl-C, which lets running requests finish."""
    config = ServeConfig(
        model_name=model_name,
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        replicas=replicas,
        max_running=max_running,
        max_waiting=max_waiting,
        max_step_tokens=max_step_tokens,
        runner=runner,
        max_context=max_context,
        max_cache_tokens=max_cache_tokens,
        reuse_prefixes=reuse_prefixes,
        speculate=speculate,
        compile=compile,
        request_timeout=request_timeout,
        drain_seconds=drain_seconds,
        max_body_bytes=max_body_bytes,
        runtime_adapters=runtime_adapters,
        api_key=api_key,
        api_key_file=api_key_file,
        cors_origins=tuple(cors_origin or ()),
        log_requests=log_requests,
        **(loading or {}),
    )
    if dry_run:
        from run_gpt.flows import render_flow

        print(render_flow(config), end="")
        return
    from run_gpt.cli.serving import run_server

    raise typer.Exit(run_server(config))
