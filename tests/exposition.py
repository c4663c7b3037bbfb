"""A hand-written `/metrics`: a registry with RunGPT's names, which a test fills with its own values."""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

OF_REPLICAS = ("model", "replica")
GAUGES = (
    *("num_requests_running", "num_requests_waiting", "num_slots", "num_slots_used", "kv_cache_usage_perc"),
    *("cache_tokens", "cache_tokens_limit", "process_start_time_seconds"),
)
COUNTERS = (
    *("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits"),
    *("spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens", "log_lines_dropped"),
)
HISTOGRAMS = (
    *("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"),
    *("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds"),
    *("step_time_seconds", "step_batch_size", "request_prompt_tokens", "request_generation_tokens"),
)
BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)


@dataclass
class Exposition:
    """The metrics of a gateway and its replicas."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self):
        def gauge(name, *labels):
            return Gauge(f"rungpt_{name}", name, labels, registry=self.registry)

        def counter(name, *labels):
            return Counter(f"rungpt_{name}", name, labels, registry=self.registry)

        def histogram(name, *labels):
            return Histogram(f"rungpt_{name}", name, labels, buckets=BUCKETS, registry=self.registry)

        self.of_replicas = {name: gauge(name, *OF_REPLICAS) for name in GAUGES}
        self.of_replicas |= {name: counter(name, *OF_REPLICAS) for name in COUNTERS}
        self.of_replicas |= {name: histogram(name, *OF_REPLICAS) for name in HISTOGRAMS}
        self.finished = counter("request_success", *OF_REPLICAS, "finished_reason")
        self.requests = counter("gateway_requests", "endpoint", "status", "key")
        self.seconds = histogram("gateway_request_seconds", "endpoint")
        self.in_flight = gauge("gateway_in_flight")
        self.errors = counter("gateway_errors", "code")
        self.retries = counter("gateway_retries")
        self.replicas = gauge("replicas", "state")
        self.restarts = counter("replica_restarts", "replica")
        self.loaded = gauge("model_loaded", "model")
        self.loads = counter("model_loads", "model")
        self.failed_loads = counter("model_load_failures", "model")
        self.unloads = counter("model_unloads", "model")
        self.build = gauge("build_info", "version")
        self.build.labels("0.2.0").set(1)
        self.started = gauge("gateway_process_start_time_seconds")

    def of(self, name, replica="127.0.0.1:5001", model="smollm2"):
        """Return one metric of one replica."""
        return self.of_replicas[name].labels(model, replica)

    def text(self):
        """Return the text of `/metrics`."""
        return generate_latest(self.registry).decode()
