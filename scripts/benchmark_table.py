"""Table of scripts/engine_benchmark.py: a row for each measurement, a column for each contender."""

import statistics
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Row:
    """One line of the table: the figures of each contender, round by round."""

    label: str
    unit: str
    """tokens/s, ms, MB, or "" for a share or a ratio."""
    rounds: dict[str, list[float]] = field(default_factory=dict)

    def times(self, name: str, baseline: str) -> float | None:
        """Return the speed over the baseline's; None where that has no meaning."""
        if self.unit not in ("tokens/s", "ms") or name == baseline or baseline not in self.rounds:
            return None
        pairs = zip(self.rounds[name], self.rounds[baseline], strict=True)
        return statistics.median(a / b if self.unit == "tokens/s" else b / a for a, b in pairs)

    def cell(self, name: str, baseline: str) -> str:
        """Return the cell of a contender's column."""
        if name not in self.rounds:
            return ""
        median = statistics.median(self.rounds[name])
        if not self.unit:
            return f"{median:.2f}"
        times = self.times(name, baseline)
        return f"{median:,.{0 if median >= 100 else 1}f}" + ("" if times is None else f" ({times:.2f} x)")

    def record(self, baseline: str) -> dict[str, Any]:
        """Return the row for JSON."""
        results = {
            name: {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
                "rounds": values,
                "times_as_fast": self.times(name, baseline),
            }
            for name, values in self.rounds.items()
        }
        return {"label": self.label, "unit": self.unit, "results": results}


def merged(rows: list[Row]) -> list[Row]:
    """Merge the rows of one label."""
    by_label: dict[str, Row] = {}
    for row in rows:
        by_label.setdefault(row.label, Row(row.label, row.unit)).rounds.update(row.rounds)
    return list(by_label.values())


def table(names: list[str], rows: list[Row]) -> str:
    """Return the rows as Markdown."""
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        label = f"{row.label}, {row.unit}" if row.unit else row.label
        lines.append(f"| {label} | " + " | ".join(row.cell(name, names[0]) for name in names) + " |")
    return "\n".join(lines)
