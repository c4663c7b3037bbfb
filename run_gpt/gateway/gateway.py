"""`RunGPTGateway`: the composite Jina gateway. It holds the pool and the service and serves each port."""

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

from jina import Gateway
from jina.serve.runtimes.servers.composite import CompositeBaseServer

from run_gpt.config import API_KEY_VARIABLE, GatewayConfig
from run_gpt.errors import SetupError
from run_gpt.gateway import record
from run_gpt.gateway.discovery import is_name, join_address, split_address
from run_gpt.gateway.grpc_access import AccessInterceptor
from run_gpt.gateway.grpc_reads import Reads
from run_gpt.gateway.hosts import check_hosts
from run_gpt.gateway.http_access import check_origins
from run_gpt.gateway.keys import Keys
from run_gpt.gateway.legacy import LegacyInterceptor
from run_gpt.gateway.load import LoadLog
from run_gpt.gateway.pool import ReplicaPool
from run_gpt.gateway.proxies import Proxies
from run_gpt.gateway.servers import GatewayGRPCServer, GatewayHTTPServer
from run_gpt.gateway.service import Service
from run_gpt.gateway.tls import Certificate
from run_gpt.process.executor_tls import executor_tls

if TYPE_CHECKING:
    from run_gpt.gateway.tracing import Tracing

# Arguments that Jina itself passes to a gateway's constructor, besides its runtime arguments.
_JINAS = {"metas", "requests", "req_handler_cls", "runtime_args"}


class RunGPTGateway(Gateway, CompositeBaseServer):  # type: ignore[misc]
    """The gateway of a Flow with an executor for each model, each in any number of replicas.

    Its `with` takes the fields of GatewayConfig; a key may be in $RUNGPT_API_KEY. Raises SetupError for a Flow of
    another shape, and for keys that cannot be read.
    """

    def __init__(self, **settings: Any):
        config = GatewayConfig.take(settings)
        super().__init__(**settings)
        if unknown := settings.keys() - vars(self.runtime_args).keys() - _JINAS:
            raise SetupError(f"RunGPTGateway has no setting {', '.join(map(repr, sorted(unknown)))}")
        check_origins(config.cors_origins)
        self.certificate = Certificate.of(config)
        executor_tls()  # files that cannot be used prevent the start
        check_hosts(config.allowed_hosts)
        self.proxies = Proxies(config.trusted_proxies)
        self.keys = Keys.of(config, os.environ.get(API_KEY_VARIABLE))
        if config.log_requests:
            record.open_log()
        executors = executor_addresses(self.runtime_args.deployments_addresses)
        tracing = _tracing(self.tracer_provider)
        self.service = Service([ReplicaPool(addresses) for addresses in executors.values()], config, tracing)
        self._load = LoadLog(self.service)
        self.servers = [self._server(server_kwargs) for server_kwargs in self._server_kwargs]
        self._watching: asyncio.Task[None] | None = None
        self._ended = False

    def _server(self, kwargs: dict[str, Any]) -> GatewayGRPCServer | GatewayHTTPServer:
        kwargs["runtime_args"]["tracing"] = False  # a port would have a provider of its own, which exports nothing
        protocol = str(kwargs["runtime_args"]["protocol"]).lower().rpartition(".")[2]
        if protocol == "grpc":
            reads = Reads()
            interceptors = self._interceptors(reads)
            return GatewayGRPCServer(self.service, reads, self.certificate, interceptors, **kwargs)
        if protocol == "http":
            return GatewayHTTPServer(self.service, self.keys, self.proxies, self.certificate, **kwargs)
        raise SetupError(f"protocol {protocol}: the gateway serves grpc and http")

    def _interceptors(self, reads: Reads) -> list[Any]:
        """Return the interceptors that see a gRPC call before our servicer does."""
        service, config = self.service, self.service.config
        access = AccessInterceptor(
            self.keys,
            service.count,
            reads=reads,
            most_bytes=config.max_body_bytes,
            log_requests=config.log_requests,
            proxies=self.proxies,
        )
        first = [] if service.tracing is None else [service.tracing.interceptor()]
        return [*first, access, LegacyInterceptor(service.answer, config.max_body_bytes)]

    async def setup_server(self) -> None:
        """Open both ports; requests are refused with Unavailable until a replica is ready."""
        await self.service.models.start()
        self._load.start()
        if self.certificate is not None:
            self._watching = asyncio.create_task(self.certificate.watch())
        await super().setup_server()

    async def shutdown(self) -> None:
        """Drain, then close the ports. Jina calls this twice."""
        if self._ended:
            return
        self._ended = True
        await self.service.drain()
        await super().shutdown()
        if self._watching is not None:
            self._watching.cancel()
        await self._load.close()
        await self.service.models.close()


def _tracing(provider: Any) -> "Tracing | None":
    """Return the maker of spans, if Jina has made a provider for them."""
    if provider is None:
        return None
    from run_gpt.gateway.tracing import Tracing

    return Tracing(provider)


def executor_addresses(deployments_addresses: str) -> dict[str, list[str]]:
    """Return the "host:port" of each executor's replicas, from the JSON that Jina passes in. Raises SetupError.

    A host may be a name, which stands for all replicas that it resolves to.
    """
    deployments = json.loads(deployments_addresses)
    if not deployments:
        raise SetupError("the Flow must have an executor, it has none")
    return {
        name: [_host_port(address) for address in (each.get("GRPC", []) if isinstance(each, dict) else each)]
        for name, each in deployments.items()
    }


def _host_port(address: str) -> str:
    scheme, separator, rest = address.rpartition("://")
    if separator and scheme != "grpc":
        raise SetupError(f"executor address {address}: only grpc:// is spoken between gateway and executor")
    try:
        host, port = split_address(rest)
        is_name(host)
    except ValueError as error:
        raise SetupError(f"executor address {address}: {error}") from None
    return join_address(host, port)
