"""Owns a project of Docker Compose: its file, the check that RunGPT made it, and the commands on it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from run_gpt.config import API_KEY_VARIABLE
from run_gpt.deploy.compose import MARK
from run_gpt.deploy.docker_program import check_docker, docker, docker_lines, json_rows
from run_gpt.deploy.target import Report
from run_gpt.errors import SetupError


@dataclass(frozen=True)
class Project:
    """Docker Compose's project of a deployment: its name and the file that it was made from."""

    name: str
    file: Path
    key: str | None = None
    """API key for the file's variable; only `up` of the gateway passes it on."""

    def read(self, *arguments: str) -> str:
        """Return the output of `docker compose ARGUMENTS`. Raises SetupError with its error."""
        return docker(*self._command(*arguments), env=self._env())

    def lines(self, *arguments: str) -> Iterator[str]:
        """Yield the lines of `docker compose ARGUMENTS` as they come, errors among them."""
        return docker_lines(*self._command(*arguments), env=self._env())

    def run(self, *arguments: str, report: Report) -> None:
        """Run `docker compose ARGUMENTS` to its end and pass its progress to `report`."""
        for line in self.lines(*arguments):
            report(line.strip())

    def containers(self) -> list[dict[str, Any]]:
        """Return all containers, ended ones too, as `docker compose ps` describes them, with `Restarts` of each."""
        rows = json_rows(self.read("ps", "--all", "--format", "json"))
        if rows:
            inspect = ("container", "inspect", "--format", "{{.RestartCount}}")
            for row, count in zip(rows, docker(*inspect, *(row["Name"] for row in rows)).split(), strict=True):
                row["Restarts"] = int(count)
        return rows

    def services(self) -> dict[str, Any]:
        """Return the services of the file."""
        services: dict[str, Any] = yaml.safe_load(self.file.read_text(encoding="utf-8"))["services"]
        return services

    def last_words(self) -> str:
        """Return the reason why a container ended: the last error that it printed, else the last line."""
        lines = self.read("logs", "--no-color", "--no-log-prefix", "--tail", "50").splitlines()
        said = [line.removeprefix("rungpt: ") for line in lines if line.startswith("rungpt: ")]
        return (said or [line for line in lines if line.strip()] or ["it printed nothing"])[-1]

    def _command(self, *arguments: str) -> tuple[str, ...]:
        return ("compose", "--project-name", self.name, "--file", str(self.file), *arguments)

    def _env(self) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith("COMPOSE_")}
        key = self.key if self.key is not None else mine.get(API_KEY_VARIABLE)
        return mine | {API_KEY_VARIABLE: key or "not given, and not needed"}


def find_project(name: str) -> Project:
    """Return the deployment of this name. Raises SetupError if there is none, or if RunGPT did not make it."""
    check_docker()
    file = _file_of(name)
    if file is None:
        raise SetupError(f"there is no deployment {name}: `docker compose ls --all` lists them")
    if not file.is_file():
        raise SetupError(
            f"the file that {name} was made from, {file}, is not on this machine: deploy it again, or end it with "
            f"`docker compose -p {name} down`"
        )
    _check_ours(name, file)
    return Project(name, file)


def check_free(name: str) -> None:
    """Raise SetupError if another project has this name: its containers would be replaced."""
    file = _file_of(name)
    if file is not None and file.is_file():
        _check_ours(name, file)


def _file_of(name: str) -> Path | None:
    for row in json_rows(docker("compose", "ls", "--all", "--format", "json")):
        if row["Name"] == name:
            return Path(row["ConfigFiles"].split(",")[0])
    return None


def _check_ours(name: str, file: Path) -> None:
    if not file.read_text(encoding="utf-8").startswith(MARK):
        raise SetupError(
            f"{name} is a project of Docker Compose that `rungpt deploy` has not made, but {file}: take another name, "
            "or use `docker compose`"
        )
