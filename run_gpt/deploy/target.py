"""Owns the interface of a target, a platform that runs deployments and reports their status."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from run_gpt.deploy.deployment import Deployment

Report = Callable[[str], None]
"""Function that takes a line of progress for users."""
Phase = Literal["starting", "serving", "failed", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """URLs for requests, such as `http://10.0.0.1:52000` and `grpc://10.0.0.1:51000`; None if not known."""

    http: str | None = None
    grpc: str | None = None


@dataclass(frozen=True, kw_only=True)
class Status:
    """Status of one deployment, as its platform reports it."""

    name: str
    phase: Phase
    ready: int | None = None
    """Number of replicas that serve; None if the platform does not report it."""
    wanted: int | None = None
    endpoints: Endpoints = Endpoints()
    notes: tuple[str, ...] = ()
    """Reasons why it does not serve, one line each."""


class Target(Protocol):
    """Platform for deployments: a frozen dataclass whose fields, made by `option`, are options of `rungpt deploy`.

    Each method except `render` calls the platform, and raises SetupError in one line when the platform refuses or
    cannot be reached, or when there is no such deployment. If a platform lacks a feature, the SetupError says what to
    do instead.
    """

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return the files that `deploy` gives to the platform, by name; they contain no key. Raises SetupError."""

    def deploy(self, deployment: Deployment, report: Report) -> Endpoints:
        """Make or change the deployment, and return when it serves."""

    def status(self, name: str) -> Status:
        """Return the present status of the deployment."""

    def logs(self, name: str, *, follow: bool, lines: int) -> Iterator[str]:
        """Yield the last lines of its output, and, if `follow`, new lines as they come."""

    def scale(self, name: str, replicas: int, report: Report) -> None:
        """Change the number of executors."""

    def remove(self, name: str, report: Report) -> None:
        """Stop the deployment and delete everything that was made for it."""


def option(default: Any, help: str) -> Any:
    """Return a field of a target that the command line offers as `--its-name`."""
    return field(default=default, metadata={"help": help})
