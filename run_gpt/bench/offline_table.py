"""Results of an offline measurement, as tables and as JSON, with machine, date and versions."""

import datetime
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from run_gpt.bench.offline import Case, Report, Result


@dataclass(frozen=True)
class Table:
    """Table with a head, and rows of the same number of cells."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        """Return the title and the table as Markdown."""
        rows = [tuple(cell.replace("|", "\\|") for cell in row) for row in self.rows]
        lines = [self.head, ("---",) * len(self.head), *rows]
        return f"**{self.title}**\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


@dataclass(frozen=True)
class Figure:
    """Median and spread of the rounds' values."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        """Median, in the unit of the values."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half of the range of the values, divided by the median."""
        return (max(self.values) - min(self.values)) / 2 / self.median

    def text(self, *, spread: bool) -> str:
        """Format the figure as `12.4 ± 3 %`. The reciprocal of another figure is shown without spread."""
        digits = 0 if self.median >= 100 else 1 if self.median >= 10 else 2
        return f"{self.median:,.{digits}f}" + (f" ± {100 * self.spread:.0f} %" if spread else "")

    def record(self) -> dict[str, Any]:
        """Return the figure for JSON."""
        return {"median": self.median, "min": min(self.values), "max": max(self.values), "rounds": list(self.values)}


def figures(case: Case, rounds: list[dict[str, float]]) -> dict[str, Figure]:
    """Compute the four figures of a case, by name; `footer` says what they mean."""
    prefill, step = [one["prefill"] for one in rounds], [one["decode_step"] for one in rounds]
    return {
        "prefill_ms_per_token": Figure([1000 * seconds / case.prompt_tokens for seconds in prefill]),
        "prefill_tokens_per_s": Figure([case.batch * case.prompt_tokens / seconds for seconds in prefill]),
        "decode_ms_per_token": Figure([1000 * seconds for seconds in step]),
        "decode_tokens_per_s": Figure([case.batch / seconds for seconds in step]),
    }


def tables(report: Report) -> list[Table]:
    """Return two tables: speed, then memory and perplexity."""
    return [_speed(report), _memory_and_perplexity(report)]


def _speed(report: Report) -> Table:
    columns = ("prefill, ms/token", "prefill, tokens/s", "decode, ms/token", "decode, tokens/s")
    rows: list[tuple[str, ...]] = []
    for result in report.results:
        if not result.about:
            rows.append((*_names(result), "", "", result.failed, "", "", ""))
            continue
        for case in report.options.cases():
            size = (f"{case.prompt_tokens:,}", str(case.batch))
            if result.rounds.get(case):
                found = figures(case, result.rounds[case]).items()
                cells = tuple(figure.text(spread="ms" in name) for name, figure in found)
            else:
                cells = (result.reasons.get(case) or result.failed, "", "", "")
            rows.append((*_names(result), *size, *cells))
    return Table("Speed", ("precision", "runner", "prompt", "batch", *columns), rows)


def _memory_and_perplexity(report: Report) -> Table:
    columns = ("memory while loading, MB", "memory in all, MB", *(f"perplexity, {name}" for name in report.texts))
    rows: list[tuple[str, ...]] = []
    for result in report.results:
        memory = (f"{result.memory['loading']:,.0f}", f"{result.memory['peak']:,.0f}") if result.memory else ("", "")
        scores = [result.perplexity.get(name) for name in report.texts]
        rows.append((*_names(result), *memory, *(f"{score['perplexity']:.4f}" if score else "" for score in scores)))
    return Table("Memory" + (" and perplexity" if report.texts else ""), ("precision", "runner", *columns), rows)


def _names(result: Result) -> tuple[str, str]:
    """Return precision and runner as loaded, or as requested if loading failed."""
    variant = result.variant
    by = variant.by.replace("auto", result.about.get("runner", "auto"))
    return result.about.get("precision", variant.precision), by


def surroundings(report: Report) -> dict[str, Any]:
    """Return the machine, the date and the versions, without which figures cannot be compared."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    abouts = [result.about for result in report.results if result.about]
    return {
        "date": datetime.date.today().isoformat(),
        "model": report.options.model,
        "device": sorted({about["device"] for about in abouts}),
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": max((about["threads"] for about in abouts), default=None),
        "cores_used_by_others": round(report.others, 2),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("rungpt", "torch", "transformers")},
        },
    }


def footer(report: Report) -> str:
    """Return the text under the tables: machine, date, the meaning of the figures, and what could not be measured."""
    about, options = surroundings(report), report.options
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    turns = "one variant after the other" if options.one_by_one else "all variants in turn"
    parts = [
        f"{about['date']}, {options.model} on {', '.join(about['device']) or 'no device'}; {about['cpu']}, "
        f"{about['cores']} cores, {about['threads']} threads; {versions}. Medians of {options.repeat} rounds, {turns}, "
        f"± half of their range; {options.new_tokens} new tokens, greedy, without speculation. Other programs used "
        f"at most {about['cores_used_by_others']:.1f} cores.",
        "Prefill: from the prompts' submission until every one has its first token; ms/token is that over the tokens "
        "of one prompt, tokens/s is all prompts' tokens over it. Decode: ms/token is the time between two tokens of "
        "one stream while all of them run, tokens/s is the batch over it. Memory: what the process's peak (a GPU's, "
        "where the model is there) grew by, while loading and in all, before perplexity.",
    ]
    scores = [(name, r.perplexity[name]) for name in report.texts for r in report.results if name in r.perplexity]
    if scores:
        counts = {name: f"{score['tokens']:,} tokens of {name}" for name, score in scores}
        sizes = scores[0][1]
        parts.append(
            f"Perplexity: exp of the mean negative log-likelihood, windows of {sizes['window']} tokens, stride "
            f"{sizes['stride']}; scored: {', '.join(counts.values())}."
        )
    reasons = dict.fromkeys(f"{r.variant.name}: {r.failed}" for r in report.results if r.failed and r.about)
    return "\n\n".join([*parts, *report.notes, *reasons])


def markdown(report: Report) -> str:
    """Return tables and footer as Markdown for a document."""
    return "\n\n".join([*(table.markdown() for table in tables(report)), footer(report)])


def record(report: Report) -> dict[str, Any]:
    """Return the report for JSON, with every round's figures. Names contain units; memory is in MB (10^6 bytes)."""
    results = []
    for result in report.results:
        cases = [
            {
                **asdict(case),
                "reason": result.reasons.get(case) or (result.failed if case not in result.rounds else "") or None,
                **{name: f.record() for name, f in figures(case, result.rounds.get(case, [])).items() if f.values},
            }
            for case in report.options.cases()
        ]
        about = {key: value for key, value in vars(result.variant).items() if key not in ("model", "device")}
        found = {"loaded": result.about or None, "memory_mb": result.memory, "perplexity": result.perplexity}
        results.append({**about, **found, "failed": result.failed or None, "cases": cases})
    settings = {**asdict(report.options), "texts": [path.name for path in report.options.texts]}
    return {**surroundings(report), "settings": settings, "notes": report.notes, "results": results}
