"""Calculate the growth of many replicas: the cost of each part, its limits, and the size of a cell."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from run_gpt.config import DEFAULT_MODEL, GatewayConfig
from run_gpt.models.catalogue import find
from studies.capacity.costs import Costs
from studies.capacity.simulation import PROBES_PER_SECOND
from studies.capacity.table import GATEWAY_FULL, Point, gateways_for, probe_share

SIZES = (10, 100, 1000, 10000)
NAME_BYTES = 55
"""Length of a name like rungpt-executor.namespace.svc.cluster.local on the wire, with some room."""
DNS_HEADER, DNS_QUESTION, DNS_RECORD, DNS_OPTIONS = 12, 4, 16, 11
"""Bytes (RFC 1035, 6891): header; type and class of the question; an A record with a compressed name; EDNS."""
DNS_LIMITS = {"UDP": 512, "EDNS over UDP, usual": 1232, "EDNS over UDP, large": 4096, "TCP": 65535}
"""Largest answer in bytes: RFC 1035, the DNS flag day of 2020, RFC 6891, and TCP's length of two bytes."""
SLICE = 100
"""Endpoints of an EndpointSlice by default; at most 1,000."""
NODES = 5000
"""Most nodes of a Kubernetes cluster, from its documentation."""
LINK = 10e9 / 8
"""Bytes per second of the one store from which all nodes pull: an assumption."""
PROBES_OF_GATEWAY, PROBES_OF_REPLICA = 0.05, 0.01
"""Share of a core that probes may take in a cell."""
GATEWAYS_LEAST = 2
"""Fewest gateways in a cell, so that one may be exchanged."""


@dataclass(frozen=True)
class Group:
    """Gateways that each reach all `replicas`."""

    replicas: int
    gateways: int | None
    """None: probes leave no room for any work."""

    @property
    def connections(self) -> int:
        """Number of connections between gateways and replicas."""
        return self.replicas * (self.gateways or 0)


def dns_bytes(records: int) -> int:
    """Return the size of an answer with `records` A records."""
    return DNS_HEADER + NAME_BYTES + DNS_QUESTION + DNS_OPTIONS + DNS_RECORD * records


def dns_most(limit: int) -> int:
    """Return the number of A records that an answer of `limit` bytes holds."""
    return (limit - dns_bytes(0)) // DNS_RECORD


def dns_way(records: int) -> str:
    """Name the smallest transport that carries so many records, or say that none does."""
    return next((name for name, limit in DNS_LIMITS.items() if dns_bytes(records) <= limit), "none: cut off")


def group(costs: Costs, point: Point, replicas: int) -> Group:
    """Return a group of replicas, each with the load of `point`, and the gateways that they need."""
    work = point.gateway_work / point.replicas * replicas
    return Group(replicas, gateways_for(work, replicas, costs.gateway_probe))


GrowthRow = tuple[str, Callable[[Group], str], str]
"""Label, a function that makes the cell of a group, and the origin of the number."""


def growth_table(costs: Costs, point: Point, image_bytes: float) -> str:
    """Return the table of one group of replicas behind one name, for each of SIZES."""
    groups = [group(costs, point, size) for size in SIZES]
    lines = ["| | " + " | ".join(f"n = {size:,}" for size in SIZES) + " | from |", "|---" * (len(SIZES) + 2) + "|"]
    for label, cell, origin in (*_load(point), *_probing(costs), *_connecting(costs), *_moving(costs, image_bytes)):
        lines.append(f"| {label} | {' | '.join(cell(g) for g in groups)} | {origin} |")
    last = math.floor(GATEWAY_FULL / (PROBES_PER_SECOND * costs.gateway_probe))
    after = (
        f"Probes leave a gateway no room for requests above n = {last:,} (computed: it is used to {GATEWAY_FULL:.0%})."
    )
    return "\n".join(lines) + f"\n\n{after}"


def _load(point: Point) -> list[GrowthRow]:
    seen = point.summary
    assert seen is not None  # a simulated point has one
    users, tokens = point.users / point.replicas, seen.tokens_per_second / point.replicas
    work = point.gateway_work / point.replicas
    return [
        ("users", lambda g: f"{users * g.replicas:,.0f}", "simulated, times n"),
        ("tokens/s", lambda g: f"{tokens * g.replicas:,.0f}", "simulated, times n"),
        ("gateways' work, cores", lambda g: f"{work * g.replicas:,.1f}", "measured costs, simulated load"),
    ]


def _probing(costs: Costs) -> list[GrowthRow]:
    asking, asked = costs.gateway_probe, costs.executor_probe
    return [
        ("probes, of each gateway's core", lambda g: f"{probe_share(g.replicas, asking):.1%}", "n x 2/s x measured"),
        ("gateways", lambda g: "none suffices" if g.gateways is None else f"{g.gateways:,}", "computed"),
        (
            "probes, of each replica's core",
            lambda g: "" if g.gateways is None else f"{probe_share(g.gateways, asked):.1%}",
            "gateways x 2/s x measured",
        ),
        ("probes per second, all", lambda g: _count(g, PROBES_PER_SECOND * g.connections), "gateways x n x 2"),
    ]


def _connecting(costs: Costs) -> list[GrowthRow]:
    files, memory, choice = costs.channel_files, costs.channel_bytes, costs.choice
    return [
        ("connections, all", lambda g: _count(g, g.connections), "gateways x n"),
        (
            "a gateway's files and memory for them",
            lambda g: f"{files * g.replicas:,.0f}, {memory * g.replicas / 1e6:,.1f} MB",
            "n x measured",
        ),
        ("choosing a replica, ms CPU", lambda g: f"{1e3 * choice * g.replicas:,.2f}", "n x measured"),
        ("DNS answer", lambda g: f"{dns_bytes(g.replicas):,} bytes: {dns_way(g.replicas)}", "computed, RFC 1035"),
        ("EndpointSlices", lambda g: f"{math.ceil(g.replicas / SLICE):,}", "documentation: 100 in each"),
        (
            "clusters, one replica on a node",
            lambda g: f"{math.ceil(g.replicas / NODES):,}",
            "documentation: 5,000 nodes",
        ),
    ]


def _moving(costs: Costs, image_bytes: float) -> list[GrowthRow]:
    one = costs.ready_seconds + GatewayConfig.drain_seconds
    assumed = f"computed; an image of {image_bytes / 1e9:.1f} GB and 10 Gbit/s are assumed"
    return [
        ("image and model, all nodes from one store", lambda g: _pull(g.replicas, image_bytes), assumed),
        (
            "rolling update, one after the other",
            lambda g: _duration(one * g.replicas),
            "n x (measured start + drain at most)",
        ),
    ]


def _count(group: Group, number: float) -> str:
    return "" if group.gateways is None else f"{number:,.0f}"


def _pull(nodes: int, image_bytes: float) -> str:
    model = find(DEFAULT_MODEL)
    assert model is not None  # the catalogue begins with it
    total = nodes * (image_bytes + model.bytes)
    return f"{total / 1e12:,.2f} TB, {_duration(total / LINK)}"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.0f} s"


def bounds(costs: Costs, point: Point) -> dict[str, int]:
    """Return the most replicas of a cell, by each bound."""
    return {
        f"probes take at most {PROBES_OF_GATEWAY:.0%} of a gateway's core": int(
            PROBES_OF_GATEWAY / (PROBES_PER_SECOND * costs.gateway_probe)
        ),
        f"probes take at most {PROBES_OF_REPLICA:.0%} of a replica's core": _most(
            lambda n: probe_share(group(costs, point, n).gateways or n, costs.executor_probe) <= PROBES_OF_REPLICA
        ),
        "a DNS answer stays within 1,232 bytes, so within one packet": dns_most(1232),
        "one EndpointSlice holds them all": SLICE,
    }


def _most(holds: Callable[[int], bool]) -> int:
    size = 1
    while size < SIZES[-1] and holds(size + 1):
        size += 1
    return size


def cell_size(costs: Costs, point: Point) -> int:
    """Return the largest power of two within all bounds, so that cells can be halved and doubled."""
    return 1 << int(math.log2(max(1, min(bounds(costs, point).values()))))


def overload(users: float, cells: int) -> float:
    """Return the fullest cell's users over the mean, where a hash spreads users (normal, 1 in 100)."""
    deviations = math.sqrt(2 * math.log(100 * cells / math.sqrt(2 * math.pi)))
    return 1 + deviations / math.sqrt(users)


def cells_table(costs: Costs, point: Point, replicas: int = SIZES[-1]) -> str:
    """Return the tables of the bounds of a cell, and of `replicas` divided into cells."""
    lines = ["| bound | replicas in a cell |", "|---|---|"]
    lines += [f"| {name} | {most:,} |" for name, most in bounds(costs, point).items()]
    size = cell_size(costs, point)
    cell = group(costs, point, size)
    gateways = max(GATEWAYS_LEAST, cell.gateways or 0)
    cells = math.ceil(replicas / size)
    users = point.users / point.replicas * size
    # Seconds in which a cell is exchanged a quarter at a time.
    update = 4 * (costs.ready_seconds + GatewayConfig.drain_seconds)
    facts = {
        "replicas in a cell": f"{size}",
        f"cells for {replicas:,} replicas": f"{cells:,}",
        "gateways in a cell": f"{gateways}",
        "gateways in all": f"{gateways * cells:,}",
        "connections in all": f"{cells * gateways * size:,}",
        "probes per second in all": f"{PROBES_PER_SECOND * cells * gateways * size:,.0f}",
        "probes, of a gateway's core": f"{probe_share(size, costs.gateway_probe):.1%}",
        "probes, of a replica's core": f"{probe_share(gateways, costs.executor_probe):.2%}",
        "DNS answer": f"{dns_bytes(size):,} bytes: {dns_way(size)}",
        "users in a cell": f"{users:,.0f}",
        "the fullest of all cells has": f"{overload(users, cells):.2f} times the mean",
        "users who notice when a cell is lost": f"{1 / cells:.2%}",
        "a cell's update, a quarter at a time": _duration(update),
        "all cells, one in a hundred at a time": _duration(update * min(100, cells)),
        "clusters, one replica on a node": f"{math.ceil(replicas / NODES):,}",
    }
    chosen = ["| chosen | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    return "\n".join(lines) + "\n\n" + "\n".join(chosen)
