"""The configuration of a server, in one gateway and several models."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from run_gpt.config.configuration import Config, ServedModel
from run_gpt.config.option import Option, Panel
from run_gpt.config.values import API_KEY_VARIABLE, EVERY_INTERFACE, LOG_FORMAT_VARIABLE, LOOPBACK, LogFormat


@dataclass(frozen=True, kw_only=True)
class AdminConfig(Config):
    """Changes to a running server that requests may make, as its gateway and its executors know them."""

    runtime_adapters: Annotated[
        bool, Option("Let requests load and unload LoRA adapters, by paths on the model's machine.", Panel.SERVER)
    ] = False


@dataclass(frozen=True, kw_only=True)
class GatewayConfig(AdminConfig):
    """Options of the gateway, which serves gRPC and HTTP."""

    request_timeout: Annotated[
        float,
        Option("Seconds until a request ends with DeadlineExceeded (504).", Panel.SERVER, least=0.001),
    ] = 600.0
    drain_seconds: Annotated[
        float, Option("Seconds that running requests get when the server stops.", Panel.SERVER, least=0)
    ] = 30.0
    keep_alive: Annotated[
        float,
        Option("Seconds until an idle HTTP connection is closed.", Panel.SERVER, least=1, most=3600),
    ] = 75.0
    max_body_bytes: Annotated[
        int, Option("Largest request body, in bytes; a larger one gets a 413.", Panel.SERVER, least=1)
    ] = 4 * 1024 * 1024
    api_key_file: Annotated[
        Path | None,
        Option("Keys with names, roles and limits, a line NAME: KEY each; read again when it changes.", Panel.ACCESS),
    ] = None
    require_key: Annotated[
        bool, Option(f"Refuse to start without a key, from the file or from ${API_KEY_VARIABLE}.")
    ] = False
    tls_cert: Annotated[
        Path | None,
        Option("Certificate chain in PEM: both ports use TLS; read again when it changes.", Panel.ACCESS),
    ] = None
    tls_key: Annotated[Path | None, Option("Key of the certificate, in PEM.", Panel.ACCESS)] = None
    cors_origins: Annotated[
        tuple[str, ...],
        Option(
            "Origin of web pages that may call the HTTP port, such as https://app.example.com; *: any.",
            Panel.ACCESS,
            flag="--cors-origin",
        ),
    ] = ()
    allowed_hosts: Annotated[
        tuple[str, ...],
        Option(
            "Name by which HTTP requests may call the server, beside addresses and localhost; *: any. Default: any "
            "with a key or on another interface than loopback.",
            Panel.ACCESS,
            flag="--allowed-host",
        ),
    ] = ()
    strict_fields: Annotated[
        bool, Option("Refuse fields of requests without an effect, too, instead of naming them.", Panel.SERVER)
    ] = False
    lenient_fields: Annotated[
        bool, Option("Ignore unknown fields of requests, and name them in the answer's header.", Panel.SERVER)
    ] = False
    ollama: Annotated[
        bool, Option("Answer `GET /` as Ollama does, for programs that look for it there.", Panel.SERVER)
    ] = False
    trusted_proxies: Annotated[
        tuple[str, ...],
        Option(
            "Address, or network such as 10.0.0.0/8, of a proxy that names its clients in `X-Forwarded-For`.",
            Panel.ACCESS,
            flag="--trusted-proxy",
        ),
    ] = ()
    log_requests: Annotated[
        bool, Option("Log a line for each request: its route, status, seconds, key and id.", Panel.ACCESS)
    ] = False
    log_load: Annotated[
        float | None,
        Option("Seconds between two JSON lines with the load in the log; default: none.", Panel.SERVER, least=1),
    ] = None
    memory_budget: Annotated[
        int | None,
        Option(
            "Most memory of all loaded models together, such as 8GB; default: what the machine has.",
            Panel.MEMORY,
            least=1,
            is_size=True,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ServedModel, GatewayConfig):
    """A whole server, with one model or with `models`."""

    host: Annotated[
        str | None,
        Option(f"Address to listen on; default: {LOOPBACK}, or {EVERY_INTERFACE} if there is a key.", Panel.SERVER),
    ] = None
    grpc_port: Annotated[int, Option("gRPC port.", Panel.SERVER, least=1, most=65535)] = 51000
    http_port: Annotated[int, Option("HTTP port.", Panel.SERVER, least=1, most=65535)] = 52000
    api_key: Annotated[
        str | None,
        Option(
            "The key that requests must have; better in the environment: others see the command line in `ps`.",
            Panel.ACCESS,
            envvar=API_KEY_VARIABLE,
        ),
    ] = field(default=None, repr=False)
    """The gateway gets it through its environment; no Flow contains it."""
    trace_endpoint: Annotated[
        str | None,
        Option(
            "Collector for traces (OTLP over gRPC); https://HOST:PORT: over TLS.",
            Panel.SERVER,
            metavar="HOST:PORT",
        ),
    ] = None
    log_format: Annotated[
        LogFormat,
        Option(
            "json: each line of every process's log is a JSON object.",
            Panel.SERVER,
            envvar=LOG_FORMAT_VARIABLE,
        ),
    ] = "text"
    """No Flow contains it: see LOG_FORMAT_VARIABLE."""
    models: tuple[ServedModel, ...] = ()
    """Models of a server with several, the default one first. The fields above about one model then have their
    defaults."""

    @property
    def served(self) -> tuple[ServedModel, ...]:
        """All models, one or several."""
        return self.models or (ServedModel.of(self),)

    @property
    def asks_for_key(self) -> bool:
        """True when requests need a key."""
        return self.api_key is not None or self.api_key_file is not None or self.require_key

    @property
    def uses_tls(self) -> bool:
        """True when the ports are encrypted."""
        return self.tls_cert is not None

    @property
    def listen_host(self) -> str:
        """Value of `host`, or its default."""
        return (EVERY_INTERFACE if self.asks_for_key else LOOPBACK) if self.host is None else self.host
