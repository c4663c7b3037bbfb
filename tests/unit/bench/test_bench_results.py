"""Without these tests result files could differ from the measurement, or files of different loads be compared."""

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from run_gpt.bench import compare, html, plots, tables
from run_gpt.bench.load import Level, Run
from run_gpt.bench.results import Results, environment, read_json, write_csv, write_json
from run_gpt.bench.sample import Sample
from run_gpt.bench.summary import Stats, parse_goodput, summarise
from run_gpt.bench.sweep import Saturation
from run_gpt.errors import SetupError

ARGUMENTS = {"prompt_words": "5", "output_tokens": "5", "turns": 1}


def made(*levels: float, ttft: float = 0.1, gap: float = 0.01, arguments: dict[str, Any] | None = None) -> Results:
    """Return results of closed loops: 30 requests each, with about these latencies, and one failed request."""
    rng = np.random.default_rng(int(ttft * 1e4))
    runs = []
    for value in levels or (1, 4):
        run = Run(Level("closed", value), lag=[0.001, 0.002], cpu_seconds=0.1)
        for i in range(30):
            events = (i + ttft * rng.uniform(0.9, 1.1) + gap * np.arange(5) * rng.uniform(0.9, 1.1)).tolist()
            run.samples.append(Sample(float(i), events, events[-1], events[-1] + 0.001, 7, 5, 2, 5))
        run.samples.append(Sample(29.0, end=31.0, failure="timeout", detail="not <complete>"))
        run.seconds = 31.0
        runs.append(run)
    return Results(environment({"data": [{"id": "m"}]}), {**ARGUMENTS, **(arguments or {})}, {"ttft": 500.0}, runs)


def test_percentiles_are_numpys() -> None:
    values = np.random.default_rng(1).lognormal(size=101)
    stats = Stats.of(values.tolist())
    assert stats is not None
    for name, at in (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100)):
        assert getattr(stats, name) == pytest.approx(np.percentile(values * 1e3, at))
    assert stats.mean == pytest.approx(values.mean() * 1e3)
    ordered = np.sort(values) * 1e3
    assert stats.p90 == pytest.approx(ordered[90]), "position (101 - 1) * 0.9 is 90, as the formulas say"
    assert Stats.of([]) is None


def test_an_answer_of_one_token_has_no_tpot_and_keeps_its_limit() -> None:
    sample = Sample(0.0, [0.1], 0.1, 0.1, 7, 1, 0, 1)
    assert sample.tpot is None
    run = Run(Level("closed", 1), [sample], seconds=0.1)
    assert summarise(run, {"tpot": 1.0}).goodput == pytest.approx(10)


def test_a_load_without_an_answer_has_figures_too() -> None:
    run = Run(Level("closed", 1), [Sample(0.0, end=1.0, failure="timeout")], seconds=1.0)
    summary = summarise(run, {"ttft": 1.0})
    assert (summary.ok, summary.goodput, summary.output_tokens_per_second) == (0, 0, 0)
    assert "no request was answered" in summary.warnings()[-1]
    assert "1 (1 timeout)" in tables.text([summary])


def test_a_busy_client_is_reported() -> None:
    run = Run(Level("closed", 1), [Sample(0.0, [0.1], 0.1, 0.1, 7, 1)], lag=[0.05] * 9, cpu_seconds=1.0, seconds=1.0)
    assert "the client itself was late by 50 ms" in summarise(run, {}).warnings()[0]


def test_json_holds_every_sample(tmp_path: Path) -> None:
    results = made()
    results.saturation = Saturation(Level("closed", 4), "for a test")
    write_json(results, tmp_path / "a.json")
    read = read_json(tmp_path / "a.json")
    assert read.saturation == results.saturation
    assert [len(run.samples) for run in read.runs] == [31, 31]
    for one, other in zip(read.summaries, results.summaries, strict=True):
        assert one.failures == other.failures
        assert one.goodput == pytest.approx(other.goodput)
        assert dataclasses.astuple(one.latencies["itl"]) == pytest.approx(
            dataclasses.astuple(other.latencies["itl"]), rel=1e-3
        )
    document = json.loads((tmp_path / "a.json").read_text())
    assert {"date", "rungpt", "python", "cpu", "cores", "server"} <= document["environment"].keys()
    assert document["loads"][0]["summary"]["failures"] == {"timeout": 1}


def test_csv_has_a_line_for_each_load(tmp_path: Path) -> None:
    write_csv(made().summaries, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["level"] for line in lines] == ["1", "4"]
    assert float(lines[0]["ttft_p50"]) == pytest.approx(100, rel=0.1)
    assert lines[0]["failures"] == "1"


def test_what_is_slower_is_marked_and_what_is_equal_is_not() -> None:
    same = compare.compare(made(), made(ttft=0.1001))
    assert not any(ratio.significant for ratio in same if ratio.name.startswith("TPOT"))
    slower = {ratio.name: ratio for ratio in compare.compare(made(), made(ttft=0.15))}
    ttft = slower["TTFT p50, ms"]
    assert ttft.ratio == pytest.approx(1.5, rel=0.05)
    assert ttft.low is not None
    assert ttft.high is not None
    assert ttft.low < ttft.ratio < ttft.high
    assert ttft.significant
    assert compare.compare(made(), made(ttft=0.15), seed=3) == compare.compare(made(), made(ttft=0.15), seed=3)
    assert re.search(r"TTFT p50, ms +\|.*\* \|", compare.table(list(slower.values())))


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (made(1, 8), "the loads differ: concurrency 1; concurrency 4 in A, concurrency 1; concurrency 8 in B"),
        (made(arguments={"prompt_words": "900"}), "the loads differ: prompt-words is 5 in A, 900 in B"),
    ],
)
def test_other_loads_are_not_compared(other: Results, says: str) -> None:
    with pytest.raises(SetupError, match=says):
        compare.compare(made(), other)


def test_of_two_sweeps_the_loads_that_both_have_are_compared() -> None:
    a, b = made(1, 2, 4), made(1, 2, 3)
    a.saturation = b.saturation = Saturation(Level("closed", 2), "for a test")
    assert {ratio.level.value for ratio in compare.compare(a, b)} == {1, 2}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no JSON"),
        ("[]", "is no result of"),
        ('{"schema": "other"}', "is no result of"),
        ('{"schema": "rungpt.bench.serve", "version": 99}', "has version 99"),
        ('{"schema": "rungpt.bench.serve", "version": 2}', "is not whole"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SetupError, match=says) as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in caught.value.message


def test_the_report_needs_nothing_else() -> None:
    """Reports are sent by mail and opened without a network."""
    pytest.importorskip("matplotlib")
    results = made()
    drawn = plots.draw(results)
    assert drawn.keys() == {"latency", "throughput", "histogram", "timeline"}
    assert all(png.startswith(b"\x89PNG\r\n\x1a\n") and png.endswith(b"IEND\xaeB`\x82") for png in drawn.values())
    page = html.page(results, drawn)
    sources = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|@import|url\(|<script|<link", page)
    assert "TTFT = time of the first event" in page
    assert "concurrency 4" in page


def test_the_report_escapes_what_servers_say() -> None:
    results = made(arguments={"model": "<script>alert(1)</script>"})
    assert "<script" not in html.page(results, {})


def test_plots_are_drawn_of_a_load_without_answers() -> None:
    pytest.importorskip("matplotlib")
    failed = Run(Level("open", 2.5), [Sample(0.0, end=1.0, failure="timeout")], seconds=1.0)
    assert len(plots.draw(dataclasses.replace(made(), runs=[failed]))) == 4


def test_without_matplotlib_the_pip_line_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"pip install 'rungpt\[bench\]'"):
        plots.check()


def test_requests_in_flight_are_counted_over_time() -> None:
    run = Run(Level("open", 1), [Sample(0.0, end=2.0), Sample(1.0, end=3.0), Sample(2.0, end=2.5)])
    times, counts = plots.in_flight(run)
    assert times.tolist() == [0, 1, 2, 2, 2.5, 3]
    assert counts.tolist() == [1, 2, 1, 2, 1, 0]


def test_limits_are_read() -> None:
    assert parse_goodput("ttft:1000 tpot:50,e2e:2.5") == {"ttft": 1000, "tpot": 50, "e2e": 2.5}
    assert parse_goodput(None) == {}
    for wrong in ("ttft", "itl:5", "ttft:-1", "ttft:x", "ttft:1 ttft:2"):
        with pytest.raises(SetupError, match="--goodput"):
            parse_goodput(wrong)


def test_numbers_are_short() -> None:
    shown = [tables.number(value) for value in (None, 0.0, 0.01234, 1.234, 12.34, 123.4, 12345.6)]
    assert shown == ["-", "0", "0.0123", "1.23", "12.3", "123", "12,346"]
