"""Owns the entry point of each process: `python -m run_gpt.flows.pod gateway` and `... executor [INDEX]`.

With $RUNGPT_FLOW, which has the Flow's YAML, the process is on its own, in a container for example: it ends on SIGTERM
and SIGINT, an executor listens on every interface, and what keeps it from starting is one line on stderr.

Without it the supervisor writes the Flow as one line of JSON to stdin, which it then holds open: when it closes, the
supervisor has ended and this process ends too. The runtime is started as Jina's own exporters start it in a container.
"""

import argparse
import gc
import importlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from run_gpt.config import EVERY_INTERFACE, FLOW_VARIABLE, GatewayConfig
from run_gpt.errors import PortInUse, RunGPTError, SetupError
from run_gpt.flows.ending import STOP_MARGIN, end_on_signals, end_with_parent, leave
from run_gpt.flows.process import SETUP_ERROR_EXIT, write_setup_error
from run_gpt.flows.reading import flow_of_environment, flow_of_supervisor
from run_gpt.flows.sharing import thread_environment
from run_gpt.flows.traces import trace_arguments
from run_gpt.process import logs
from run_gpt.process.imports import large_imports

_NOISE = ("Getting endpoints failed", "can not load the executor", "The given arguments", "WireError(")
"""Beginnings of Jina's log lines that are dropped.

RunGPT logs more itself: which process is loading, why one cannot, which setting is unknown. Jina's traceback for each
request that is answered with an error is dropped since the client gets the error."""
_log = logging.getLogger(__name__)
_LOG_CONFIG = str(Path(__file__).with_name("logging.yml"))


def main() -> NoReturn:
    """Run one process of the Flow until SIGTERM, or until its supervisor has ended."""
    parser = argparse.ArgumentParser(prog="python -m run_gpt.flows.pod", description=__doc__)
    roles = parser.add_subparsers(dest="role", required=True)
    roles.add_parser("gateway")
    roles.add_parser("executor").add_argument("index", type=int, nargs="?", default=0)
    options = parser.parse_args()
    end_on_signals()
    supervised = False
    try:
        logs.begin(options.role)
        if (flow := flow_of_environment()) is None:
            if (flow := flow_of_supervisor()) is None:
                raise SetupError(f"there is no Flow: give its YAML in the environment variable {FLOW_VARIABLE}")
            supervised = True
            seconds = drain_seconds(flow) + STOP_MARGIN
            threading.Thread(target=end_with_parent, args=(seconds,), daemon=True).start()
        if options.role == "gateway":
            code = _run_gateway(flow)
        else:
            code = _run_executor(flow, options.index, None if supervised else EVERY_INTERFACE)
    except Exception as error:
        code = _report(error, supervised)
    leave(code)


def _report(error: Exception, supervised: bool) -> int:
    """Report why this process cannot start, to the supervisor or to the user; return the exit code."""
    setup_error = _find_setup_error(error)
    if setup_error is None:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    if supervised:
        logs.write_line(write_setup_error(setup_error), sys.stdout)
    else:
        _log.critical("rungpt: %s", setup_error.message)
    return SETUP_ERROR_EXIT


def gateway_arguments(flow: dict[str, Any]) -> list[str]:
    """Return the arguments with which `jina gateway` would be the gateway of this Flow."""
    gateway, executors = flow["gateway"], flow["executors"]
    addresses = {e["name"]: [f"grpc://{e['host']}:{port}" for port in e["port"]] for e in executors}
    # The graph that Jina makes if executors need only the gateway. Our gateway chooses one executor for each request.
    names = list(addresses)
    graph: dict[str, list[str]] = {"start-gateway": names, **{name: [] for name in names}}
    graph[names[-1]] = ["end-gateway"]
    return [
        *("--name", "gateway", "--uses", json.dumps(gateway["uses"]), "--host", gateway["host"]),
        *("--port", *map(str, gateway["port"]), "--protocol", *gateway["protocol"]),
        *("--graph-description", json.dumps(graph)),
        *("--deployments-addresses", json.dumps(addresses), "--log-config", _LOG_CONFIG),
        *trace_arguments(flow),
    ]


def executor_arguments(flow: dict[str, Any], index: int, listen_host: str | None = None) -> list[str]:
    """Return the arguments with which `jina executor` would be replica `index`, counted over all executors of the Flow.

    `listen_host`: address to listen on if the executor's host in the Flow is a name for its clients; gRPC takes
    0.0.0.0 as every address of both families. Raises SetupError for an index that the Flow has no port for.
    """
    replicas = [(executor, replica) for executor in flow["executors"] for replica in range(len(executor["port"]))]
    if not 0 <= index < len(replicas):
        raise SetupError(f"executor {index}: the Flow has ports for {len(replicas)}, counted from 0")
    executor, replica = replicas[index]
    return [
        *("--name", f"{executor['name']}/rep-{replica}", "--uses", json.dumps(executor["uses"])),
        *("--host", listen_host or executor["host"], "--port", str(executor["port"][replica])),
        *("--replicas", str(executor["replicas"]), "--replica-id", str(replica), "--log-config", _LOG_CONFIG),
        *trace_arguments(flow),
    ]


def drain_seconds(flow: dict[str, Any]) -> float:
    """Return the seconds that running requests get to finish: the gateway's setting, which its executors use too."""
    return float(flow["gateway"]["uses"].get("with", {}).get("drain_seconds", GatewayConfig.drain_seconds))


def _run_gateway(flow: dict[str, Any]) -> int:
    sys.modules["torch"] = None  # type: ignore[assignment]  # docarray would import it: seconds and 200 MB for nothing
    with large_imports():
        import run_gpt.process._jina  # noqa: F401, I001  (mends jina; must come before it)
        from jina.parsers import set_gateway_parser
        from jina.serve.runtimes.gateway.request_handling import GatewayRequestHandler

        from run_gpt.flows.runtime import PodRuntime

        _import_modules(flow["gateway"]["uses"])
    gc.freeze()
    args = set_gateway_parser().parse_args(gateway_arguments(flow))
    args.port_monitoring = args.port_monitoring[0]
    _run(args, lambda: PodRuntime(args, req_handler_cls=GatewayRequestHandler))
    return 0


def _run_executor(flow: dict[str, Any], index: int, listen_host: str | None) -> int:
    os.environ.update(thread_environment() | os.environ)  # before torch is imported; variables that are set win
    with large_imports():
        _import_docarray_without_torch()
        import run_gpt.process._jina  # noqa: F401, I001  (mends jina; must come before it)
        from jina.parsers import set_pod_parser
        from jina.serve.runtimes.worker.request_handling import WorkerRequestHandler

        from run_gpt.flows.runtime import ExecutorRuntime

        for executor in flow["executors"]:
            _import_modules(executor["uses"])
    gc.freeze()
    args = set_pod_parser().parse_args(executor_arguments(flow, index, listen_host))
    args.host, args.port_monitoring = args.host[0], args.port_monitoring[0]
    runtime = _run(args, lambda: ExecutorRuntime(args, drain_seconds(flow), req_handler_cls=WorkerRequestHandler))
    return 1 if getattr(runtime.executor, "failed", False) else 0


def _import_modules(uses: dict[str, Any]) -> None:
    """Import the modules of a gateway or an executor, which Jina would import later."""
    for name in uses.get("py_modules", ()):
        if not name.endswith(".py"):  # Jina also takes files
            importlib.import_module(name)


def _import_docarray_without_torch() -> None:
    """Import docarray without torch: an executor without a model does not need it, and it takes seconds and 200 MB."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    import docarray  # noqa: F401

    del sys.modules["torch"]


def _run(args: argparse.Namespace, start: Callable[[], Any]) -> Any:
    """Run the runtime that `start` makes, and return it once it has ended."""
    from jina.excepts import PortAlreadyUsed

    for name in ("JINA", args.name):
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith(_NOISE))
    try:
        runtime = start()
    except PortAlreadyUsed as error:
        raise PortInUse(f"port {args.port} is in use") from error
    with runtime:
        runtime.run_forever()
    return runtime


def _find_setup_error(error: BaseException | None) -> RunGPTError | None:
    """Return RunGPT's own error, which Jina may have wrapped."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:  # errors may name each other as their causes
        if isinstance(error, RunGPTError):
            return error
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


if __name__ == "__main__":
    main()
