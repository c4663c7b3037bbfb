"""Metrics of a gateway: its requests on both ports, their outcomes, and the states of its replicas."""

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from run_gpt.api.endpoints import ENDPOINTS
from run_gpt.errors import ERROR_CODES
from run_gpt.gateway.limits import Limits
from run_gpt.gateway.models import Models
from run_gpt.gateway.record import Record
from run_gpt.process import logs

OTHER = "other"
CUT_OFF = "cut_off"
"""Error code of a request whose client did not wait for its end."""
STATES = (
    *("connecting", "unloaded", "loading", "ready", "silent", "stuck"),
    *("draining", "dead", "lost", "incompatible", "leaving"),
)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LEFT = ("499", "CANCELLED")


class GatewayMetrics:
    """The metrics of one gateway, in a registry of its own. `in_flight` returns the number of its running requests.

    Labels are bounded: endpoints are those of ENDPOINTS, keys the names in the file of keys.
    """

    def __init__(self, models: Models, in_flight: Callable[[], int], limits: Limits | None = None):
        """`limits`: the accounts of keys; None: there are none."""
        self._models, self._in_flight, self._limits = models, in_flight, limits or Limits()
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "rungpt_gateway_requests",
            "Requests and calls that ended, but for the open routes that probes ask.",
            ["endpoint", "status", "key"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "rungpt_gateway_request_seconds",
            "From a request to the end of its answer.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._errors = Counter(
            "rungpt_gateway_errors",
            "Requests that ended with an error of this code, those in the middle of a stream included.",
            ["code"],
            registry=self._registry,
        )
        self.scrape_failures = Counter(
            "rungpt_gateway_scrape_failures",
            "Replicas that were ready or draining and did not give their metrics in time.",
            registry=self._registry,
        )
        process = ProcessCollector("rungpt_gateway", registry=None).collect()  # nothing where there is no /proc
        self._process = [family for family in process if family.name == "rungpt_gateway_process_start_time_seconds"]
        for code in (*ERROR_CODES, CUT_OFF):  # from the start, so that a rate shows their first increase
            self._errors.labels(code)

    def count(self, record: Record, status: str) -> None:
        """Count a request that has ended. `status`: HTTP's number, or gRPC's name."""
        endpoint = endpoint_label(record.endpoint or record.route)
        self._requests.labels(endpoint, status, record.key or "").inc()
        self._seconds.labels(endpoint).observe(time.perf_counter() - record.started)
        if code := error_code(record, status):
            self._errors.labels(code).inc()

    def families(self) -> list[Metric]:
        """Return all metrics as they are now."""
        counted = list(self._registry.collect())
        for family in counted:  # the creation time of a counter is useless, and would double the text
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        return [*counted, *self._seen(), *self._keys()]

    def _seen(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("rungpt_build_info", "Always 1.", labels=["version"])
        build.add_metric([version("rungpt")], 1)
        yield build
        yield from self._process
        yield GaugeMetricFamily("rungpt_gateway_in_flight", "Requests that run.", value=self._in_flight())
        yield CounterMetricFamily(
            "rungpt_gateway_retries",
            "Calls of another replica, since one had failed or refused the request.",
            value=sum(hosted.pool.retries for hosted in self._models.all),
        )
        yield CounterMetricFamily(
            "rungpt_gateway_log_lines_dropped",
            "Lines of the gateway's log that could not be written.",
            value=logs.dropped_lines(),
        )
        replicas = self._models.replicas
        states = Tally("leaving" if replica.leaving else replica.state for replica in replicas)
        by_state = GaugeMetricFamily("rungpt_replicas", "Replicas, by state as this gateway sees it.", labels=["state"])
        for state in STATES:
            by_state.add_metric([state], states[state])
        restarts = CounterMetricFamily(
            "rungpt_replica_restarts", "How often another process was found at a replica's address.", labels=["replica"]
        )
        for replica in replicas:
            restarts.add_metric([replica.address], replica.restarts)
        yield from (by_state, restarts)
        loaded = GaugeMetricFamily("rungpt_model_loaded", "1: it is in memory; 0: it is not.", labels=["model"])
        loads = CounterMetricFamily("rungpt_model_loads", "Loads on request that succeeded.", labels=["model"])
        failures = CounterMetricFamily("rungpt_model_load_failures", "Loads on request that failed.", labels=["model"])
        unloads = CounterMetricFamily("rungpt_model_unloads", "How often it was unloaded.", labels=["model"])
        for hosted in (hosted for hosted in self._models.all if hosted.name):  # two without a name would be one series
            loaded.add_metric([hosted.name], float(hosted.state == "loaded"))
            loads.add_metric([hosted.name], hosted.loads)
            failures.add_metric([hosted.name], hosted.failed_loads)
            unloads.add_metric([hosted.name], hosted.unloads)
        yield from (loaded, loads, failures, unloads)

    def _keys(self) -> Iterator[Metric]:
        """Yield the use of each key, from its first request on."""
        running = GaugeMetricFamily("rungpt_gateway_key_in_flight", "Requests of the key that run.", labels=["key"])
        tokens = CounterMetricFamily(
            "rungpt_gateway_key_tokens", "Tokens of its prompts and answers, of requests that ended.", labels=["key"]
        )
        limit = GaugeMetricFamily(
            "rungpt_gateway_key_limit", "Its `requests` at once, its `tokens` a minute.", labels=["key", "limit"]
        )
        limited = CounterMetricFamily(
            "rungpt_gateway_key_limited", "Requests refused by one of its limits (429).", labels=["key", "limit"]
        )
        for key, account in self._limits.accounts.items():
            running.add_metric([key], account.running)
            tokens.add_metric([key], account.tokens)
            for name, most in account.rights.limits.items():
                limit.add_metric([key, name], most)
                limited.add_metric([key, name], account.limited[name])
        yield from (running, tokens, limit, limited)


def error_code(record: Record, status: str) -> str | None:
    """Return the code of the error that a request ended with, if any; see `count`."""
    return record.error or (CUT_OFF if status in _LEFT else None)


def endpoint_label(path: str) -> str:
    """Return the path's endpoint as a key of ENDPOINTS, so that no model's name is a label; else OTHER."""
    if path in ENDPOINTS:
        return path
    named = (known for known in ENDPOINTS if "{" in known and path.startswith(known.partition("{")[0]))
    return next(named, OTHER)
