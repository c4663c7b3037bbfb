"""docs/reliability.md: a promise whose test has gone would be a promise without one."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text()
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


def test_every_promise_is_held_by_tests_that_there_are() -> None:
    promises = TEXT.split("## Promises")[1].split("\n## ")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for row in rows:
        tests = re.findall(r"`(tests/[\w/]+\.py)`", row)
        assert tests, row
        assert all((ROOT / test).exists() for test in tests), row


def test_every_attack_of_the_campaign_is_explained() -> None:
    from studies.campaign.attacks import ATTACKS

    explained = re.findall(r"^\| ([a-z ]+) \| ", TEXT.split("\n### ")[0].split("| attack | |")[1], re.MULTILINE)
    assert explained == [attack.name for attack in ATTACKS]


def test_each_file_of_the_attacks_is_one_attack() -> None:
    from studies.campaign.attacks import ATTACKS

    files = {path.stem for path in (ROOT / "studies" / "campaign" / "attacks").glob("*.py")} - {"__init__"}
    assert files == {attack.run.__module__.rpartition(".")[2] for attack in ATTACKS}
