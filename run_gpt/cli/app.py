"""The `rungpt` application: registers all commands."""

import typer

from run_gpt.cli import adapters, ask, bench, bench_model, check, deploy, models, playground, serve, served, top

app = typer.Typer(
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


app.command()(serve.serve)
app.command()(ask.generate)
app.command()(ask.chat)
app.command()(ask.embed)
app.command()(playground.playground)
app.command()(top.top)
models.app.command(rich_help_panel=models.CACHE)(check.check)
for command in (served.served, served.load, served.unload):
    models.app.command(rich_help_panel="A running server")(command)
app.add_typer(models.app, name="models")
app.add_typer(adapters.app, name="adapters")
app.add_typer(deploy.app, name="deploy")
bench.app.command()(bench_model.model)
app.add_typer(bench.app, name="bench")
