"""Panels of the Grafana dashboard, and the PromQL of their queries."""

from dataclasses import dataclass

OF_REPLICAS = 'job=~"$job",model=~"$model",replica=~"$replica"'
OF_GATEWAYS = 'job=~"$job"'
OF_MODELS = 'job=~"$job",model=~"$model"'
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class Panel:
    """One panel. `queries`: legend and PromQL of each; `unit`: its name in Grafana."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    about: str = ""
    stat: bool = False
    """True: show only the last value, in large type."""
    columns: int = 8
    most: float | None = None
    """End of its axis; None: by the values."""


def once(name: str, *by: str, rate: bool = False) -> str:
    """Return a metric of the replicas, each counted once: every gateway of a server reports all replicas."""
    series = f"{name}{{{OF_REPLICAS}}}"
    series = f"rate({series}[$__rate_interval])" if rate else series
    return f"max by ({', '.join(('job', 'model', 'replica', *by))}) ({series})"


def total(name: str, *by: str, rate: bool = False) -> str:
    """Return the sum of a metric over replicas."""
    grouped = f"sum by ({', '.join(by)})" if by else "sum"
    return f"{grouped} ({once(name, *(label for label in by if label != 'replica'), rate=rate)})"


def quantile(q: float, name: str, *by: str) -> str:
    """Return a quantile over the observations of all replicas, or by replica."""
    return f"histogram_quantile({q}, {total(f'{name}_bucket', 'le', *by, rate=True)})"


def quantiles(name: str) -> dict[str, str]:
    """Return the usual three quantiles."""
    return {legend: quantile(q, name) for legend, q in QUANTILES.items()}


def mean(name: str, *by: str) -> str:
    """Return the mean of the observations."""
    return share(f"{name}_sum", f"{name}_count", *by)


def share(part: str, whole: str, *by: str) -> str:
    """Return one rate of the replicas over another."""
    return f"{total(part, *by, rate=True)} / {total(whole, *by, rate=True)}"


def counted(name: str, *by: str, where: str = "") -> str:
    """Return the rate of a counter, summed over gateways; each gateway counts its own requests."""
    grouped = f"sum by ({', '.join(by)})" if by else "sum"
    return f"{grouped} (rate({name}{{{OF_GATEWAYS}{where}}}[$__rate_interval]))"


def of_keys(name: str, where: str = "") -> str:
    """Return a gauge of each key, summed over gateways."""
    return f"sum by (key) ({name}{{{OF_GATEWAYS}{where}}})"


def seen(name: str, by: str, where: str = "") -> str:
    """Return a metric that is the same in every gateway."""
    return f"sum by ({by}) (max by (job, {by}) ({name}{{{OF_GATEWAYS}{where}}}))"


def changes(name: str) -> str:
    """Return the increase of a model's counter over all gateways; each counts its own calls."""
    return f"sum by (model) (increase({name}{{{OF_MODELS}}}[$__range]))"


READY = 'sum (max by (job) (rungpt_replicas{job=~"$job",state="ready"}))'
ERRORS = counted("rungpt_gateway_errors_total")
# Scrapes and web pages are `other`.
REQUESTS = counted("rungpt_gateway_requests_total", where=',endpoint!="other"')
FAILED = ',status!~"2..|OK"'
REFUSED = ',code=~"queue_full|rate_limit_exceeded|unavailable"'
SECONDS = "rungpt_gateway_request_seconds"
START = "rungpt_process_start_time_seconds"

ROWS: dict[str, list[Panel]] = {
    "Overview": [
        Panel("Ready replicas", {"ready": READY}, stat=True, columns=4),
        Panel("Requests", {"per second": REQUESTS}, "reqps", stat=True, columns=4),
        Panel(
            "Generated tokens", {"per second": total("rungpt_generation_tokens_total", rate=True)}, stat=True, columns=4
        ),
        Panel(
            "First token, p90", {"p90": quantile(0.9, "rungpt_time_to_first_token_seconds")}, "s", stat=True, columns=4
        ),
        Panel("Waiting", {"waiting": total("rungpt_num_requests_waiting")}, stat=True, columns=4),
        Panel("Errors", {"of requests": f"{ERRORS} / {REQUESTS}"}, "percentunit", stat=True, columns=4),
    ],
    "Traffic": [
        Panel("Requests by status", {"{{status}}": counted("rungpt_gateway_requests_total", "status")}, "reqps"),
        Panel("Requests by endpoint", {"{{endpoint}}": counted("rungpt_gateway_requests_total", "endpoint")}, "reqps"),
        Panel(
            "Tokens per second",
            {
                "prompt": total("rungpt_prompt_tokens_total", rate=True),
                "generated": total("rungpt_generation_tokens_total", rate=True),
            },
        ),
        Panel(
            "Finished by reason",
            {"{{finished_reason}}": total("rungpt_request_success_total", "finished_reason", rate=True)},
            "reqps",
        ),
        Panel("Prompt length", quantiles("rungpt_request_prompt_tokens"), about="Tokens."),
        Panel("Answer length", quantiles("rungpt_request_generation_tokens"), about="Tokens."),
    ],
    "Latency": [
        Panel("Time to first token", quantiles("rungpt_time_to_first_token_seconds"), "s", columns=12),
        Panel("Inter-token latency", quantiles("rungpt_inter_token_latency_seconds"), "s", columns=12),
        Panel("End to end", quantiles("rungpt_e2e_request_latency_seconds"), "s", columns=6),
        Panel("In the queue", quantiles("rungpt_request_queue_time_seconds"), "s", columns=6),
        Panel("Prefill", quantiles("rungpt_request_prefill_time_seconds"), "s", columns=6),
        Panel("Decode", quantiles("rungpt_request_decode_time_seconds"), "s", columns=6),
    ],
    "Engine, all replicas": [
        Panel(
            "Running and waiting",
            {"running": total("rungpt_num_requests_running"), "waiting": total("rungpt_num_requests_waiting")},
            about="Sequences. Waiting ones that do not go away: more replicas, or fewer requests.",
        ),
        Panel("Slots", {"used": total("rungpt_num_slots_used"), "all": total("rungpt_num_slots")}),
        Panel(
            "Cache use",
            {
                "mean": f"avg ({once('rungpt_kv_cache_usage_perc')})",
                "fullest": f"max ({once('rungpt_kv_cache_usage_perc')})",
            },
            "percentunit",
            most=1,
        ),
        Panel(
            "Tokens in the cache",
            {"held": total("rungpt_cache_tokens"), "limit": total("rungpt_cache_tokens_limit")},
            about="Infinite where the engine has no limit.",
        ),
        Panel(
            "Rows in a step", {"mean": mean("rungpt_step_batch_size"), "p90": quantile(0.9, "rungpt_step_batch_size")}
        ),
        Panel("Step time", {"mean": mean("rungpt_step_time_seconds"), **quantiles("rungpt_step_time_seconds")}, "s"),
        Panel("Steps", {"per second": total("rungpt_step_time_seconds_count", rate=True)}, "ops"),
        Panel(
            "Reused prompt tokens",
            {"of all": share("rungpt_prefix_cache_hits_total", "rungpt_prefix_cache_queries_total")},
            "percentunit",
            "The share of prompt tokens that a kept prefix had already.",
            most=1,
        ),
        Panel(
            "Accepted drafts",
            {
                "of drafted": share(
                    "rungpt_spec_decode_num_accepted_tokens_total", "rungpt_spec_decode_num_draft_tokens_total"
                )
            },
            "percentunit",
            "The share of speculated tokens that were right; nothing while nothing is drafted.",
            most=1,
        ),
    ],
    "Engine, each replica": [
        Panel("Running", {"{{replica}}": total("rungpt_num_requests_running", "replica")}),
        Panel("Waiting", {"{{replica}}": total("rungpt_num_requests_waiting", "replica")}),
        Panel("Slots used", {"{{replica}}": total("rungpt_num_slots_used", "replica")}),
        Panel("Cache use", {"{{replica}}": total("rungpt_kv_cache_usage_perc", "replica")}, "percentunit", most=1),
        Panel(
            "Generated tokens per second",
            {"{{replica}}": total("rungpt_generation_tokens_total", "replica", rate=True)},
        ),
        Panel("Step time, mean", {"{{replica}}": mean("rungpt_step_time_seconds", "replica")}, "s"),
        Panel("Rows in a step, mean", {"{{replica}}": mean("rungpt_step_batch_size", "replica")}),
        Panel("First token, p90", {"{{replica}}": quantile(0.9, "rungpt_time_to_first_token_seconds", "replica")}, "s"),
        Panel("Inter-token, p90", {"{{replica}}": quantile(0.9, "rungpt_inter_token_latency_seconds", "replica")}, "s"),
        Panel("Up since it started", {"{{replica}}": f"time() - {total(START, 'replica')}"}, "s", columns=24),
    ],
    "Gateway": [
        Panel("In flight", {"{{instance}}": 'sum by (instance) (rungpt_gateway_in_flight{job=~"$job"})'}),
        Panel("Errors by code", {"{{code}}": f"{counted('rungpt_gateway_errors_total', 'code')} > 0"}, "reqps"),
        Panel(
            "Rejections",
            {"{{code}}": counted("rungpt_gateway_errors_total", "code", where=REFUSED)},
            "reqps",
            "queue_full: the engine's queue was full (429). rate_limit_exceeded: a key's limit was reached (429). "
            "unavailable: no replica could take it (503).",
        ),
        Panel("Retries", {"per second": counted("rungpt_gateway_retries_total")}, "reqps"),
        Panel("Replicas by state", {"{{state}}": seen("rungpt_replicas", "state")}),
        Panel(
            "Restarts of replicas",
            {"{{replica}}": 'max by (replica) (increase(rungpt_replica_restarts_total{job=~"$job"}[$__range]))'},
            about="In the time shown.",
        ),
        Panel(
            "Request time, p90",
            {
                "{{endpoint}}": f"histogram_quantile(0.9, {counted(f'{SECONDS}_bucket', 'le', 'endpoint')})",
            },
            "s",
            "From a request to the end of its answer.",
        ),
        Panel(
            "Failed scrapes of replicas",
            {"{{instance}}": counted("rungpt_gateway_scrape_failures_total", "instance")},
            "ops",
            "Replicas that gave no metrics in time, and so have a gap here.",
        ),
        Panel(
            "Dropped log lines",
            {
                "{{replica}}": total("rungpt_log_lines_dropped_total", "replica", rate=True),
                "{{instance}}": counted("rungpt_gateway_log_lines_dropped_total", "instance"),
            },
            "ops",
            "Lines of a replica's or a gateway's log that could not be written: its disk is full, or nothing reads it.",
        ),
        Panel("Gateways", {"{{version}}": 'count by (version) (rungpt_build_info{job=~"$job"})'}),
        Panel(
            "Up since it started",
            {"{{instance}}": 'time() - max by (instance) (rungpt_gateway_process_start_time_seconds{job=~"$job"})'},
            "s",
            columns=24,
        ),
    ],
    "Models": [
        Panel(
            "Models in memory",
            {"{{model}}": f"sum by (model) (max by (job, model) (rungpt_model_loaded{{{OF_MODELS}}}))"},
            about="1: it is in memory; 0: it is loaded by the next request for it.",
            columns=12,
        ),
        Panel(
            "Loads and unloads",
            {
                "{{model}}: loads": changes("rungpt_model_loads_total"),
                "{{model}}: failed loads": changes("rungpt_model_load_failures_total"),
                "{{model}}: unloads": changes("rungpt_model_unloads_total"),
            },
            about="In the time shown; those at the start of the server are not counted.",
            columns=12,
        ),
    ],
    "Keys": [
        Panel(
            "Requests by key",
            {"{{key}}": counted("rungpt_gateway_requests_total", "key")},
            "reqps",
            columns=12,
            about="By the key's name; without one: a server without keys, or a request that had none.",
        ),
        Panel(
            "Requests that failed, by key",
            {"{{key}}, {{status}}": counted("rungpt_gateway_requests_total", "key", "status", where=FAILED)},
            "reqps",
            columns=12,
        ),
        Panel("Requests in flight, by key", {"{{key}}": of_keys("rungpt_gateway_key_in_flight")}),
        Panel(
            "Tokens a minute, by key",
            {
                "{{key}}": f"60 * {counted('rungpt_gateway_key_tokens_total', 'key')}",
                "{{key}}, limit": of_keys("rungpt_gateway_key_limit", ',limit="tokens"'),
            },
            about="Of requests that ended; a key's limit is that of each gateway, added up.",
        ),
        Panel(
            "Requests refused by a limit",
            {"{{key}}, {{limit}}": counted("rungpt_gateway_key_limited_total", "key", "limit")},
            "reqps",
        ),
    ],
}
