"""Compute the replicas that users need at a latency: measured steps, a simulation, its check, and the table.

    python scripts/capacity.py measure      steps, request costs, probes of the default model, into docs/capacity.json
    python scripts/capacity.py check        compare the simulation with a real server under a bounded load
    python scripts/capacity.py table        users at a latency for numbers of replicas, and the needs of 10,000

Without `--write` tables go to stdout only; with it they go into docs/capacity.md. Progress goes to stderr. Measure and
check on a quiet machine: the figures include the cores that other programs used meanwhile.
"""

import argparse
import datetime
import json
import os
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from capacity_doors import measure_doors
from capacity_measure import measure_steps
from capacity_paper import cells_table, growth_table
from capacity_replica import ReplicaConfig
from capacity_simulation import Cluster, Costs
from capacity_steps import StepModel, fit
from capacity_table import Point, Target, capacity_table, markdown, policy_table
from capacity_users import Workload
from document_tables import with_tables

from run_gpt.config import DEFAULT_MODEL

DOCUMENT = Path(__file__).parents[1] / "docs" / "capacity.md"
FIGURES = DOCUMENT.with_suffix(".json")
COUNTS = (1, 2, 4, 8, 16, 64, 256, 1024, 10000)
SIMULATE_UP_TO = 64
TABLES = ("capacity", "assumed", "policies", "fit", "doors", "check", "growth", "cells")
"""Names of the document's tables; each has its mark there."""


def measure(options: argparse.Namespace) -> None:
    """Measure and fit; print the errors of the fit and write all figures."""
    steps = measure_steps(options.model, options.threads, options.seconds)
    fitted = fit(steps)
    doors = measure_doors(options.model, options.seconds / 3)
    record = {
        **about(),
        "model": options.model,
        "threads": options.threads,
        "fit": fitted.record(),
        "doors": asdict(doors),
    }
    options.json.write_text(json.dumps(record, indent=2) + "\n")
    print(measured_tables(record)["fit"]() + "\n\n" + measured_tables(record)["doors"]())


def about() -> dict[str, Any]:
    """Return the machine and the date."""
    from engine_benchmark import surroundings

    found = surroundings(None)
    return {"date": datetime.date.today().isoformat(), "cpu": found["cpu"], "cores": len(os.sched_getaffinity(0))}


def measured_tables(record: dict[str, Any]) -> dict[str, Callable[[], str]]:
    """Return the tables of the measured figures, by name."""

    def fit_table() -> str:
        prices = " · ".join(f"{name} {1e6 * price:,.4g}" for name, price in record["fit"]["model"].items())
        lines = ["| steps with | number | all of them, off by | median error | p90 error |", "|---|---|---|---|---|"]
        for error in record["fit"]["errors"]:
            numbers = f"{error['bias']:+.0%} | {error['median']:.0%} | {error['p90']:.0%}"
            lines.append(f"| {error['kind']} | {error['steps']} | {numbers} |")
        return f"Prices, µs: {prices}.\n\n" + "\n".join(lines) + "\n\n" + footer(record)

    def doors_table() -> str:
        lines = ["| | measured |", "|---|---|"]
        for name, (label, factor, unit) in DOORS.items():
            lines.append(f"| {label} | {factor * record['doors'][name]:,.3g} {unit} |")
        return "\n".join(lines) + "\n\n" + footer(record)

    return {"fit": fit_table, "doors": doors_table}


DOORS = {
    "gateway_request": ("gateway, a request", 1e3, "ms CPU"),
    "gateway_event": ("gateway, an event of a stream", 1e3, "ms CPU"),
    "executor_event": ("executor, an event, beside the step", 1e3, "ms CPU"),
    "client_event": ("our client, an event", 1e3, "ms CPU"),
    "gateway_probe": ("a probe, in the gateway", 1e3, "ms CPU"),
    "executor_probe": ("a probe, in the executor", 1e3, "ms CPU"),
    "choice": ("a look at one replica when one is chosen", 1e6, "µs CPU"),
    "channel_bytes": ("memory of one more replica in a gateway", 1e-3, "kB"),
    "channel_files": ("file descriptors of it", 1, ""),
    "ready_seconds": ("a server's start until it is ready", 1, "s"),
}


def footer(record: dict[str, Any]) -> str:
    """Return the line under a table."""
    return (
        f"{record['date']}, {record['model']} on {record['cpu']}, {record['cores']} cores, {record['threads']} thread"
        f"{'s' if record['threads'] > 1 else ''} for a replica; no speculation."
    )


def cluster_of(record: dict[str, Any], policy: str) -> Cluster:
    """Return the measured figures as a cluster of one replica with its own core."""
    doors = {field.name: record["doors"][field.name] for field in fields(Costs)}
    steps = StepModel.of(record["fit"]["model"])
    return Cluster(steps, ReplicaConfig(threads=record["threads"]), policy=policy, costs=Costs(**doors))  # type: ignore[arg-type]


def check(options: argparse.Namespace) -> None:
    """Compare, print, and write with `--write`."""
    from capacity_check import check as compare
    from capacity_check import markdown as comparison

    record = json.loads(options.measured.read_text())
    cluster = replace(cluster_of(record, options.policy), shared_cores=len(os.sched_getaffinity(0)))
    cases = compare(cluster, options.model, options.replicas, options.users, options.seconds)
    others = max(case.others_busy for case in cases)
    noise = (
        f"{footer({**record, **about()})} Other programs used at most {others:.1f} cores meanwhile, which the "
        f"simulation has not; the gateway chose by {options.policy.replace('-', ' ')}."
    )
    made = f"{comparison(cases)}\n\n{noise}"
    print(made)
    if options.json is not None:
        options.json.write_text(json.dumps([{**asdict(c), "ratios": c.ratios()} for c in cases], indent=2) + "\n")
    if options.write:
        write({"check": lambda: made})


def table(options: argparse.Namespace) -> None:
    """Make the tables by simulation and calculation."""
    record = json.loads(options.measured.read_text())
    cluster, workload = cluster_of(record, options.policy), Workload()
    target = Target(options.ttft, options.rate)
    made: dict[str, Callable[[], str]] = dict(measured_tables(record))
    points = capacity_table(cluster, workload, target, options.replicas, simulate_up_to=SIMULATE_UP_TO)
    made["capacity"] = text_of(f"{markdown(points)}\n\n{footer(record)}")
    made["policies"] = text_of(policy_table(cluster, workload, points))
    if options.assume is not None:
        assumed = assumed_cluster(cluster, options.assume)
        lines = capacity_table(assumed, workload, target, options.replicas, simulate_up_to=SIMULATE_UP_TO // 4)
        made["assumed"] = text_of(f"**Assumed, not measured:** `{json.dumps(options.assume)}`\n\n{markdown(lines)}")
    best = largest_simulated(points)
    made["growth"] = text_of(growth_table(record["doors"], best, options.image_bytes))
    made["cells"] = text_of(cells_table(record["doors"], best))
    for name, make in made.items():
        print(f"{name}:\n\n{make()}\n")
    if options.write:
        write(made)


def largest_simulated(points: list[Point]) -> Point:
    """Return the last simulated line. Raises SystemExit if there is none, or if it serves no user."""
    simulated = [point for point in points if point.simulated and point.users]
    if not simulated:
        raise SystemExit("no number of replicas keeps this target: allow a longer --ttft or a smaller --rate")
    return simulated[-1]


def text_of(text: str) -> Callable[[], str]:
    """Wrap a text as `with_tables` needs it."""
    return lambda: text


def assumed_cluster(cluster: Cluster, assumed: dict[str, Any]) -> Cluster:
    """Return the same gateways before replicas with other prices. Raises SystemExit for an unknown name."""
    known = {field.name for field in fields(ReplicaConfig)}
    if unknown := set(assumed) - known - {"name", "step"}:
        raise SystemExit(f"--assume has name, step, {', '.join(sorted(known))}; not {', '.join(sorted(unknown))}")
    options = {name: value for name, value in assumed.items() if name in known}
    return replace(cluster, steps=StepModel.of(assumed["step"]), replica=ReplicaConfig(**options))


def write(made: dict[str, Callable[[], str]]) -> None:
    """Put the tables between their marks in the document."""
    DOCUMENT.write_text(with_tables(DOCUMENT, "capacity", made))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in (("measure", measure), ("check", check), ("table", table)):
        command = commands.add_parser(name, help=function.__doc__)
        command.set_defaults(function=function)
        add_options(name, command.add_argument)
    options = parser.parse_args()
    options.function(options)


def add_options(command: str, add: Callable[..., Any]) -> None:
    """Add the options of one command."""
    if command == "measure":
        add("--json", type=Path, default=FIGURES, help="where the figures go; default: %(default)s")
        add("--threads", type=int, default=1, help="of the engine; default: %(default)s")
        add("--seconds", type=float, default=75.0, help="for the steps, and a third of it for the doors")
    else:
        add("--measured", type=Path, default=FIGURES, help="figures of `measure`; default: %(default)s")
        add("--policy", choices=("affinity", "least-busy"), default="affinity", help="default: %(default)s")
        add("--write", action="store_true", help="put the tables into docs/capacity.md")
    if command != "table":
        add("--model", default=DEFAULT_MODEL, help="default: %(default)s")
    if command == "check":
        add("--replicas", type=int, nargs="+", default=[1, 2], help="default: 1 2")
        add("--users", type=int, nargs="+", default=[1, 4, 16], help="default: 1 4 16")
        add("--seconds", type=float, default=40.0, help="of each case; default: %(default)s")
        add("--json", type=Path, help="where the comparison goes")
    if command == "table":
        add("--replicas", type=int, nargs="+", default=list(COUNTS), help="default: up to 10,000")
        add("--ttft", type=float, default=Target.ttft, help="seconds to the first token, p90; default: %(default)s")
        add("--rate", type=float, default=Target.rate, help="tokens/s of a stream, p90; default: %(default)s")
        add("--assume", type=json.loads, metavar="JSON", help="another replica that is not measured; see the document")
        add("--image-bytes", type=float, default=2e9, help="of the image, compressed; an assumption: %(default)s")


if __name__ == "__main__":
    main()
