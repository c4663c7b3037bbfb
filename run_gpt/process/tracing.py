"""What gateway and executors share of OpenTelemetry: our tracer, of the provider that Jina has made, and its end.

Jina makes a provider in each process of a Flow with `tracing`. Without one, nothing here is called or imported.
"""

import logging
import threading
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

log = logging.getLogger(__name__)

SCOPE = "run_gpt"
FLUSH_SECONDS = 2.0
"""Time that the last spans get to reach the collector when a process ends; then they are lost."""


def tracer_of(provider: Any) -> "Tracer":
    """Our tracer. From now on it is the only one of Jina's provider that makes spans, and the provider ends in time.

    Jina's own spans are one for each gRPC call of an executor, those of the probes each half second among them, and
    one for each endpoint, which of a stream ends before the first event. Switched off they still hand on what they
    get: so ours belong to the gateway's.
    """
    from opentelemetry.sdk.trace import _TracerConfig

    provider._set_tracer_configurator(tracer_configurator=lambda scope: _TracerConfig(is_enabled=scope.name == SCOPE))
    _end_in_time(provider)
    # A stream whose client left is closed by another task, where what Jina's interceptor wants to undo never was.
    logging.getLogger("opentelemetry.context").addFilter(lambda record: record.msg != "Failed to detach context")
    tracer: Tracer = provider.get_tracer(SCOPE, version("rungpt"))
    return tracer


def _end_in_time(provider: Any) -> None:
    """Bound what Jina does with a provider at the end: its exporter tries a collector that is away for ten seconds.

    It does that for each batch of spans, and in the thread that should end the process.
    """
    shut_down = provider.shutdown

    def end() -> None:
        sending = threading.Thread(target=shut_down, name="rungpt-last-spans", daemon=True)
        sending.start()
        sending.join(FLUSH_SECONDS)
        if sending.is_alive():
            log.warning("the collector of traces did not take the last spans in %g s: they are lost", FLUSH_SECONDS)

    provider.shutdown = end
    provider.force_flush = lambda timeout_millis=0: True  # the end sends what is left
