"""OpenTelemetry for gateway and executors: our tracer, from the provider that Jina has made, and its shutdown.

Jina makes a provider in each process of a Flow with `tracing`. Without a provider, this module is not imported.
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
"""Time in seconds that the last spans have to reach the collector when a process ends; after it they are lost."""


def tracer_of(provider: Any) -> "Tracer":
    """Return our tracer, let only it record spans among those of Jina's provider, and bound the provider's shutdown.

    Jina's own tracers make one span for each gRPC call of an executor, including the probes every half second, and one
    for each endpoint; the latter ends before the first event of a stream. When they are switched off, they still pass
    on the context that they get, so our spans belong to the gateway's.
    """
    from opentelemetry.sdk.trace import _TracerConfig

    provider._set_tracer_configurator(tracer_configurator=lambda scope: _TracerConfig(is_enabled=scope.name == SCOPE))
    _end_in_time(provider)
    # If a stream's client has left, another task closes the stream. Jina's interceptor then tries to detach a context
    # that was never attached in that task.
    logging.getLogger("opentelemetry.context").addFilter(lambda record: record.msg != "Failed to detach context")
    tracer: Tracer = provider.get_tracer(SCOPE, version("rungpt"))
    return tracer


def _end_in_time(provider: Any) -> None:
    """Bound the shutdown of Jina's provider: its exporter tries to reach an absent collector for ten seconds.

    It does so for each batch of spans, in the thread that should end the process.
    """
    shut_down = provider.shutdown

    def end() -> None:
        sending = threading.Thread(target=shut_down, name="rungpt-last-spans", daemon=True)
        sending.start()
        sending.join(FLUSH_SECONDS)
        if sending.is_alive():
            log.warning("the collector of traces did not take the last spans in %g s: they are lost", FLUSH_SECONDS)

    provider.shutdown = end
    provider.force_flush = lambda timeout_millis=0: True  # the shutdown sends the remaining spans
