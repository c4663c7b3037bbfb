"""The campaign's findings as a table of a document, and as JSON."""

import datetime
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from run_gpt import __version__
from scripts.document_tables import row, table
from studies.campaign.finding import Finding

Findings = dict[str, list[Finding]]


def record(findings: Findings, seconds: float) -> dict[str, Any]:
    """Return everything that is known of a campaign, for JSON."""
    return {
        "date": datetime.date.today().isoformat(),
        "version": __version__,
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "seconds": round(seconds),
        "attacks": {name: [asdict(finding) for finding in found] for name, found in findings.items()},
    }


def markdown(recorded: dict[str, Any]) -> str:
    """Return the table of a record: a row for each finding."""
    rows = []
    for name, found in recorded["attacks"].items():
        for finding in found:
            figure = finding["figure"].replace("|", "/").replace("\n", " ")
            rows.append(row(name, finding["promise"], figure, "yes" if finding["held"] else "**no**"))
    held = sum(finding["held"] for found in recorded["attacks"].values() for finding in found)
    about = f"{held} of {len(rows)} held, in {recorded['seconds']} s on {recorded['cores']} cores, {recorded['date']}."
    return table(("attack", "promise", "figure", "held"), rows) + "\n\n" + about


def write_json(recorded: dict[str, Any], path: Path) -> None:
    """Write a record, which `--from` reads again."""
    path.write_text(json.dumps(recorded, indent=2) + "\n")
