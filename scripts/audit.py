"""Audit the tested set of constraints.txt for known vulnerabilities, with pip-audit.

    make audit

The exit status is 0 for none, 1 for a vulnerability that ACCEPTED does not explain, 2 if nothing could be audited.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
ACCEPTED = {
    "urllib3": "Jina takes no urllib3 2, and 1.26 gets no more fixes. The server makes no requests with it; Jina's "
    "command line and `rungpt deploy --cloud kubernetes` do, to hosts that their user names.",
    "ecdsa": "Its signing can be timed, without a fix. It comes with Jina's account client, and nothing signs with it.",
}
"""Packages whose vulnerabilities have no fix within Jina's bounds, and the reason why they do no harm here."""
COMMAND = ("--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip", "--format", "json")


def audited(pip_audit: str) -> list[dict[str, Any]]:
    """Return pip-audit's entries for the packages that it could look up; [] without an index of advisories."""
    command = [pip_audit, *COMMAND, "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        entries: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return []  # it ended with an error instead of a report
    return [entry for entry in entries if "skip_reason" not in entry]


def faults(entries: list[dict[str, Any]]) -> list[str]:
    """Return a line for each vulnerability that is not accepted."""
    return [
        f"{entry['name']} {entry['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'none'}"
        for entry in entries
        for found in entry["vulns"]
        if entry["name"] not in ACCEPTED
    ]


def main(pip_audit: str = "pip-audit") -> int:
    """Audit, print, and return the exit status."""
    entries = audited(pip_audit)
    if not entries:
        print("no index of advisories can be reached from here: nothing was audited", file=sys.stderr)
        return 2
    found = faults(entries)
    print("\n".join(found) if found else f"{len(entries)} packages, no vulnerability that could be mended")
    for name in sorted({entry["name"] for entry in entries if entry["vulns"]} & ACCEPTED.keys()):
        print(f"accepted: {name}: {ACCEPTED[name]}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
