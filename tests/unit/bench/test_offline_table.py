"""Without these tests a table could differ from the measurement, or hide what was not measured."""

import json

import pytest

from run_gpt.bench.document import END, MODEL
from run_gpt.bench.offline import Case, Options, Report, Result
from run_gpt.bench.offline_subject import Variant
from run_gpt.bench.offline_table import (
    figures,
    footer,
    markdown,
    record,
    tables,
)
from run_gpt.errors import SetupError

CASE = Case(prompt_tokens=100, batch=4)
ROUNDS = [{"prefill": 0.5, "decode_step": 0.010}, {"prefill": 0.4, "decode_step": 0.012}]
ROUNDS += [{"prefill": 0.8, "decode_step": 0.008}]
ABOUT = {"precision": "bf16", "runner": "native", "device": "cpu", "threads": 2, "context": 1024, "cache": None}


@pytest.fixture
def report():
    options = Options(model="tiny", precisions=("bf16",), prompt_tokens=(100, 2000), batches=(4,), data=())
    scores = {"a.txt": {"perplexity": 12.34567, "tokens": 1499, "window": 256, "stride": 128}}
    measured = Result(
        Variant("tiny", "bf16"),
        ABOUT,
        {CASE: ROUNDS},
        {Case(2000, 4): "2064 tokens exceed the context of 1024"},
        {"loading": 100.0, "peak": 250.4},
        scores,
    )
    broken = Result(Variant("tiny", "fp32", "generic", compile=True), failed="this | that is missing")
    return Report(options, [measured, broken], ["a.txt"], ["No perplexity on c4: no network"], others=0.25)


def test_latency_and_throughput_are_what_the_footer_says():
    found = figures(CASE, ROUNDS)
    assert found["prefill_ms_per_token"].median == pytest.approx(5.0)
    assert found["prefill_tokens_per_s"].median == pytest.approx(4 * 100 / 0.5)
    assert found["decode_ms_per_token"].median == pytest.approx(10.0)
    assert found["decode_tokens_per_s"].median == pytest.approx(4 / 0.010)
    assert found["prefill_ms_per_token"].spread == pytest.approx((8.0 - 4.0) / 2 / 5.0)
    assert found["decode_ms_per_token"].text(spread=True) == "10.0 ± 20 %"


def test_every_case_has_a_row_and_what_was_not_measured_says_why(report):
    speed, memory = tables(report)
    assert speed.rows == [
        ("bf16", "native", "100", "4", "5.00 ± 40 %", "800", "10.0 ± 20 %", "400"),
        ("bf16", "native", "2,000", "4", "2064 tokens exceed the context of 1024", "", "", ""),
        ("fp32", "generic, compiled", "", "", "this | that is missing", "", "", ""),
    ]
    assert memory.rows == [("bf16", "native", "100", "250", "12.3457"), ("fp32", "generic, compiled", "", "", "")]
    assert all(len(row) == len(table.head) for table in (speed, memory) for row in table.rows)
    assert "this \\| that" in speed.markdown()


def test_the_notes_under_the_tables_name_tokens_stride_machine_and_missing_texts(report):
    text = footer(report)
    for part in ("1,499 tokens of a.txt", "windows of 256 tokens, stride 128", "torch ", "No perplexity on c4", "0.2 "):
        assert part in text


def test_json_has_every_round_and_the_reasons(report):
    made = json.loads(json.dumps(record(report), default=str))
    first, second = made["results"][0]["cases"]
    assert first["decode_tokens_per_s"]["rounds"] == pytest.approx([400, 4 / 0.012, 500])
    assert first["reason"] is None
    assert second["reason"].startswith("2064 tokens")
    assert made["results"][0]["perplexity"]["a.txt"]["tokens"] == 1499
    assert made["results"][1]["failed"] == "this | that is missing"
    assert made["cores_used_by_others"] == 0.25


def test_tables_replace_what_stands_between_the_marks_and_nothing_else(report, tmp_path):
    document = tmp_path / "a.md"
    document.write_text(f"before\n\n{MODEL.begin}\nold\n{END}\nafter\n\n<!-- end -->\n")
    MODEL.write(document, markdown(report))
    text = document.read_text()
    assert text.startswith("before\n\n")
    assert text.endswith(f"\n{END}\nafter\n\n<!-- end -->\n")
    assert "old" not in text
    assert "| bf16 | native | 100 | 4 |" in text


def test_a_document_without_marks_is_refused_before_anything_is_measured(tmp_path):
    document = tmp_path / "a.md"
    with pytest.raises(SetupError, match="No such file"):
        MODEL.check(document)
    document.write_text("no marks\n")
    with pytest.raises(SetupError, match="has no lines"):
        MODEL.check(document)
