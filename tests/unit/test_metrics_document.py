"""Tests of docs/monitoring.md: a wrong list would make operators build dashboards on metrics that do not exist."""

import re

from test_project import ROOT, script

TEXT = (ROOT / "docs" / "monitoring.md").read_text()


def test_the_tables_are_those_of_the_code() -> None:
    assert script("metrics_table").made() == TEXT, "run: python scripts/metrics_table.py --write"


def test_the_agreed_names_are_there_and_vllms_are_of_metrics_that_there_are() -> None:
    table = script("metrics_table")
    engine, gateway = table.names(table.engine_families()), table.names(table.gateway_families())
    assert not engine & gateway
    assert table.VLLM.keys() <= engine
    assert table._LABELS.keys() <= engine | gateway


def test_queries_and_prose_name_metrics_that_there_are() -> None:
    table = script("metrics_table")
    known = table.names([*table.engine_families(), *table.gateway_families()])
    for name in set(re.findall(r"rungpt_\w+", TEXT)):
        assert name in known or re.sub("_(bucket|sum|count)$", "", name) in known, name
