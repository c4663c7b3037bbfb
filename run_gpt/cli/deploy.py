"""`rungpt deploy`."""

import sys
from collections.abc import Callable
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from run_gpt.cli import options
from run_gpt.cli.progress import console
from run_gpt.config import DEFAULT_MODEL, HostConfig, Panel, ServeConfig
from run_gpt.deploy import TARGETS, Autoscale, Deployment, Endpoints, Target
from run_gpt.deploy.deployment import ONE_MODEL
from run_gpt.errors import SetupError

REPLICA = "Each replica"
_MODEL = "MODEL"
_OF_THE_TARGET = {
    "host",
    "grpc_port",
    "http_port",
    "tls_cert",
    "tls_key",
    "memory_budget",
    *(f.name for f in fields(HostConfig)),
}
"""Settings of a server that its platform chooses."""


class _ModelOrCommand(TyperGroup):
    """Command group that takes a first argument that is not a command name as the MODEL to deploy."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_MODEL, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ModelOrCommand,
    help="Deploy a model to Jina Cloud, Kubernetes, Docker Compose or AWS, and manage the deployment.\n\n"
    "`rungpt deploy MODEL --cloud kubernetes --replicas 2` deploys it; `rungpt deploy MODEL --help` shows the options.",
    no_args_is_help=True,
)

Cloud = StrEnum("Cloud", {name: name for name in TARGETS})  # type: ignore[misc]
CloudOption = Annotated[Cloud, typer.Option("--cloud", help="The engine that runs it.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the deployment, which `deploy` printed.")]


def with_target(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of all targets to a command. The command receives those that were given as `of_target`."""
    made = []
    for cloud, kind in TARGETS.items():
        for field in fields(cast("Any", kind)):
            flag = f"--{field.name.replace('_', '-')}"
            shown = "" if field.default in (None, "") else f" (default: {field.default})"
            option = typer.Option(flag, help=field.metadata["help"] + shown, rich_help_panel=f"--cloud {cloud}")
            made.append(options.keyword(field.name, cast("Any", field.type) | None, None, option))

    def collect(given: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if value is not None}

    return options.extended(command, "of_target", made, collect)


def target_of(cloud: str, settings: dict[str, Any]) -> Target:
    """Return the target with its options. Raises SetupError for an option of another target."""
    kind = TARGETS[cloud]
    for name in settings.keys() - {field.name for field in fields(cast("Any", kind))}:
        raise SetupError(f"--{name.replace('_', '-')} is not for --cloud {cloud}: leave it out")
    return kind(**settings)


@app.command(_MODEL)
@with_target
@options.with_config(ServeConfig, "settings", leave_out=_OF_THE_TARGET)
def deploy(
    cloud: CloudOption,
    model_names: options.ModelNames = None,
    name: Annotated[str, typer.Option(help="Name of the deployment; default: rungpt- and the model's name.")] = "",
    image: Annotated[str, typer.Option(help="The image that its containers run.")] = Deployment.image,
    gateways: Annotated[
        int, typer.Option(min=1, help="Processes that take requests.", rich_help_panel=Panel.SIZE)
    ] = Deployment.gateways,
    autoscale: Annotated[
        str | None,
        typer.Option(
            metavar="MIN:MAX[:IN_FLIGHT]",
            help=f"Replicas by load: so many that each has IN_FLIGHT requests (default: {Autoscale.in_flight}).",
            rich_help_panel=Panel.SIZE,
        ),
    ] = None,
    cpus: Annotated[float, typer.Option(help="CPU cores.", rich_help_panel=REPLICA)] = Deployment.cpus,
    memory: Annotated[
        float, typer.Option(help="Memory in GiB; default: what the model takes.", rich_help_panel=REPLICA)
    ] = Deployment.memory_gib,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs.", rich_help_panel=REPLICA)] = Deployment.gpus,
    open_to_all: Annotated[
        bool,
        typer.Option("--open", help="Let anyone who reaches it use it without a key.", rich_help_panel=Panel.ACCESS),
    ] = Deployment.open,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the files that the engine would get, and end.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(file_okay=False, help="Write these files into a folder, and end.")
    ] = None,
    settings: dict[str, Any] | None = None,
    of_target: dict[str, Any] | None = None,
) -> None:
    """Deploy MODEL, or update the deployment of this name; print its endpoints once it serves."""
    target = target_of(cloud, of_target or {})
    model_name, *more = model_names or [DEFAULT_MODEL]
    if more:
        raise SetupError(f"MODEL {model_name} {' '.join(more)}: {ONE_MODEL}")
    deployment = Deployment(
        server=ServeConfig(model_name=model_name, **(settings or {})),
        name=name,
        image=image,
        gateways=gateways,
        cpus=cpus,
        memory_gib=memory,
        gpus=gpus,
        autoscale=None if autoscale is None else Autoscale.parse(autoscale),
        open=open_to_all,
    )
    if output is not None:
        write_files(target.render(deployment), output)
    elif dry_run:
        print_files(target.render(deployment))
    else:
        _tell(f"deploying {deployment.model} as {deployment.name}")
        print_endpoints(target.deploy(deployment, _tell))


@app.command()
@with_target
def status(cloud: CloudOption, name: Name, of_target: dict[str, Any] | None = None) -> None:
    """Show a deployment's state, number of replicas and endpoints."""
    found = target_of(cloud, of_target or {}).status(name)
    print(f"{found.name}  {found.phase}")
    if found.wanted is not None:
        print(f"replicas  {found.ready if found.ready is not None else '?'} of {found.wanted} ready")
    print_endpoints(found.endpoints)
    for note in found.notes:
        print(note)


@app.command()
@with_target
def logs(
    cloud: CloudOption,
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option(min=1, help="Lines of each container.")] = 100,
    of_target: dict[str, Any] | None = None,
) -> None:
    """Print the output of a deployment's containers."""
    for line in target_of(cloud, of_target or {}).logs(name, follow=follow, lines=lines):
        print(line, flush=follow)


@app.command()
@with_target
def scale(
    cloud: CloudOption,
    name: Name,
    replicas: Annotated[int, typer.Argument(min=0, metavar="REPLICAS", help="Executors from now on.")],
    of_target: dict[str, Any] | None = None,
) -> None:
    """Change a deployment's number of replicas."""
    target_of(cloud, of_target or {}).scale(name, replicas, _tell)


@app.command()
@with_target
def remove(cloud: CloudOption, name: Name, of_target: dict[str, Any] | None = None) -> None:
    """Delete a deployment and everything that was created for it."""
    target_of(cloud, of_target or {}).remove(name, _tell)


def print_files(files: dict[str, str]) -> None:
    """Print all files as one text on stdout; if there are several, a comment with its name precedes each."""
    for name, text in files.items():
        if len(files) > 1:
            print(f"# --- {name}")
        print(text, end="" if text.endswith("\n") else "\n")


def write_files(files: dict[str, str], folder: Path) -> None:
    """Create the folder, write the files into it, and print their paths on stdout."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
        print(folder / name)


def print_endpoints(endpoints: Endpoints) -> None:
    """Print the URL of each endpoint on stdout, one a line."""
    for name, url in (("HTTP", endpoints.http), ("gRPC", endpoints.grpc)):
        if url is not None:
            print(f"{name}  {url}")
    sys.stdout.flush()


def _tell(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True, highlight=False)
