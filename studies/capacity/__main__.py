"""Compute the replicas that users need at a latency: measured steps, a simulation, its check, and the table.

    python -m studies.capacity measure      steps, request costs, probes of the default model, into figures.json
    python -m studies.capacity check        compare the simulation with a real server under a bounded load
    python -m studies.capacity table        users at a latency for numbers of replicas, and the needs of 10,000

Run it in the root of a clone. Without `--write` tables go to stdout only; with it they go into docs/capacity.md.
Progress goes to stderr. Measure and check on a quiet machine: the figures include the cores that other programs used
meanwhile.
"""

import argparse
import datetime
import json
import os
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from run_gpt.config import DEFAULT_MODEL
from scripts.document_tables import with_tables
from scripts.machine import surroundings
from studies.capacity.check import check as compare
from studies.capacity.check import markdown as comparison
from studies.capacity.costs import Costs
from studies.capacity.measure_costs import measure_costs
from studies.capacity.measure_steps import measure_steps
from studies.capacity.paper import cells_table, growth_table
from studies.capacity.replica import ReplicaConfig
from studies.capacity.simulation import Cluster, Policy
from studies.capacity.steps import StepModel, fit
from studies.capacity.table import Point, Target, capacity_table, markdown, policy_table
from studies.capacity.users import Workload

DOCUMENT = Path(__file__).parents[2] / "docs" / "capacity.md"
FIGURES = Path(__file__).parent / "figures.json"
COUNTS = (1, 2, 4, 8, 16, 64, 256, 1024, 10000)
SIMULATE_UP_TO = 64
TABLES = ("capacity", "assumed", "policies", "fit", "costs", "check", "growth", "cells")
"""Names of the document's tables; each has its mark there."""


def measure(options: argparse.Namespace) -> None:
    """Measure and fit; print the errors of the fit and write all figures."""
    steps = measure_steps(options.model, options.threads, options.seconds)
    fitted = fit(steps)
    costs = measure_costs(options.model, options.seconds / 3)
    record = {
        **about(),
        "model": options.model,
        "threads": options.threads,
        "fit": fitted.record(),
        "costs": asdict(costs),
    }
    options.json.write_text(json.dumps(record, indent=2) + "\n")
    print(measured_tables(record)["fit"]() + "\n\n" + measured_tables(record)["costs"]())


def about() -> dict[str, Any]:
    """Return the machine and the date."""
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

    def costs_table() -> str:
        lines = ["| | measured |", "|---|---|"]
        for name, (label, factor, unit) in COSTS.items():
            lines.append(f"| {label} | {factor * record['costs'][name]:,.3g} {unit} |")
        return "\n".join(lines) + "\n\n" + footer(record)

    return {"fit": fit_table, "costs": costs_table}


COSTS = {
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


def cluster_of(record: dict[str, Any], policy: Policy) -> Cluster:
    """Return the measured figures as a cluster of one replica with its own core."""
    steps = StepModel.of(record["fit"]["model"])
    return Cluster(steps, ReplicaConfig(threads=record["threads"]), policy=policy, costs=Costs(**record["costs"]))


def check(options: argparse.Namespace) -> None:
    """Compare, print, and write with `--write`."""
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
    made["growth"] = text_of(growth_table(cluster.costs, best, options.image_bytes))
    made["cells"] = text_of(cells_table(cluster.costs, best))
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
    DOCUMENT.write_text(with_tables(DOCUMENT, "studies/capacity", made))


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
        add("--seconds", type=float, default=75.0, help="for the steps, and a third of it for the costs")
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
