"""Owns what a target is: an engine that runs deployments, and what it says of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from run_gpt.deploy.deployment import Deployment

Tell = Callable[[str], None]
"""Gets a line of progress for people."""
Phase = Literal["starting", "serving", "failed", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Doors:
    """Where requests go: URLs such as `http://10.0.0.1:52000` and `grpc://10.0.0.1:51000`; None where not known."""

    http: str | None = None
    grpc: str | None = None


@dataclass(frozen=True, kw_only=True)
class Status:
    """What an engine knows of one deployment."""

    name: str
    phase: Phase
    ready: int | None = None
    """Replicas that serve; None where the engine does not tell."""
    wanted: int | None = None
    doors: Doors = Doors()
    notes: tuple[str, ...] = ()
    """Lines that say why it is not serving."""


class Target(Protocol):
    """One engine. A target is a frozen dataclass; its fields, made by `option`, are options of `rungpt deploy`.

    Each call but `render` goes to the engine, and raises SetupError in one line when that refuses or cannot be
    reached, or when there is no such deployment. What an engine cannot do is a SetupError that says what can be done.
    """

    def render(self, deployment: Deployment) -> dict[str, str]:
        """The files that `deploy` hands to the engine, by name; no key is in them. Raises SetupError."""

    def deploy(self, deployment: Deployment, tell: Tell) -> Doors:
        """Make or change the deployment, and return when it serves."""

    def status(self, name: str) -> Status:
        """What there is of the deployment now."""

    def logs(self, name: str, *, follow: bool, lines: int) -> Iterator[str]:
        """Its last lines of output, and, if `follow`, those to come."""

    def scale(self, name: str, replicas: int, tell: Tell) -> None:
        """Change the number of executors."""

    def remove(self, name: str, tell: Tell) -> None:
        """End it and delete all that was made for it."""


def option(default: Any, help: str) -> Any:
    """A field of a target that the command line offers, as `--its-name`."""
    return field(default=default, metadata={"help": help})
