"""Owns the log lines with a gateway's load, for autoscalers that read a log."""

import asyncio
import json
import logging
import sys
from typing import Any

from run_gpt.gateway.service import Service
from run_gpt.process import logs

log = logging.getLogger(__name__)


class LoadLog:
    """Writer of a line of JSON every `log_load` seconds (of the service's configuration); of none if that is None.

    It writes to stdout, or, where the whole log is JSON, to the log.
    """

    def __init__(self, service: Service):
        self._service = service
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write, on the running event loop."""
        if (seconds := self._service.config.log_load) is not None:
            log.setLevel(logging.INFO)
            self._task = asyncio.create_task(self._write(seconds))

    async def close(self) -> None:
        """Stop writing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _write(self, seconds: float) -> None:
        while True:
            load = load_of(self._service)
            if logs.is_json():
                log.info("%d requests in flight", load["in_flight"], extra={"fields": load})
            else:
                logs.write_line(json.dumps(load), sys.stdout)
            await asyncio.sleep(seconds)


def load_of(service: Service) -> dict[str, Any]:
    """Return `{"event": "load", "in_flight", "ready", "loading", "in_flight_per_replica"}` of this gateway alone.

    Per replica counts ready and loading ones: one that is loading will take its share, and is no reason to start
    another. A silent or stuck one is not ready: it does no work, though it gets requests where no other is there.
    """
    replicas = service.models.replicas
    ready = sum(replica.takes_requests and replica.state == "ready" for replica in replicas)
    loading = sum(replica.state in ("connecting", "loading") for replica in replicas)
    return {
        "event": "load",
        "in_flight": service.in_flight,
        "ready": ready,
        "loading": loading,
        "in_flight_per_replica": round(service.in_flight / max(1, ready + loading), 3),
    }
