"""Owns where a Flow's traces go: Jina's options of a Flow, and the same as arguments of its pods."""

import re
from typing import Any

from run_gpt.errors import SetupError

_ENDPOINT = re.compile(r"(?:(https?)://)?([\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})/?")


def trace_options(endpoint: str) -> dict[str, Any]:
    """The options of a Flow whose spans go to `HOST:PORT`, without TLS unless `https://` is before it.

    Raises SetupError.
    """
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or not 0 < int(match[3]) < 65536:
        raise SetupError(
            f"--trace-endpoint {endpoint}: write HOST:PORT of a collector that takes OTLP over gRPC, such as "
            "127.0.0.1:4317, or https://HOST:PORT for TLS"
        )
    # Without a scheme OpenTelemetry's exporter, which Jina gives the host as it is, takes TLS.
    host = f"{match[1] or 'http'}://{match[2]}"
    return {"tracing": True, "traces_exporter_host": host, "traces_exporter_port": int(match[3])}


def trace_arguments(flow: dict[str, Any]) -> list[str]:
    """What a pod of this Flow is given, as Jina gives it to its own; nothing without traces."""
    options = flow.get("with") or {}
    if not options.get("tracing"):
        return []
    given = ("traces_exporter_host", "traces_exporter_port")
    named = [(f"--{name.replace('_', '-')}", str(options[name])) for name in given if name in options]
    return ["--tracing", *(part for pair in named for part in pair)]
