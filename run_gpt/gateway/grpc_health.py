"""gRPC's health service: it says SERVING only while a request would be served."""

import asyncio
from collections.abc import Collection
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from run_gpt.gateway.service import Service

WATCH_SECONDS = 0.2


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The health of `service`, for the gRPC services `names`.

    The library's own servicer holds a lock while it writes to a watcher: one that does not read would stop it.
    """

    def __init__(self, service: Service, names: Collection[str]):
        self._service = service
        self._names = {"", *names}

    async def Check(self, request: Any, context: Any) -> Any:
        """Return the state now; NOT_FOUND for a service of another name."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this server has no such service")
        return self._state(request)

    async def Watch(self, request: Any, context: Any) -> None:
        """Write the state now and whenever it has changed."""
        last = None
        while True:
            state = self._state(request)
            if state != last:
                await context.write(state)
            last = state
            await asyncio.sleep(WATCH_SECONDS)

    def _state(self, request: Any) -> Any:
        states = health_pb2.HealthCheckResponse
        if request.service not in self._names:
            return states(status=states.SERVICE_UNKNOWN)
        return states(status=states.SERVING if self._service.ready else states.NOT_SERVING)
