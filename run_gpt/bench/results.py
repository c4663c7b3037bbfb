"""Files of a benchmark, as JSON and CSV: every sample, the figures, and the environment of the measurement."""

import csv
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from run_gpt.bench.load import Level, Run
from run_gpt.bench.sample import Sample
from run_gpt.bench.summary import METRICS, Summary, summarise
from run_gpt.bench.sweep import Saturation
from run_gpt.errors import SetupError

SCHEMA, VERSION = "rungpt.bench.serve", 2


@dataclass
class Results:
    """All loads of one benchmark."""

    environment: dict[str, Any]
    arguments: dict[str, Any]
    """Arguments of the benchmark, without the API key."""
    limits: dict[str, float]
    runs: list[Run]
    saturation: Saturation | None = None

    @property
    def summaries(self) -> list[Summary]:
        """Figures of each load, in the order of `ordered`."""
        return [summarise(run, self.limits) for run in self.ordered]

    @property
    def ordered(self) -> list[Run]:
        """Loads in order: closed before open, from the lightest to the heaviest."""
        return sorted(self.runs, key=lambda run: (run.level.kind, run.level.value, not run.level.streamed))


def environment(server: Any) -> dict[str, Any]:
    """Describe this machine. `server` is the server's JSON about its models (None if it gave none)."""
    import run_gpt

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rungpt": run_gpt.__version__,
        "python": platform.python_version(),
        "httpx": metadata.version("httpx"),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "server": server,
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def write_json(results: Results, path: Path) -> None:
    """Write everything into one file, which `read_json` reads."""
    loads = []
    for run, summary in zip(results.ordered, results.summaries, strict=True):
        client = {"cpu_seconds": run.cpu_seconds, "lag": [round(late, 6) for late in run.lag]}
        samples = [sample.to_dict() for sample in run.samples]
        loads.append(
            {
                "level": asdict(run.level),
                "seconds": run.seconds,
                "summary": summary.to_dict(),
                "client": client,
                "server": {"cpu_seconds": run.server_seconds},
                "samples": samples,
            }
        )
    found = results.saturation
    document = {
        "schema": SCHEMA,
        "version": VERSION,
        "environment": results.environment,
        "arguments": results.arguments,
        "limits": results.limits,
        "saturation": found and asdict(found),
        "loads": loads,
    }
    _written(path, json.dumps(document, indent=1))


def read_json(path: Path) -> Results:
    """Read a file of `write_json`. Raises SetupError for any other file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise SetupError(f"{path} is no JSON: give files that `rungpt bench serve --json` wrote") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise SetupError(f"{path} is no result of `rungpt bench serve --json`")
    if document.get("version") != VERSION:
        raise SetupError(
            f"{path} has version {document.get('version')} of its form, this program {VERSION}: measure anew"
        )
    try:
        return _results(document)
    except (KeyError, TypeError) as error:
        raise SetupError(f"{path} is not whole: {error}") from None


def _results(document: dict[str, Any]) -> Results:
    runs = []
    for load in document["loads"]:
        run = Run(Level(**load["level"]), [Sample.from_dict(sample) for sample in load["samples"]])
        run.seconds, run.cpu_seconds, run.lag = load["seconds"], load["client"]["cpu_seconds"], load["client"]["lag"]
        run.server_seconds = load["server"]["cpu_seconds"]
        runs.append(run)
    found = document["saturation"]
    saturation = found and Saturation(Level(**found["level"]), found["reason"])
    return Results(document["environment"], document["arguments"], document["limits"], runs, saturation)


def write_csv(summaries: Sequence[Summary], path: Path) -> None:
    """Write one line of figures for each load, with latencies in milliseconds."""
    figures = ("count", "mean", "p50", "p90", "p99", "max")
    rows = []
    for summary in summaries:
        level = summary.level
        answers = "streamed" if level.streamed else "whole"
        row = {"load": level.kind, "answers": answers, **summary.to_dict(), "level": level.value}
        row["failures"] = sum(summary.failures.values())
        del row["latencies"], row["server_cpu"]
        row["server_cpu_ms_per_token"] = summary.server_cpu_ms_per_token
        row |= {f"server_cpu_ms_per_token, {name}": ms for name, ms in summary.server_cpu.items()}
        for name in METRICS:
            stats = summary.latencies[name]
            row |= {f"{name}_{figure}": stats and getattr(stats, figure) for figure in figures}
        rows.append(row)
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            # A process may have begun or ended between two loads.
            writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None


def _written(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None
