"""Owns deployments on one machine with Docker Compose: writes its file and runs the `docker` program."""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

from run_gpt.config import EVERY_INTERFACE, EXECUTOR_TOKEN_VARIABLE, LOOPBACK
from run_gpt.deploy.compose import EXECUTOR, GATEWAY, KEYS_FOLDER, Published, render_compose
from run_gpt.deploy.compose_project import Project, check_free, find_project
from run_gpt.deploy.deployment import GRPC_PORT, HTTP_PORT, KEYS_PATH, Deployment
from run_gpt.deploy.docker_program import check_docker, docker
from run_gpt.deploy.target import Endpoints, Phase, Report, Status, option
from run_gpt.errors import SetupError
from run_gpt.process.executor_tls import ExecutorTLS

FILE = "compose.yml"
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class DockerCompose:
    """Docker Compose on this machine, or on the machine of docker's context or $DOCKER_HOST."""

    publish: str = option("", "Address of both ports; default: 127.0.0.1, and 0.0.0.0, the network, with a key.")
    publish_http: int = option(HTTP_PORT, "Port for HTTP.")
    publish_grpc: int = option(GRPC_PORT, "Port for gRPC.")
    executor_tls: str = option(
        "", "Folder with ca.crt, tls.crt and tls.key for TLS between the gateway and the executors."
    )
    compose_wait: float = option(1800.0, "Seconds to wait until it serves.")

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return compose.yml. Raises SetupError for autoscaling and several gateways, which Docker Compose lacks."""
        if deployment.autoscale is not None:
            raise SetupError(
                "Docker Compose does not scale by load: leave --autoscale out and change the number with "
                "`rungpt deploy scale`, or take --cloud kubernetes"
            )
        if deployment.gateways > 1:
            raise SetupError("Docker gives a port to one container: leave --gateways out, or take --cloud kubernetes")
        default = EVERY_INTERFACE if deployment.server.asks_for_key or deployment.open else LOOPBACK
        address = self.publish or default
        if address not in (LOOPBACK, "::1"):
            deployment.check_closed(f"anyone who reaches {address} of this machine")
        published = Published(address, self.publish_http, self.publish_grpc)
        return {FILE: render_compose(deployment, published, self._tls_folder)}

    @property
    def _tls_folder(self) -> Path | None:
        return Path(self.executor_tls).expanduser().absolute() if self.executor_tls else None

    def deploy(self, deployment: Deployment, report: Report) -> Endpoints:
        """Start or change the containers, and wait until all of them are healthy.

        The file and a copy of the key file are kept in $XDG_STATE_HOME/rungpt/docker/NAME (XDG_STATE_HOME's
        default: ~/.local/state), where the other methods find them.
        """
        files = self.render(deployment)
        if self._tls_folder is not None:
            ExecutorTLS(self._tls_folder)  # raises SetupError for files that containers could not use
        check_docker()
        check_free(deployment.name)
        folder = _state_folder(deployment.name)
        _write_files(folder, files[FILE], deployment.keys_file())
        project = Project(deployment.name, folder / FILE, deployment.server.api_key)
        try:
            project.run("up", "--detach", "--remove-orphans", report=report)
        except SetupError as error:
            raise _explained(error, deployment.image) from error
        return self._wait(project, deployment.replicas, report)

    def status(self, name: str) -> Status:
        """Return the status from `docker compose ps`."""
        return _status(name, find_project(name).containers())

    def logs(self, name: str, *, follow: bool, lines: int) -> Iterator[str]:
        """Yield the lines of `docker compose logs`, each prefixed with its container's name."""
        follows = ["--follow"] if follow else []
        yield from find_project(name).lines("logs", "--no-color", "--tail", str(lines), *follows)

    def scale(self, name: str, replicas: int, report: Report) -> None:
        """Start or end executors; `rungpt deploy` sets their number back to its --replicas."""
        project = find_project(name)
        if EXECUTOR not in project.services():
            raise SetupError(
                f"{name} has its GPUs shared out among its executors: give `rungpt deploy` another --replicas instead"
            )
        # Leave the other services and running executors as they are, even if the environment has changed.
        scale = ("--no-deps", "--no-recreate", "--scale", f"{EXECUTOR}={replicas}", EXECUTOR)
        project.run("up", "--detach", *scale, report=report)

    def remove(self, name: str, report: Report) -> None:
        """End and delete the containers, and the volume with its models."""
        project = find_project(name)
        project.run("down", "--volumes", "--remove-orphans", report=report)
        if project.file == _state_folder(name) / FILE:
            shutil.rmtree(project.file.parent)

    def _wait(self, project: Project, replicas: int, report: Report) -> Endpoints:
        """Wait until all are healthy. Raises SetupError, with the container's error, as soon as one has ended."""
        deadline = time.monotonic() + self.compose_wait
        reported = -1
        while True:
            status = _status(project.name, project.containers())
            if status.notes:
                raise SetupError(f"{'; '.join(status.notes)}: {project.last_words()}")
            if status.phase == "serving" and status.ready == replicas:
                return status.endpoints
            if status.ready != reported:
                reported = status.ready or 0
                report(f"{reported} of {replicas} replicas ready")
            if time.monotonic() > deadline:
                raise SetupError(
                    f"{project.name} does not serve after {self.compose_wait:g} s ({reported} of {replicas} replicas "
                    f"ready): see `rungpt deploy logs {project.name} --cloud docker`, or give more --compose-wait"
                )
            time.sleep(_POLL_SECONDS)


def _status(name: str, containers: list[dict[str, Any]]) -> Status:
    executors = [container for container in containers if container["Service"].startswith(EXECUTOR)]
    gateway = next((container for container in containers if container["Service"] == GATEWAY), None)
    failed = [container for container in containers if _fails(container)]
    stopped = all(container["State"] == "exited" and container["ExitCode"] == 0 for container in containers)
    ready = sum(container["Health"] == "healthy" for container in executors)
    phase: Phase = "stopped" if stopped or not executors else "failed" if failed else "starting"
    if ready and gateway is not None and gateway["Health"] == "healthy":
        phase = "serving"
    return Status(
        name=name,
        phase=phase,
        ready=ready,
        wanted=len(executors),
        endpoints=Endpoints() if gateway is None else _endpoints(gateway),
        notes=tuple(f"{c['Name']} {c['State']} (exit code {c['ExitCode']}, {c['Restarts']} restarts)" for c in failed),
    )


def _fails(container: dict[str, Any]) -> bool:
    """Return True if it has ended, or ended before it ever served: Docker restarts it again and again."""
    loads_again = container["Restarts"] > 0 and container["Health"] != "healthy"
    return container["State"] in ("exited", "restarting", "dead") or loads_again


def _endpoints(gateway: dict[str, Any]) -> Endpoints:
    published = {row["TargetPort"]: row for row in gateway["Publishers"] or () if row["PublishedPort"]}

    def url(scheme: str, target: int) -> str | None:
        if (row := published.get(target)) is None:
            return None
        host = {EVERY_INTERFACE: LOOPBACK, "": LOOPBACK, "::": "::1"}.get(row["URL"], row["URL"])
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{row['PublishedPort']}"

    return Endpoints(http=url("http", HTTP_PORT), grpc=url("grpc", GRPC_PORT))


def _state_folder(name: str) -> Path:
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "rungpt" / "docker" / name


def _write_files(folder: Path, compose: str, keys: str | None) -> None:
    """Write the files into a folder that only this user may enter.

    The container runs as another user; the folder of keys is mounted into it directly.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    (folder / FILE).write_text(compose, encoding="utf-8")
    if not (variables := folder / ".env").exists():
        variables.touch(0o600)
        variables.write_text(f"{EXECUTOR_TOKEN_VARIABLE}={token_urlsafe(32)}\n", encoding="utf-8")
    if keys is not None:
        (folder / KEYS_FOLDER).mkdir(exist_ok=True)
        (folder / KEYS_FOLDER).chmod(0o755)
        fresh = folder / KEYS_FOLDER / ".fresh"
        fresh.write_text(keys, encoding="utf-8")
        fresh.chmod(0o644)
        fresh.replace(folder / KEYS_FOLDER / KEYS_PATH.name)  # a running gateway never reads half of it


def _explained(error: SetupError, image: str) -> SetupError:
    """Return the error of `up`, or a hint at its most frequent cause, a missing image."""
    try:
        docker("image", "inspect", "--format", "{{.Id}}", image)
    except SetupError:
        return SetupError(
            f"{error.message}. If it is the image {image} that is missing: build it, in a clone of RunGPT, with "
            f"`docker build --tag {image} .`, or name another with --image"
        )
    return error
