"""What `rungpt serve` shows while it starts, serves and stops."""

import ipaddress
import json

from rich.status import Status

from run_gpt import logs, models
from run_gpt.cli.progress import console, progress_bars
from run_gpt.config import API_KEY_VARIABLE, EVERY_INTERFACE, ModelConfig, ServeConfig
from run_gpt.flows import Event, check_doors, printer, serve


def run_server(config: ServeConfig) -> int:
    """Fetch the model, start the server, and block until it is stopped. Returns the exit code."""
    if config.log_format == "json":
        logs.begin_json(None)  # what is printed here becomes JSON, too
    check_doors(config)  # before a long download
    with progress_bars() as on_progress:
        models.fetch(ModelConfig.of(config), on_progress=on_progress)
    console.print(who_may_ask(config), markup=False, soft_wrap=True)
    copies = "" if config.replicas == 1 else f" in {config.replicas} replicas"
    status = Status(f"Loading {models.served_name(ModelConfig.of(config))}{copies}", console=console)

    def show(event: Event) -> None:
        if event.kind == "output":
            console.print(f"[{event.pod}] {event.message}", markup=False, soft_wrap=True)
        elif event.kind == "ready":
            status.stop()
            console.print(welcome(config), markup=False, soft_wrap=True)
        elif not (console.is_terminal and event.kind in ("starting", "pod_ready")):  # there the spinner says enough
            console.print(event.message, markup=False, soft_wrap=True)

    with status:
        return serve(config, on_event=printer("json") if config.log_format == "json" else show)


def who_may_ask(config: ServeConfig) -> str:
    """One line: where the doors listen, and whether requests need a key."""
    host = config.listen_host
    where = f"{host}, every interface" if host in (EVERY_INTERFACE, "::") else host
    if _is_loopback(host):
        opens = "requests need a key" if config.asks_for_key else "--host or a key opens it to the network"
        return f"RunGPT listens on {host} only: {opens}."
    if config.asks_for_key:
        return f"RunGPT listens on {where}: requests need a key."
    return (
        f"Warning: RunGPT listens on {where}, and asks for no key: whoever reaches this machine can use it. "
        "--api-key or --api-key-file closes it."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def welcome(config: ServeConfig) -> str:
    """Where to send requests, and one that works when it is pasted."""
    host = "127.0.0.1" if config.listen_host in (EVERY_INTERFACE, "localhost") else config.listen_host
    host = f"[{host}]" if ":" in host else host
    http = f"http://{host}:{config.http_port}"
    body = json.dumps({"messages": [{"role": "user", "content": "What is the capital of France?"}]})
    key = f' -H "Authorization: Bearer ${API_KEY_VARIABLE}"' if config.asks_for_key else ""
    doors = {
        f"{http}/playground": "a page to chat",
        f"{http}/v1": "OpenAI's API",
        f"{http}/docs": "all routes",
        f"grpc://{host}:{config.grpc_port}": "the same over gRPC",
    }
    width = max(map(len, doors))
    lines = [f"  {url.ljust(width)}  {what}" for url, what in doors.items()]
    curl = f"  curl {http}/chat{key} -H 'Content-Type: application/json' -d '{body}'"
    name = models.served_name(ModelConfig.of(config))
    return "\n".join(["", f"RunGPT serves {name}:", "", *lines, "", "Try:", "", curl, ""])
