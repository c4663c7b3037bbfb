"""Compute the users that a number of replicas serves within a latency: by simulation, and beyond by calculation."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from studies.capacity.simulation import PROBES_PER_SECOND, Cluster, Run, Simulation
from studies.capacity.users import Request, Workload

GATEWAY_FULL = 0.7
"""Highest wanted use of a gateway's core, so that requests do not queue in it."""
SIMULATED_USERS_SECONDS = 16000.0
"""User-seconds of one simulation: its length is this over the users, within the bounds below."""
SHORTEST, LONGEST, WARM_UP = 40.0, 400.0, 60.0


@dataclass(frozen=True)
class Target:
    """Latency limits that users are promised."""

    ttft: float = 1.0
    """Most seconds to the first token, for nine of ten requests."""
    rate: float = 20.0
    """Fewest tokens per second of a stream, from its first token on, for nine of ten streams."""
    refused: float = 0.001
    """Share of requests that may be refused."""


@dataclass(frozen=True)
class Summary:
    """Figures that users saw. Times in seconds; nan where there are no data."""

    requests: int
    refused: int
    tokens_per_second: float
    ttft_p50: float
    ttft_p90: float
    gap_p50: float
    """Median time between two events of a stream."""
    gap_p90: float
    stream_rate: float
    """Tokens per second of a stream that nine of ten streams reach."""
    reused: float
    """Share of prompt tokens that a replica held already."""

    def meets(self, target: Target) -> bool:
        """True when the figures keep the target."""
        return (
            self.ttft_p90 <= target.ttft
            and not self.stream_rate < target.rate
            and self.refused <= target.refused * self.requests
        )


def summary(requests: Sequence[Request], gaps: Iterable[tuple[float, int]], tokens: int, seconds: float) -> Summary:
    """Summarise the requests sent within `seconds`, in which users got `tokens` tokens."""
    answered = [request for request in requests if not request.refused]
    waits = [(request.first - request.sent, 1) for request in answered]
    rates = [
        ((request.answer_tokens - 1) / (request.end - request.first), 1)
        for request in answered
        if request.answer_tokens > 1 and request.end > request.first
    ]
    gaps = list(gaps)
    prompts = sum(request.prompt_tokens for request in answered)
    return Summary(
        len(requests),
        len(requests) - len(answered),
        tokens / seconds,
        quantile(waits, 0.5),
        quantile(waits, 0.9),
        quantile(gaps, 0.5),
        quantile(gaps, 0.9),
        quantile(rates, 0.1),
        sum(request.cached_tokens for request in answered) / prompts if prompts else math.nan,
    )


def quantile(weighted: Iterable[tuple[float, int]], share: float) -> float:
    """Return the smallest value that covers this share of the weight; nan without values."""
    values = sorted(weighted)
    left = share * sum(weight for _, weight in values)
    for value, weight in values:
        left -= weight
        if left <= 0:
            return value
    return math.nan


def summary_of(run: Run) -> Summary:
    """Summarise a simulation."""
    return summary(run.requests, run.gaps, run.tokens, run.seconds)


@dataclass(frozen=True)
class Point:
    """A line of the table."""

    replicas: int
    users: int
    gateways: int | None
    """None: no number of gateways could serve so many replicas in one group."""
    probes: float
    """Share of a gateway's core for its probes."""
    probed: float
    """Share of a core of each replica for the probes of all gateways."""
    simulated: bool
    summary: Summary | None = None
    gateway_work: float = math.nan
    """Cores that all gateways used, without probes."""
    replica_busy: float = math.nan


def simulate(cluster: Cluster, workload: Workload, users: int, seed: int = 0) -> Run:
    """Run a simulation that is long enough to check the target."""
    seconds = min(LONGEST, max(SHORTEST, SIMULATED_USERS_SECONDS / max(1, users)))
    return Simulation(cluster, workload, users=users, seed=seed).run(seconds, warm_up=WARM_UP)


def most_users(cluster: Cluster, workload: Workload, target: Target, guess: int, seed: int = 0) -> tuple[int, Run]:
    """Return the most users within the target, to 3 %, and their run. 0: not even one user is."""
    runs: dict[int, Run] = {}

    def fits(users: int) -> bool:
        runs[users] = simulate(cluster, workload, users, seed)
        return summary_of(runs[users]).meets(target)

    low, high = 0, max(1, guess)
    while fits(high):
        low, high = high, math.ceil(high * 1.3)
    while high - low > max(1, round(0.03 * high)):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, runs[low or high]


def gateways_for(work: float, replicas: int, probe: float) -> int | None:
    """Return the gateways for `work` cores when each probes all replicas; None: probes leave no room for it."""
    room = GATEWAY_FULL - probe_share(replicas, probe)
    return None if room <= 0 else max(1, math.ceil(work / room))


def probe_share(others: int, seconds: float) -> float:
    """Return the share of a core for the probes of `others` processes."""
    return others * PROBES_PER_SECOND * seconds


def capacity_table(
    cluster: Cluster, workload: Workload, target: Target, counts: Sequence[int], *, simulate_up_to: int, seed: int = 0
) -> list[Point]:
    """Return a line for each number of replicas: simulated, above `simulate_up_to` scaled up from one replica."""
    points: list[Point] = []
    users, work = 8.0, 0.1
    for count in counts:
        gateways = gateways_for(work * count, count, cluster.costs.gateway_probe)
        shares = (
            probe_share(count, cluster.costs.gateway_probe),
            probe_share(gateways or 0, cluster.costs.executor_probe),
        )
        if count > simulate_up_to or gateways is None:
            points.append(Point(count, round(users * count), gateways, *shares, simulated=False))
            continue
        tried = replace(cluster, replicas=count, gateways=gateways)
        most, run = most_users(tried, workload, target, round(users * count), seed)
        points.append(Point(count, most, gateways, *shares, True, summary_of(run), run.gateway_work, run.replica_busy))
        users, work = most / count, run.gateway_work / count
        if not most:
            break
    return points


def markdown(points: Sequence[Point]) -> str:
    """Return the table."""
    lines = [
        "| replicas | users | users per replica | tokens/s | TTFT p50 / p90, s | stream tokens/s, p10 | reused | "
        "replicas busy | gateway cores | probes, of a gateway's core | probes, of a replica's core |",
        "|---" * 11 + "|",
    ]
    for point in points:
        seen = point.summary
        cells = [f"{point.replicas:,}", f"{point.users:,}", f"{point.users / point.replicas:.1f}"]
        if point.gateways is None:
            cells[1:] = ["not in one group", ""]
        if seen is None:
            cells += ["calculated", "", "", "", ""]
        else:
            cells += [
                f"{seen.tokens_per_second:,.0f}",
                f"{seen.ttft_p50:.2f} / {seen.ttft_p90:.2f}",
                f"{seen.stream_rate:.0f}",
                f"{seen.reused:.0%}",
                f"{point.replica_busy:.0%}",
            ]
        gateways = "none suffices" if point.gateways is None else f"{point.gateways:,}"
        cells += [gateways, f"{point.probes:.1%}", f"{point.probed:.1%}" if point.gateways else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


COMPARED_REPLICAS = 8
COMPARED_GATEWAYS = 4


def policy_table(cluster: Cluster, workload: Workload, points: Sequence[Point]) -> str:
    """Compare ways to choose a replica, for the users that the replicas serve with the default way."""
    few = [point for point in points if point.simulated and point.replicas <= COMPARED_REPLICAS]
    base = replace(cluster, replicas=few[-1].replicas, gateways=1, policy="affinity")
    several = f"{COMPARED_GATEWAYS} gateways"
    ways = {
        "least busy": replace(base, policy="least-busy"),
        "affinity": base,
        f"affinity, {several}, a conversation stays with its gateway": replace(base, gateways=COMPARED_GATEWAYS),
        f"affinity, {several}, any of them": replace(base, gateways=COMPARED_GATEWAYS, sticky=False),
        "affinity, 1,000 characters outweigh a request": replace(base, affinity_characters=1000.0),
        "affinity, 500 characters": replace(base, affinity_characters=500.0),
        "affinity, 250 characters": replace(base, affinity_characters=250.0),
    }
    lines = [
        f"| {base.replicas} replicas, {few[-1].users} users | TTFT p50 / p90, s | stream tokens/s, p10 | reused |",
        "|---|---|---|---|",
    ]
    for name, way in ways.items():
        seen = summary_of(simulate(way, workload, few[-1].users, seed=1))
        times = f"{seen.ttft_p50:.2f} / {seen.ttft_p90:.2f}"
        lines.append(f"| {name} | {times} | {seen.stream_rate:.0f} | {seen.reused:.0%} |")
    return "\n".join(lines)
