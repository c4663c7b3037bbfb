"""Without these tests servers could be compared that did different work, or figures be lost on joining files."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from run_gpt.bench import servers, servers_table
from run_gpt.bench.document import END, SERVERS
from run_gpt.errors import SetupError

FOLDER = str(Path(__file__).parents[3] / "scripts")


def compared(*arguments: str) -> None:
    """Run scripts/server_benchmark.py."""
    if FOLDER not in sys.path:
        sys.path.insert(0, FOLDER)
    importlib.import_module("server_benchmark").main(arguments)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the expected answers as long as those of the scripted server."""
    monkeypatch.setattr(servers, "NEW_TOKENS", 5)
    monkeypatch.setattr(servers, "WARM_UP_TOKENS", 5)


def test_servers_are_measured_in_turn_streamed_and_whole(
    scripted: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast, slow = scripted(ttft=0.02, gap=0.01), scripted(ttft=0.3, gap=0.05)
    (document := tmp_path / "a.md").write_text(f"before\n{SERVERS.begin}\nold\n{END}\nafter\n")
    options = ["--server", f"fast={fast.url}/v1", "--server", f"slow={slow.url}/v1", "--streams", "1", "2"]
    compared(*options, "--rounds", "2", "--json", str(tmp_path / "a.json"), "--write", str(document))
    output = capsys.readouterr()
    assert output.out.strip() in document.read_text()
    assert "round 2 of 2: concurrency 2, whole" in output.err
    lines = {line.split("|")[1].strip(): line for line in output.out.splitlines() if line.startswith("|")}
    assert {"fast, streamed", "slow, whole", "fast: streamed / whole", "fast / slow, streamed"} <= lines.keys()
    ratio = float(lines["fast / slow, streamed"].split("|")[2])
    assert 4 < ratio < 12, "0.5 s over 0.06 s, and what the sockets take"
    assert lines["fast, streamed, x2"].split("|")[3].strip() == "5", "events of an answer"
    for script in (fast, slow):
        bodies = [{name: value for name, value in body.items() if name != "prompt"} for body in script.bodies]
        assert len(bodies) == 3 * 2 * (1 + 2), "rounds with the warm-up, both ways, loads"
        assert bodies[0]["ignore_eos"] is True
        assert bodies[0]["temperature"] == 0
        assert [body.get("stream", False) for body in bodies[:6]] == [True, False, True, True, False, False]
    prompts = [[body["prompt"] for body in script.bodies] for script in (fast, slow)]
    assert prompts[0] == prompts[1], "the same work"
    assert len(set(prompts[0])) == len(prompts[0]), "and none of it twice"


def test_what_was_measured_one_after_the_other_is_joined(
    scripted: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    for name, path, more in (("A", a, []), ("B", b, ["--join", str(a)])):
        options = ["--server", f"{name}={scripted().url}/v1", "--streams", "1", "--rounds", "1"]
        compared(*options, "--json", str(path), *more)
    capsys.readouterr()
    compared("--join", str(b), "--ratio", "A", "B")
    output = capsys.readouterr().out
    assert "A / B, whole" in output
    assert "B / A" not in output
    found = {one.name: one.rounds for one in servers.read_json(b)}
    assert found["A"] == servers.read_json(a)[0].rounds
    with pytest.raises(SetupError, match="different names"):
        compared("--join", str(a), str(b))
    with pytest.raises(SetupError, match=r"C was not measured: there are B, A"):
        compared("--join", str(b), "--ratio", "A", "C")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ({"tokens": 3}, "one, concurrency 1: answers had 3 tokens, not 5"),
        ({"usage": False}, "one gives no usage"),
        ({"behaviours": ("cut",)}, "one, concurrency 1: requests failed: {'broken stream': 1}"),
    ],
)
def test_a_server_that_does_other_work_is_not_compared(scripted: Callable[..., Any], script: Any, says: str) -> None:
    with pytest.raises(SetupError, match=says):
        compared("--server", f"one={scripted(**script).url}/v1", "--streams", "1", "--rounds", "1")


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"schema": servers.SCHEMA, "version": 1})])
def test_another_file_is_not_joined(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SetupError, match="is no result of"):
        compared("--join", str(tmp_path / "a.json"))
    with pytest.raises(SetupError, match="No such file"):
        compared("--join", str(tmp_path / "none"))


def test_an_endless_model_is_not_asked_to_hold_its_end_back(scripted: Callable[..., Any]) -> None:
    """A server that does not know `ignore_eos` would refuse every request."""
    script = scripted()
    options = ["--server", f"one={script.url}/v1", "--streams", "1", "--rounds", "1"]
    compared(*options, "--endless", "one")
    assert script.bodies
    assert not any("ignore_eos" in body for body in script.bodies)
    for option in (["--endless", "other"], ["--pid", "other=1"]):
        with pytest.raises(SetupError, match="other: --endless and --pid are for a name"):
            compared(*options, *option)


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(SetupError, match="give servers"):
        compared()


def test_the_first_server_is_set_over_the_others() -> None:
    assert servers_table.default_pairs([servers.Measured(name, {}) for name in "ABC"]) == [("A", "B"), ("A", "C")]


def test_a_ratio_is_of_what_was_measured_within_seconds() -> None:
    """Otherwise changes in the machine's speed between rounds would make one server look faster than another."""
    level, rates = servers.Level("closed", 1), {"A": (10.0, 90.0, 50.0), "B": (5.0, 45.0, 25.0), "C": (45.0, 5.0)}

    def one(name: str) -> servers.Measured:
        return servers.Measured(name, {}, {level: [Mock(output_tokens_per_second=rate) for rate in rates[name]]})

    _, rows = servers_table.ratios([one(name) for name in rates], [("A", "B"), ("A", "C")])
    found = {row[0]: row[1] for row in rows}
    assert found["A / B, streamed"] == "2.00"
    assert found["A / C, streamed"] == "2.00", "50 over 25: other rounds, so of medians"
