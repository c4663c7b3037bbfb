"""Attack a server that this program starts on loopback, and print what of its promises held.

    python -m studies.campaign                      all attacks, within 15 minutes
    python -m studies.campaign --short              the form of `make test`, about a minute
    python -m studies.campaign kills hangs          some of them

The model is tiny, and the server has two replicas and a key. The table goes to stdout, progress to stderr; the exit
status is 1 if a promise did not hold. Never name another machine's server: there is no option for one.
"""

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from scripts.document_tables import with_tables
from studies.campaign.attack import Attack, find
from studies.campaign.attacks import ATTACKS
from studies.campaign.finding import Finding
from studies.campaign.model import write_byte_model
from studies.campaign.others import ask
from studies.campaign.report import Findings, markdown, record, write_json
from studies.campaign.site import Site, serving

LIMIT_SECONDS = 15 * 60.0
SHORT_EASE = 5.0
DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


async def campaign(site: Site, attacks: list[Attack], *, short: bool) -> Findings:
    """Run the attacks one after the other; those for which no time is left are left out."""
    begun, findings = time.monotonic(), {}
    async with site.client() as client:
        expected = await ask(client)
    for attack in attacks:
        seconds = attack.short if short else attack.seconds
        if time.monotonic() - begun + seconds > LIMIT_SECONDS:
            findings[attack.name] = [Finding("the campaign has time for it", "left out", False)]
            continue
        print(f"{attack.name}: {seconds:g} s", file=sys.stderr, flush=True)
        findings[attack.name] = await find(site, attack, expected, seconds)
    log = site.log.read_text(errors="replace")
    count = log.count("Traceback (most recent call last)")
    findings["all"] = [Finding("no traceback in the log", f"{count}, {len(log) / 1000:.0f} kB of log", not count)]
    return findings


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [attack.name.replace(" ", "-") for attack in ATTACKS]
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=f"default: all of {', '.join(names)}")
    parser.add_argument("--short", action="store_true", help="each attack for a second or two")
    parser.add_argument("--model", help="default: a tiny one of random weights")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the findings")
    parser.add_argument("--from", dest="read", type=Path, metavar="FILE", help="attack nothing: show what --json kept")
    parser.add_argument("--write", metavar="TABLE", choices=("before", "last"), help=f"write it into {DOCUMENT.name}")
    options = parser.parse_args()
    for name in options.attacks:
        if name not in names:
            parser.error(f"{name}: there is {', '.join(names)}")
    return options


def main() -> int:
    """Attack and report; return the exit status."""
    options, start = parsed(), time.monotonic()
    if options.read:
        recorded = json.loads(options.read.read_text())
    else:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # thousands of connections
        chosen = [one for one in ATTACKS if not options.attacks or one.name.replace(" ", "-") in options.attacks]
        with tempfile.TemporaryDirectory() as folder:
            model = options.model or str(write_byte_model(Path(folder) / "model"))
            with serving(model, Path(folder), SHORT_EASE if options.short else 1.0) as site:
                findings = asyncio.run(campaign(site, chosen, short=options.short))
        recorded = record(findings, time.monotonic() - start)
    if options.json:
        write_json(recorded, options.json)
    print(markdown(recorded))
    if options.write:
        tables = {options.write: lambda: markdown(recorded)}
        DOCUMENT.write_text(with_tables(DOCUMENT, "studies/campaign", tables))
    return int(any(not finding["held"] for found in recorded["attacks"].values() for finding in found))


if __name__ == "__main__":
    sys.exit(main())
