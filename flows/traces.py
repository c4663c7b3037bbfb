"""Owns the export of a Flow's traces: Jina's options for the Flow, and the same as arguments of its pods."""

import re
from typing import Any

from run_gpt.errors import SetupError

_ENDPOINT = re.compile(r"(?:(https?)://)?([\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})/?")


def trace_options(endpoint: str) -> dict[str, Any]:
    """Return the options of a Flow that exports spans to `HOST:PORT`, without TLS unless prefixed with `https://`.

    Raises SetupError.
    """
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or not 0 < int(match[3]) < 65536:
        raise SetupError(
            f"--trace-endpoint {endpoint}: write HOST:PORT of a collector that takes OTLP over gRPC, such as "
            "127.0.0.1:4317, or https://HOST:PORT for TLS"
        )
    # Jina passes the host unchanged to OpenTelemetry's exporter, which uses TLS if there is no scheme.
    host = f"{match[1] or 'http'}://{match[2]}"
    return {"tracing": True, "traces_exporter_host": host, "traces_exporter_port": int(match[3])}


def trace_arguments(flow: dict[str, Any]) -> list[str]:
    """Return the trace arguments of a pod of this Flow, as Jina makes them for its own pods; none without traces."""
    options = flow.get("with") or {}
    if not options.get("tracing"):
        return []
    given = ("traces_exporter_host", "traces_exporter_port")
    named = [(f"--{name.replace('_', '-')}", str(options[name])) for name in given if name in options]
    return ["--tracing", *(part for pair in named for part in pair)]
