"""Owns the numbers shown of a server: computed from two readings, independent of a terminal."""

from collections.abc import Callable
from dataclasses import dataclass, field

from run_gpt.top.rates import Labels, Series, fell, increases, label, quantile, summed
from run_gpt.top.reading import Reading

Quantiles = tuple[float | None, float | None]
"""p50 and p90 in seconds, of the observations between the readings; None without observations."""


WELL = ("ready", "unloaded", "loading")
"""States of a healthy replica. A replica in state `unloaded` loads its model for the next request."""


@dataclass(frozen=True)
class ModelRow:
    """Row of one of several models. Its loads on request and its unloads are counted since the gateway started."""

    name: str
    state: str
    running: float
    waiting: float
    tokens_per_second: float
    loads: int
    failed_loads: int
    unloads: int


@dataclass(frozen=True)
class ReplicaRow:
    """Row of one replica. None for values that it did not report."""

    address: str
    model: str
    state: str
    restarts: int
    running: float | None
    waiting: float | None
    slots_used: float | None
    slots: float | None
    kv_share: float | None
    """Share of its KV cache that is in use, 0 to 1."""
    tokens_per_second: float | None
    step_seconds: float | None
    """Mean time of an engine step between the readings."""
    batch: float | None
    """Mean number of sequences in those steps."""


@dataclass(frozen=True)
class View:
    """Numbers of a server over the time between two readings. Rates are per second."""

    model: str
    version: str
    uptime: float | None
    """Seconds since the gateway started."""
    ready: int
    total: int
    in_flight: float | None
    seconds: float
    """Time between the readings."""
    requests: dict[str, float]
    """Rate of API requests at the gateway, by status."""
    finished: dict[str, float]
    """Rate of finished answers, by finish reason."""
    prompt_tokens: float
    generated_tokens: float
    reused_share: float | None
    """Share of the looked-up prompt tokens that were in a prefix cache, 0 to 1."""
    ttft: Quantiles
    inter_token: Quantiles
    replicas: list[ReplicaRow]
    errors: dict[str, tuple[float, float]]
    """Total and rate of errors, by code."""
    models: list[ModelRow] = field(default_factory=list)
    """Rows of the models of a server with several models; else empty."""
    restarted: list[str] = field(default_factory=list)
    """Processes whose counters were reset between the readings: `gateway`, or the address of a replica."""


def view_of(before: Reading, after: Reading) -> View:
    """Compute the view of the time from one reading to the other."""
    return _Between(before, after).view()


class _Between:
    """Computation of a view from two readings of one server."""

    def __init__(self, before: Reading, after: Reading):
        self.before, self.after = before, after
        self.seconds = max(after.at - before.at, 1e-9)
        known = {label(labels, "replica") for labels in before.series("rungpt_num_requests_running")} | {""}
        # A new replica may have counted for hours; the counters of the gateway itself are always known.
        self._known: Callable[[Labels], bool] = lambda labels: label(labels, "replica") in known

    def view(self) -> View:
        ready = self.after.ready.get("replicas") or {}
        prompt, looked_up = self._rate("rungpt_prompt_tokens_total"), self._rate("rungpt_prefix_cache_queries_total")
        return View(
            model=self._model(),
            version=next((label(labels, "version") for labels in self.after.series("rungpt_build_info")), "?"),
            uptime=self._uptime(),
            ready=int(ready.get("ready", 0)),
            total=int(ready.get("total", 0)),
            in_flight=_only(self.after.series("rungpt_gateway_in_flight")),
            seconds=self.seconds,
            requests=self._rates_by("rungpt_gateway_requests_total", "status", _of_the_api),
            finished=self._rates_by("rungpt_request_success_total", "finished_reason"),
            prompt_tokens=prompt,
            generated_tokens=self._rate("rungpt_generation_tokens_total"),
            reused_share=_ratio(self._rate("rungpt_prefix_cache_hits_total"), looked_up),
            ttft=self._quantiles("rungpt_time_to_first_token_seconds"),
            inter_token=self._quantiles("rungpt_inter_token_latency_seconds"),
            replicas=self._replicas(),
            errors=self._errors(),
            models=self._models(),
            restarted=self._restarted(),
        )

    def _risen(self, name: str) -> dict[Labels, float]:
        return increases(self.before.series(name), self.after.series(name), self._known)

    def _rate(self, name: str) -> float:
        return sum(self._risen(name).values()) / self.seconds

    def _rates_by(self, name: str, by: str, counts: Callable[[Labels], bool] = lambda _: True) -> dict[str, float]:
        risen = {labels: value for labels, value in self._risen(name).items() if counts(labels)}
        sums = sorted(summed(risen, by).items())
        return {group: risen / self.seconds for (group,), risen in sums if risen}

    def _quantiles(self, name: str) -> Quantiles:
        counts = summed(self._risen(f"{name}_bucket"), "le")
        buckets = [(float(bound), count) for (bound,), count in counts.items()]
        return quantile(0.5, buckets), quantile(0.9, buckets)

    def _model(self) -> str:
        known = {label(labels, "model") for labels in self.after.series("rungpt_num_requests_running")} - {""}
        names = list(self.after.ready.get("models") or sorted(known))
        return ", ".join(names) or self.after.ready.get("model") or "?"

    def _models(self) -> list[ModelRow]:
        """Return the rows of the models in the server's order; none for a single model, which the totals describe."""
        states = self.after.ready.get("models") or {}
        return [self._one_model(name, str(state)) for name, state in states.items()] if len(states) > 1 else []

    def _one_model(self, name: str, state: str) -> ModelRow:
        def of(series: Series) -> float:
            return summed(series, "model").get((name,), 0.0)

        return ModelRow(
            name=name,
            state=state,
            running=of(self.after.series("rungpt_num_requests_running")),
            waiting=of(self.after.series("rungpt_num_requests_waiting")),
            tokens_per_second=of(self._risen("rungpt_generation_tokens_total")) / self.seconds,
            loads=int(of(self.after.series("rungpt_model_loads_total"))),
            failed_loads=int(of(self.after.series("rungpt_model_load_failures_total"))),
            unloads=int(of(self.after.series("rungpt_model_unloads_total"))),
        )

    def _uptime(self) -> float | None:
        started = _only(self.after.series("rungpt_gateway_process_start_time_seconds"))
        return None if started is None else max(0.0, self.after.wall - started)

    def _errors(self) -> dict[str, tuple[float, float]]:
        name = "rungpt_gateway_errors_total"
        risen = summed(self._risen(name), "code")
        sums = sorted(summed(self.after.series(name), "code").items())
        return {group[0]: (count, risen[group] / self.seconds) for group, count in sums if count}

    def _restarted(self) -> list[str]:
        """Return the restarted processes: `gateway`, or addresses of replicas.

        A replica counts as restarted if the gateway reports it, or if its step counter fell, which may be visible
        before the gateway notices. The step counter also falls when a model is loaded again; that is no restart.
        """
        requests, steps = "rungpt_gateway_requests_total", "rungpt_step_time_seconds_count"
        gateway = ["gateway"] if fell(self.before.series(requests), self.after.series(requests)) else []
        reported = [labels for labels, risen in self._risen("rungpt_replica_restarts_total").items() if risen]
        loads = summed(self._risen("rungpt_model_loads_total"), "model")
        fallen = fell(self.before.series(steps), self.after.series(steps))
        again = [*reported, *(labels for labels in fallen if not loads.get((label(labels, "model"),)))]
        return gateway + sorted({label(labels, "replica") for labels in again})

    def _replicas(self) -> list[ReplicaRow]:
        """Return a row for each replica in `/ready` or in the metrics; those that are not healthy come first."""
        each = (self.after.ready.get("replicas") or {}).get("each") or []
        replicas = {str(one.get("address")): (str(one.get("model") or "?"), str(one.get("state"))) for one in each}
        for labels in self.after.series("rungpt_num_requests_running"):
            replicas.setdefault(label(labels, "replica"), (label(labels, "model"), "?"))
        rows = [self._replica(address, model, state) for address, (model, state) in sorted(replicas.items())]
        return sorted(rows, key=lambda row: row.state in WELL)

    def _replica(self, address: str, model: str, state: str) -> ReplicaRow:
        step = "rungpt_step_time_seconds"
        tokens = self._of("rungpt_generation_tokens_total", address, rise=True)
        return ReplicaRow(
            address=address,
            model=model,
            state=state,
            restarts=int(self._of("rungpt_replica_restarts_total", address) or 0),
            running=self._of("rungpt_num_requests_running", address),
            waiting=self._of("rungpt_num_requests_waiting", address),
            slots_used=self._of("rungpt_num_slots_used", address),
            slots=self._of("rungpt_num_slots", address),
            kv_share=self._of("rungpt_kv_cache_usage_perc", address),
            tokens_per_second=None if tokens is None else tokens / self.seconds,
            step_seconds=self._mean(step, address),
            batch=self._mean("rungpt_step_batch_size", address),
        )

    def _of(self, name: str, address: str, *, rise: bool = False) -> float | None:
        """Return a replica's value, or with `rise` its increase between the readings."""
        series = self._risen(name) if rise else self.after.series(name)
        return summed(series, "replica").get((address,))

    def _mean(self, name: str, address: str) -> float | None:
        count = self._of(f"{name}_count", address, rise=True)
        return _ratio(self._of(f"{name}_sum", address, rise=True) or 0.0, count or 0.0)


def _of_the_api(labels: Labels) -> bool:
    """Return True for requests to API endpoints. Others, such as `/metrics`, would show the view's own requests."""
    return label(labels, "endpoint") != "other"


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _only(series: Series) -> float | None:
    return next(iter(series.values()), None)
