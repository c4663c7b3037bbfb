"""Output of `rungpt serve` while the server starts, serves and stops."""

import ipaddress
import json
from collections import Counter

from rich.status import Status

from run_gpt import models
from run_gpt.cli.progress import console, progress_bars
from run_gpt.config import API_KEY_VARIABLE, EVERY_INTERFACE, ModelConfig, ServeConfig, ServedModel
from run_gpt.errors import SetupError
from run_gpt.flows import Event, check_server, printer, serve
from run_gpt.process import logs


def run_server(config: ServeConfig) -> int:
    """Fetch the models, start the server, and block until it is stopped. Returns the exit code."""
    if config.log_format == "json":
        logs.begin_json(None)  # output of this process becomes JSON, too
    else:
        logs.begin_text()
    check_server(config)  # before a long download
    with progress_bars() as on_progress:
        for model in config.served:
            models.fetch(ModelConfig.of(model), on_progress=on_progress)
    if config.log_format == "json":
        return _serve_in_json(config)
    console.print(who_may_ask(config), markup=False, soft_wrap=True)
    status = Status(loading_text(config), console=console)

    def show(event: Event) -> None:
        if event.kind == "output":
            console.print(f"[{event.pod}] {event.message}", markup=False, soft_wrap=True)
        elif event.kind == "ready":
            status.stop()
            console.print(welcome(config), markup=False, soft_wrap=True)
        elif not (console.is_terminal and event.kind in ("starting", "pod_ready")):  # the spinner shows these
            console.print(event.message, markup=False, soft_wrap=True)

    with status:
        return serve(config, on_event=show)


def _serve_in_json(config: ServeConfig) -> int:
    """Start the server and report its events as lines of JSON. Returns the exit code."""
    report = printer("json")
    opens = who_may_ask(config)
    report(Event("warning" if opens.startswith("Warning") else "starting", opens))

    def show(event: Event) -> None:
        ready = f"RunGPT serves {served_names(config)}: {', '.join(addresses(config))}"
        report(Event("ready", ready) if event.kind == "ready" else event)

    return serve(config, on_event=show)


def check_names(config: ServeConfig) -> None:
    """Raise SetupError if two models have the same name: requests choose a model by its name."""
    for name, count in Counter(
        name for model in config.served for name in models.served_names(ModelConfig.of(model))
    ).items():
        if count > 1:
            raise SetupError(
                f"{count} models are called {name}, by which requests choose: leave out all but one, or give each "
                "another `served_model_name` in a --config file"
            )


def name_of(model: ServedModel) -> str:
    """Return the model's name in requests."""
    return models.served_name(ModelConfig.of(model))


def loading_text(config: ServeConfig) -> str:
    """Return a text that names the models that load before the server accepts requests."""
    loading = [
        name_of(model) + (f" in {model.replicas} replicas" if model.replicas > 1 else "")
        for model in config.served
        if model.preload
    ]
    return f"Loading {', '.join(loading)}" if loading else "Starting"


def who_may_ask(config: ServeConfig) -> str:
    """Return one line with the address that the ports listen on and whether requests need an API key."""
    host = config.listen_host
    where = f"{host}, every interface" if host in (EVERY_INTERFACE, "::") else host
    if _is_loopback(host):
        opens = "requests need a key" if config.asks_for_key else "--host or a key opens it to the network"
        return f"RunGPT listens on {host} only: {opens}."
    if config.asks_for_key:
        plain = "" if config.uses_tls else ", which goes in plain text: --tls-cert encrypts it"
        return f"RunGPT listens on {where}: requests need a key{plain}."
    return (
        f"Warning: RunGPT listens on {where}, and requires no key: anyone who reaches this machine can use it. "
        "--api-key or --api-key-file closes it."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def welcome(config: ServeConfig) -> str:
    """Return a text with the URLs of the server and a curl command to try it."""
    http, grpc = addresses(config)
    body = json.dumps({"messages": [{"role": "user", "content": "What is the capital of France?"}]})
    key = f' -H "Authorization: Bearer ${API_KEY_VARIABLE}"' if config.asks_for_key else ""
    pages = {
        f"{http}/playground": "a page to chat",
        f"{http}/v1": "OpenAI's API",
        f"{http}/docs": "all routes",
        grpc: "the same over gRPC",
    }
    width = max(map(len, pages))
    lines = [f"  {url.ljust(width)}  {what}" for url, what in pages.items()]
    curl = f"  curl {http}/chat{key} -H 'Content-Type: application/json' -d '{body}'"
    return "\n".join(["", f"RunGPT serves {served_names(config)}:", "", *lines, "", "Try:", "", curl, ""])


def addresses(config: ServeConfig) -> tuple[str, str]:
    """Return the URLs of the HTTP and the gRPC endpoint, as reached from this machine."""
    host = "127.0.0.1" if config.listen_host in (EVERY_INTERFACE, "localhost") else config.listen_host
    host = f"[{host}]" if ":" in host else host
    secure = "s" if config.uses_tls else ""
    return f"http{secure}://{host}:{config.http_port}", f"grpc{secure}://{host}:{config.grpc_port}"


def served_names(config: ServeConfig) -> str:
    """Return the names of the models for messages; models that load on first use are marked."""
    return ", ".join(name_of(model) + ("" if model.preload else " (loads on first use)") for model in config.served)
