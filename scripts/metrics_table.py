"""Print the tables of metrics of docs/monitoring.md, made from the code; `--write` writes them there.

A test compares them.
"""

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from document_tables import main, row, table, with_tables
from prometheus_client.core import Metric

from run_gpt.engine.metrics import EngineMetrics
from run_gpt.engine.scheduler import Scheduler
from run_gpt.gateway.metrics import GatewayMetrics
from run_gpt.gateway.models import Models
from run_gpt.gateway.pool import ReplicaPool

DOCUMENT = Path(__file__).parents[1] / "docs" / "monitoring.md"

# vLLM's metrics with the same meaning; the engine's other metrics have no counterpart there.
VLLM = {
    name: f"vllm:{name.removeprefix('rungpt_')}"
    for name in (
        "rungpt_num_requests_running",
        "rungpt_num_requests_waiting",
        "rungpt_kv_cache_usage_perc",
        "rungpt_prompt_tokens_total",
        "rungpt_generation_tokens_total",
        "rungpt_prefix_cache_queries_total",
        "rungpt_prefix_cache_hits_total",
        "rungpt_request_success_total",
        "rungpt_spec_decode_num_draft_tokens_total",
        "rungpt_spec_decode_num_accepted_tokens_total",
        "rungpt_time_to_first_token_seconds",
        "rungpt_inter_token_latency_seconds",
        "rungpt_e2e_request_latency_seconds",
        "rungpt_request_queue_time_seconds",
        "rungpt_request_prefill_time_seconds",
        "rungpt_request_decode_time_seconds",
        "rungpt_request_prompt_tokens",
        "rungpt_request_generation_tokens",
    )
}
VLLM["rungpt_step_batch_size"] = "near `vllm:iteration_tokens_total`, which counts tokens"


def engine_families() -> list[Metric]:
    """Return all metrics of a new engine."""
    scheduler = Scheduler(max_running=1, max_waiting=1, max_step_tokens=1, end_ids=[], new_text=cast("Any", None))
    return EngineMetrics(scheduler, [], threading.Lock()).collect()


def gateway_families() -> list[Metric]:
    """Return all metrics of a new gateway."""
    return GatewayMetrics(Models([ReplicaPool([])]), lambda: 0).families()


# Labels of families whose samples appear with the first request, and of those that the gateway adds.
_LABELS = {
    "rungpt_request_success_total": "`finished_reason`",
    "rungpt_gateway_requests_total": "`endpoint`, `status`, `key`",
    "rungpt_gateway_request_seconds": "`endpoint`",
    "rungpt_gateway_errors_total": "`code`",
    "rungpt_gateway_key_in_flight": "`key`",
    "rungpt_gateway_key_tokens_total": "`key`",
    "rungpt_gateway_key_limit": "`key`, `limit`",
    "rungpt_gateway_key_limited_total": "`key`, `limit`",
    "rungpt_replicas": "`state`",
    "rungpt_replica_restarts_total": "`replica`",
    "rungpt_model_loaded": "`model`",
    "rungpt_model_loads_total": "`model`",
    "rungpt_model_load_failures_total": "`model`",
    "rungpt_model_unloads_total": "`model`",
    "rungpt_build_info": "`version`",
}


def name_of(family: Metric) -> str:
    """Return the name in the text: counters end with `_total`."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def engine_table() -> str:
    """Return the table of an engine's metrics."""
    rows = []
    for family in engine_families():
        name = name_of(family)
        vllm = VLLM.get(name, "")
        shown = f"`{vllm}`" if vllm.startswith("vllm:") else vllm
        about = " ".join(part for part in (family.documentation, _by(name)) if part)
        rows.append(row(f"`{name}`", family.type, about, shown))
    return table(("metric", "type", "meaning", "vLLM's"), rows)


def gateway_table() -> str:
    """Return the table of a gateway's metrics."""
    rows = [
        row(f"`{name_of(family)}`", family.type, " ".join([family.documentation, _by(name_of(family))]).strip())
        for family in gateway_families()
    ]
    return table(("metric", "type", "meaning"), rows)


def buckets_table() -> str:
    """Return the table of the upper bounds of each histogram's buckets."""
    rows = []
    for family in engine_families():
        bounds = [s.labels["le"].removesuffix(".0") for s in family.samples if s.name.endswith("_bucket")]
        if bounds:
            rows.append(row(f"`{family.name}`", ", ".join(bounds[:-1])))
    return table(("histogram", "upper bounds"), rows)


def _by(name: str) -> str:
    return f"Labels: {_LABELS[name]}." if name in _LABELS else ""


def names(families: Iterable[Metric]) -> set[str]:
    """Return the names in the text."""
    return {name_of(family) for family in families}


TABLES = {"engine": engine_table, "gateway": gateway_table, "buckets": buckets_table}


def made() -> str:
    """Return the document's text with its tables made anew."""
    return with_tables(DOCUMENT, "scripts/metrics_table.py", TABLES)


if __name__ == "__main__":
    main(DOCUMENT, "scripts/metrics_table.py", TABLES)
