"""The text of `/metrics`: each replica's metrics, labelled with its address, and the gateway's own."""

import asyncio
import logging
from collections.abc import Iterable, Sequence

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from run_gpt.gateway.metrics import GatewayMetrics
from run_gpt.gateway.replica import Replica

log = logging.getLogger(__name__)

SCRAPE_SECONDS = 0.8
"""Time for all replicas together, so that a silent one does not delay the answer."""
AT_ONCE = 128
"""Number of replicas that are asked at the same time."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def scrape(replicas: Sequence[Replica], metrics: GatewayMetrics) -> bytes:
    """Return all metrics in Prometheus' text form. A replica that does not answer in time is left out and counted."""
    asked = [replica for replica in replicas if replica.state in ("ready", "draining")]
    places, until = asyncio.Semaphore(AT_ONCE), asyncio.get_running_loop().time() + SCRAPE_SECONDS

    async def ask(replica: Replica) -> str:
        async with asyncio.timeout_at(until), places:
            return await replica.ask_metrics(SCRAPE_SECONDS)

    # Any failure concerns one replica only: it may be silent, gone, or closed in the middle of its call.
    texts = await asyncio.gather(*map(ask, asked), return_exceptions=True)
    named = []
    for replica, text in zip(asked, texts, strict=True):
        if isinstance(text, BaseException):
            log.warning("the replica at %s gave no metrics: %s", replica.address, type(text).__name__)
        else:
            named.append((_labels(replica), text))
    metrics.scrape_failures.inc(len(asked) - len(named))
    own = metrics.families()
    return await asyncio.to_thread(_written, named, own)  # for a hundred replicas this takes half a second


def _labels(replica: Replica) -> dict[str, str]:
    return {"model": replica.model or "", "replica": replica.address}


def _written(named: Sequence[tuple[dict[str, str], str]], own: Iterable[Metric]) -> bytes:
    return generate_latest(_Joined([*joined(named), *own]))


def joined(named: Sequence[tuple[dict[str, str], str]]) -> list[Metric]:
    """Return the metrics of several texts, each family once: samples get the labels given with their text."""
    families: dict[str, Metric] = {}
    for labels, text in named:
        for family in text_string_to_metric_families(text):
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            whole.samples += [sample._replace(labels={**sample.labels, **labels}) for sample in family.samples]
    return list(families.values())


class _Joined(Collector):
    """Collector of given families, as prometheus_client expects one."""

    def __init__(self, families: Sequence[Metric]):
        self._families = families

    def collect(self) -> Sequence[Metric]:
        """See Collector."""
        return self._families
