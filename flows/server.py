"""Owns a whole local server: the processes of a configuration, in the foreground or the background."""

import functools
import json
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType, TracebackType
from typing import Self

from run_gpt.config import (
    API_KEY_VARIABLE,
    EXECUTOR_TOKEN_VARIABLE,
    FLOW_VARIABLE,
    LOG_FORMAT_VARIABLE,
    LOOPBACK,
    ServeConfig,
)
from run_gpt.errors import SetupError
from run_gpt.flows.ending import STOP_MARGIN
from run_gpt.flows.ports import answers_ok, check_port, free_ports, is_listening, local_host
from run_gpt.flows.process import PodSpec
from run_gpt.flows.render import check_models, render_flow
from run_gpt.flows.sharing import crowding, replica_environments, with_memory
from run_gpt.flows.supervisor import OnEvent, Supervisor, printer
from run_gpt.process import logs

_REPORT_SECONDS = 1.0
"""Time that a server in the background gives its events, after its start, to be reported."""


def serve(config: ServeConfig, on_event: OnEvent | None = None) -> int:
    """Run a server until SIGTERM, SIGINT or SIGHUP; call it in the main thread. Returns the exit code, 0.

    The first signal drains: no new requests, running ones get `drain_seconds`, then every process ends. A Ctrl-C
    after that ends everything at once. Raises SetupError (PortInUse, ModelLoadError, ...), or the workers' error for a
    bad model name, when the server cannot start. `on_event`: default, write to stderr in the configured format.
    """
    supervisor = new_supervisor(resolve(config), on_event or printer(config.log_format))
    with _signals(supervisor):
        supervisor.run()
    return 0


class Server:
    """Server in the background, for tests and for Python: `with Server(config) as server: server.http_url`.

    Entering waits until it is ready and raises the errors of `serve`; leaving drains and ends every process. A port of
    0 in the configuration takes a free one. Signal handlers are not changed.
    """

    def __init__(self, config: ServeConfig, on_event: OnEvent | None = None):
        self.config = resolve(config)
        self._ready = threading.Event()
        self._error: BaseException | None = None
        report = on_event or printer(config.log_format)
        self._supervisor = new_supervisor(self.config, report, on_ready=self._ready.set)
        self._thread = threading.Thread(target=self._run, name="rungpt-supervisor", daemon=True)

    @property
    def http_url(self) -> str:
        return f"{'https' if self.config.uses_tls else 'http'}://{_url_host(self.config.listen_host)}:{self.config.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"{'grpcs' if self.config.uses_tls else 'grpc'}://{_url_host(self.config.listen_host)}:{self.config.grpc_port}"

    def pids(self) -> dict[str, int]:
        """Return the running processes' ids: `gateway`, `worker 0`, ...; with several models `worker 0 (NAME)`, ..."""
        return self._supervisor.pids()

    def start(self) -> None:
        """Start the server, and return when requests are answered; raises the error that keeps it from starting."""
        self._thread.start()
        try:
            self._ready.wait()
        except BaseException:  # Ctrl-C while it loads
            self.kill()
            raise
        if self._error is not None:
            self._thread.join()
            raise self._error
        self._supervisor.finish_reports(_REPORT_SECONDS)

    def stop(self) -> None:
        """Drain, end every process, and return when they have ended."""
        self._supervisor.request_stop()
        self._thread.join()

    def kill(self) -> None:
        """End every process at once, and return when they have ended."""
        self._supervisor.kill()
        self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            self._supervisor.run()
            if not self._ready.is_set():
                self._error = SetupError("the server was stopped while it started")
        except BaseException as error:
            if self._ready.is_set():
                raise
            self._error = error  # `start` raises it
        finally:
            self._ready.set()


def check_server(config: ServeConfig) -> None:
    """Raise PortInUse or SetupError if the server cannot listen on the configured ports, or cannot have its models."""
    logs.check_format(config.log_format, "--log-format")
    check_models(config)
    if config.grpc_port == config.http_port != 0:
        raise SetupError(f"gRPC and HTTP cannot share port {config.http_port}; give another with --http-port")
    check_port(config.listen_host, config.grpc_port, "--grpc-port")
    check_port(config.listen_host, config.http_port, "--http-port")


def resolve(config: ServeConfig) -> ServeConfig:
    """Return the configuration with free ports in place of port 0; raises the errors of `check_server`."""
    check_server(config)
    free = free_ports(2)
    return replace(config, grpc_port=config.grpc_port or free[0], http_port=config.http_port or free[1])


def new_supervisor(config: ServeConfig, on_event: OnEvent, on_ready: Callable[[], None] = lambda: None) -> Supervisor:
    """Return a supervisor for the processes of a resolved configuration; its warnings go to `on_event`.

    `on_ready`: see Supervisor. There is a worker for each replica of each model, those of the first model first.
    """
    warnings = crowding(config)
    config = with_memory(config)
    names = worker_names(config)
    ports = free_ports(len(names))
    flow = json.dumps(render_flow(config, worker_ports=ports))
    token = {EXECUTOR_TOKEN_VARIABLE: secrets.token_urlsafe(32)}  # other users of the machine reach the ports, too
    workers = [
        PodSpec(
            name=name,
            role="worker",
            command=_pod_command("executor", str(index)),
            is_ready=functools.partial(is_listening, LOOPBACK, port),
            stdin=flow,
            env=_pod_env(config) | own | token | {API_KEY_VARIABLE: None},  # a worker does not serve clients
        )
        for index, (name, port, own) in enumerate(zip(names, ports, replica_environments(config), strict=True))
    ]
    gateway = PodSpec(
        name="gateway",
        role="gateway",
        command=_pod_command("gateway"),
        is_ready=functools.partial(answers_ok, config.listen_host, config.http_port, "/ready", tls=config.uses_tls),
        stdin=flow,
        env=_pod_env(config) | token | ({} if config.api_key is None else {API_KEY_VARIABLE: config.api_key}),
        stop_seconds=config.drain_seconds + STOP_MARGIN,
    )
    supervisor = Supervisor(gateway, workers, on_event, on_ready=on_ready)
    for line in warnings:
        supervisor.warn(line)
    return supervisor


def worker_names(config: ServeConfig) -> list[str]:
    """Return `worker 0`, ..., by the index of `executor INDEX`; with several models `worker 0 (NAME)`, ..."""
    models = config.served
    kinds = [model.short_name for model in models for _ in range(model.replicas)]
    return [f"worker {index}" + (f" ({kind})" if len(models) > 1 else "") for index, kind in enumerate(kinds)]


def _pod_command(*arguments: str) -> tuple[str, ...]:
    # -P: a file in the user's folder must not be imported instead of an installed package
    return (sys.executable, "-P", "-m", "run_gpt.flows.pod", *arguments)


def _pod_env(config: ServeConfig) -> dict[str, str | None]:
    # A Flow in the environment is not this server's: its pods get theirs on stdin.
    ours = {FLOW_VARIABLE: None, LOG_FORMAT_VARIABLE: config.log_format}
    return {"JINA_OPTOUT_TELEMETRY": "1", "PYTHONUNBUFFERED": "1", **ours}


@contextmanager
def _signals(supervisor: Supervisor) -> Iterator[None]:
    stopping = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping and signum == signal.SIGINT:
            supervisor.kill()
        stopping = True
        supervisor.request_stop()

    names = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup asks for that
        names.append(signal.SIGHUP)
    before: dict[int, Callable[..., object] | int | None] = {name: signal.signal(name, stop) for name in names}
    if hasattr(signal, "SIGTTOU"):  # a terminal may stop a process in the background that writes to it
        before[signal.SIGTTOU] = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler if handler is not None else signal.SIG_DFL)


def _url_host(host: str) -> str:
    host = local_host(host)
    return f"[{host}]" if ":" in host else host
