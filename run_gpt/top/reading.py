"""Owns a reading of a server: how its two endpoints are requested, and which parts of the responses are kept."""

import ssl
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from run_gpt.errors import SetupError
from run_gpt.top.rates import Labels, Series

SECONDS = 3.0
"""Timeout of each of the two requests."""


@dataclass(frozen=True)
class Reading:
    """State of a server at one moment."""

    at: float
    """time.monotonic() when `/metrics` was requested."""
    wall: float
    """time.time() at the same moment; the uptime is this minus the server's start."""
    metrics: dict[str, dict[Labels, float]]
    """Values of each metric, by its name with its suffix (`_total`, `_bucket`, ...)."""
    ready: dict[str, Any] = field(default_factory=dict)
    """JSON of `/ready`."""

    def series(self, name: str) -> Series:
        """Return the values of a metric; empty if the server does not have it."""
        return self.metrics.get(name, {})


def parse(text: str) -> dict[str, dict[Labels, float]]:
    """Parse an exposition in Prometheus' text format. Raises ValueError if the text is not one."""
    from prometheus_client.parser import text_string_to_metric_families

    metrics: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            metrics.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return metrics


class Source:
    """The server at `url`: http://HOST:PORT, with a path prefix if its routes have one. Requests carry `key`, if any.

    `trust` has the certificates that are trusted for https, default: the well-known ones.

    Raises SetupError for an invalid URL.
    """

    def __init__(self, url: str, key: str | None, trust: ssl.SSLContext | bool = True):
        bad = SetupError(f"--url {url.rpartition('@')[2]}: write http://HOST:PORT")
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018 - reading it checks it
        except ValueError:
            raise bad from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise bad
        self.shown = parts.netloc.rpartition("@")[2] + parts.path.rstrip("/")
        """URL for display, without scheme and password."""
        base = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client = httpx.Client(
            base_url=base, headers=headers, timeout=SECONDS, verify=parts.scheme == "https" and trust
        )

    def read(self) -> Reading:
        """Read the server once. Raises SetupError (one line) if it does not answer, or its answer has no metrics."""
        at, wall = time.monotonic(), time.time()
        metrics = self._get("/metrics")
        if metrics.status_code != httpx.codes.OK:
            raise SetupError(f"{self.shown}: {_refusal(metrics)}")
        try:
            samples, ready = parse(metrics.text), self._get("/ready").json()
        except ValueError:
            ready = None
        if not isinstance(ready, dict):
            raise SetupError(f"{self.shown} does not answer as RunGPT does: is it the HTTP port?")
        return Reading(at, wall, samples, ready)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _get(self, path: str) -> httpx.Response:
        try:
            return self._client.get(path)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = str(error) or type(error).__name__
            raise SetupError(f"no server answers at {self.shown} ({why}): start one with `rungpt serve`") from None


def _refusal(response: httpx.Response) -> str:
    if response.status_code == httpx.codes.FORBIDDEN:
        return "its key may not read /metrics: take one with role=admin or role=monitor"
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return "it requires a key: set RUNGPT_API_KEY, or give --api-key"
    if response.status_code == httpx.codes.NOT_FOUND:
        return "it has no /metrics: it is no RunGPT server, or of another version"
    return f"/metrics answers with status {response.status_code}"
