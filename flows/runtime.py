"""Owns the start and end of Jina's runtime in our pods: it ends at once while it loads, and drains once it serves.

It is in a module of its own since it imports jina, which the supervisor must not.
"""

import argparse
import gc
import signal
from typing import Any

import grpc
from jina.serve.runtimes.asyncio import AsyncNewLoopRuntime

from run_gpt.flows.ending import SIGNALS, end_now, end_on_signals
from run_gpt.flows.heartbeat import beat
from run_gpt.process import request_ids

_SEND_SECONDS = 5.0
"""Seconds for sending the ends of finished answers before the server stops."""


class PodRuntime(AsyncNewLoopRuntime):  # type: ignore[misc]
    """Jina's runtime of one pod, which stops on SIGTERM and SIGINT; a SIGINT after that ends it at once."""

    async def async_setup(self) -> None:
        """Load the gateway or executor, and open its port."""
        self._loop.remove_signal_handler(signal.SIGSEGV)  # Jina's handler would repeat the failed instruction for ever
        end_on_signals()  # the loop gets no signals while the model loads, and there is nothing to finish
        if any(
            ":" in host for host in self.args.host
        ):  # Jina checks for free ports on IPv4 only; our own servers check too
            self.server = self._get_server()
            await self.server.setup_server()
        else:
            await super().async_setup()
        for number in SIGNALS:
            self._loop.add_signal_handler(number, self._stop, number)
        gc.collect()
        gc.freeze()  # else Python goes through all modules' objects now and then: 50 ms on the event loop
        self._beating = self._loop.create_task(beat())

    def _stop(self, signum: int) -> None:
        if self.is_cancel.is_set() and signum == signal.SIGINT:
            end_now(signum)
        self.is_cancel.set()


class ExecutorRuntime(PodRuntime):
    """Runtime of an executor: awaits `executor.drain(seconds)`, if it exists, before its server is shut down."""

    def __init__(self, args: argparse.Namespace, drain_seconds: float, **kwargs: Any):
        self._drain_seconds: float | None = drain_seconds
        super().__init__(args, **kwargs)

    @property
    def executor(self) -> Any:
        """Executor that is served."""
        return self.server._request_handler._executor

    def _get_server(self) -> Any:
        """Return Jina's server; its interceptors can be set until it is set up."""
        server = super()._get_server()
        server.grpc_tracing_server_interceptors = [_RequestIds(), *(server.grpc_tracing_server_interceptors or ())]
        return server

    async def async_teardown(self) -> None:
        """Drain, then shut the server down. Jina calls this twice."""
        if self._drain_seconds is not None and hasattr(self.executor, "drain"):
            seconds, self._drain_seconds = self._drain_seconds, None
            await self.server.health_servicer.enter_graceful_shutdown()
            await self.executor.drain(seconds)
            await self.server.server.stop(_SEND_SECONDS)  # Jina's own stop drops data that is not sent yet
        await super().async_teardown()


class _RequestIds(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Interceptor that sets the request id of each call: Jina's Executors do not see a call's metadata."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See grpc.aio.ServerInterceptor. Each call has a task, and so a context, of its own."""
        ids = (value for name, value in details.invocation_metadata or () if name == request_ids.METADATA)
        request_ids.current.set(next(ids, None))
        return await continuation(details)
