"""Tests of monitoring/: if its files and the metrics' names differ, a panel or an alert is silently empty."""

import importlib
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import compose_spec
import pytest
import yaml
from exposition import Exposition

from run_gpt.errors import RequestError

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboards" / "rungpt.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"][0]["rules"]

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool, of Debian's package prometheus, is not here"
)


METRICS = set(
    re.findall(
        r"^\| `(rungpt_\w+)` \| (?:gauge|counter|histogram) \|", (ROOT / "docs" / "monitoring.md").read_text(), re.M
    )
)
"""Every metric of the document's tables; another test compares these with the code."""


def base(name):
    """Return a metric's name without the suffix of a histogram's part."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


def queries():
    """Yield every PromQL text of the dashboard and of the rules."""
    yield from (target["expr"] for panel in PANELS for target in panel["targets"])
    yield from (variable["definition"] for variable in DASHBOARD["templating"]["list"] if "definition" in variable)
    yield from (rule["expr"] for rule in RULES)


def test_the_dashboard_is_what_its_script_makes():
    if (folder := str(ROOT / "scripts")) not in sys.path:
        sys.path.append(folder)
    made = importlib.import_module("grafana_dashboard").made()
    text = (MONITORING / "grafana" / "dashboards" / "rungpt.json").read_text()
    assert made == text, "run: python scripts/grafana_dashboard.py --write"


def test_every_metric_is_shown_or_asked_for_and_there_is_no_other():
    """An unknown name gives an empty panel; a metric that no panel or rule uses is of no use to users."""
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    asked = {base(name) for query in queries() for name in re.findall(r"\brungpt_\w+", re.sub(r'"[^"]*"', "", query))}
    assert len(METRICS) > 30
    assert asked == METRICS
    used = {name for rule in RULES for name in re.findall(r"\brungpt:[\w:]+", rule["expr"])}
    assert used == recorded


def test_the_hand_written_metrics_of_the_tests_have_the_real_names():
    """With other names the tests would describe a server that does not exist."""
    names = {family.name + "_total" * (family.type == "counter") for family in Exposition().registry.collect()}
    assert names <= METRICS


def test_the_error_codes_that_are_asked_for_are_those_of_the_server():
    codes = {cls.code for cls in (RequestError, *RequestError.__subclasses__())}
    patterns = [pattern for query in queries() for pattern in re.findall(r'code=~"([^"]*)"', query)]
    asked = {code for pattern in patterns for code in pattern.split("|")}
    assert asked
    assert asked <= codes


def test_no_replica_is_counted_once_for_each_gateway():
    """Every gateway of a server reports every replica: two gateways would double all numbers."""
    of_gateways = re.compile("gateway|rungpt_build_info|rungpt_model_(loads|load_failures|unloads)_total")
    of_replicas = [name for name in METRICS if not of_gateways.search(name)]
    for query in queries():
        if (
            any(re.search(rf"\b{name}(_bucket|_sum|_count)?\b", query) for name in of_replicas)
            and "label_values" not in query
        ):
            assert re.search(r"max by \(job(?:, \w+)*\) \(|max by \(replica\)|rungpt:", query), query


def test_panels_are_whole_and_do_not_overlap():
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identities)) == len(identities)
    covered = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns, lines = (range(place[at], place[at] + place[size]) for at, size in (("x", "w"), ("y", "h")))
        cells = set(itertools.product(columns, lines))
        assert not covered & cells, f"{panel['title']} lies over another panel"
        covered |= cells
    for panel in PANELS:
        targets = [target["refId"] for target in panel["targets"]]
        assert targets
        assert len(set(targets)) == len(targets)
        assert {target["datasource"]["uid"] for target in [panel, *panel["targets"]]} == {"${datasource}"}


def test_every_variable_of_a_query_is_one_of_the_dashboard_or_of_grafana():
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval", "__range"}
    assert {name for query in queries() for name in re.findall(r"\$(\w+)", query)} <= names


def test_the_compose_file_is_one_and_opens_nothing_to_the_network():
    """Prometheus has no password, and Grafana's would go over the network in the clear."""
    text = (MONITORING / "compose.yml").read_text()
    compose_spec.PyCompose.from_yaml(text).validate()
    file = yaml.safe_load(text)
    prometheus, grafana = file["services"]["prometheus"], file["services"]["grafana"]
    assert "--web.listen-address=127.0.0.1:9090" in prometheus["command"]
    assert grafana["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?")
    for service in (prometheus, grafana):
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"]), "a version must be named"
        assert service["read_only"]
        for volume in service["volumes"]:
            source, _, mode = volume.split(":") if volume.count(":") == 2 else (*volume.split(":"), "")
            assert (mode == "ro") == source.startswith("./")
            assert source == "./key" or not source.startswith("./") or (MONITORING / source).exists()


def test_grafana_finds_the_dashboard_and_prometheus():
    grafana = yaml.safe_load((MONITORING / "compose.yml").read_text())["services"]["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    provider = yaml.safe_load((MONITORING / "grafana/provisioning/dashboards/rungpt.yml").read_text())["providers"][0]
    assert provider["options"]["path"] == mounts["./grafana/dashboards"]
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].startswith(provider["options"]["path"])
    source = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ][0]
    assert source["url"] == "http://127.0.0.1:9090"
    scraped = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]


def promtool(*arguments):
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_prometheus_takes_its_configuration(tmp_path):
    for name in ("prometheus.yml", "rules.yml"):
        shutil.copy(MONITORING / name, tmp_path)
    (tmp_path / "key").write_text("")
    promtool("check", "config", str(tmp_path / "prometheus.yml"))
    assert f"{len(RULES)} rules found" in promtool("check", "rules", str(tmp_path / "rules.yml"))


REPLICA = 'job="rungpt",model="m",replica="r"'
BAD = {
    "RunGPTUnreachable": {'up{job="rungpt",instance="i"}': "0x30"},
    "RunGPTNoReadyReplica": {
        'rungpt_replicas{job="rungpt",instance="i",state="ready"}': "0x30",
        'rungpt_replicas{job="rungpt",instance="i",state="unloaded"}': "0x30",
    },
    "RunGPTErrors": {
        'rungpt_gateway_requests_total{job="rungpt",endpoint="/chat",status="503",key=""}': "0+100x30",
        'rungpt_gateway_errors_total{job="rungpt",code="unavailable"}': "0+10x30",
    },
    "RunGPTQueueGrows": {f"rungpt_num_requests_waiting{{{REPLICA}}}": "1+1x30"},
    "RunGPTSlowFirstToken": {
        f'rungpt_time_to_first_token_seconds_bucket{{{REPLICA},le="10"}}': "0+95x30",
        f'rungpt_time_to_first_token_seconds_bucket{{{REPLICA},le="60"}}': "0+100x30",
        f'rungpt_time_to_first_token_seconds_bucket{{{REPLICA},le="+Inf"}}': "0+100x30",
    },
    "RunGPTReplicaRestarts": {'rungpt_replica_restarts_total{job="rungpt",instance="i",replica="r"}': "0+1x30"},
}
GOOD = {
    "RunGPTUnreachable": {'up{job="rungpt",instance="i"}': "1x30"},
    "RunGPTNoReadyReplica": {
        'rungpt_replicas{job="rungpt",instance="i",state="ready"}': "1x10 0x20",
        'rungpt_replicas{job="rungpt",instance="i",state="unloaded"}': "0x10 1x20",
        'rungpt_replicas{job="rungpt",instance="i",state="lost"}': "0x30",
    },
    "RunGPTErrors": {
        'rungpt_gateway_requests_total{job="rungpt",endpoint="/chat",status="401",key=""}': "0+100x30",
        'rungpt_gateway_errors_total{job="rungpt",code="invalid_api_key"}': "0+100x30",
        'rungpt_gateway_errors_total{job="rungpt",code="unavailable"}': "0+1x30",
    },
    "RunGPTQueueGrows": {f"rungpt_num_requests_waiting{{{REPLICA}}}": "5x30"},
    "RunGPTSlowFirstToken": {
        f'rungpt_time_to_first_token_seconds_bucket{{{REPLICA},le="10"}}': "0+100x30",
        f'rungpt_time_to_first_token_seconds_bucket{{{REPLICA},le="+Inf"}}': "0+100x30",
    },
    "RunGPTReplicaRestarts": {'rungpt_replica_restarts_total{job="rungpt",instance="i",replica="r"}': "0x10 1x20"},
}


def test_every_alert_has_its_case():
    assert {rule["alert"] for rule in RULES if "alert" in rule} == BAD.keys() == GOOD.keys()


@needs_promtool
@pytest.mark.parametrize("name", BAD)
def test_an_alert_comes_when_it_should_and_only_then(tmp_path, name):
    """Prometheus evaluates the alerts, one sample a minute: wrong ones stay silent, or call people at night."""
    rule = next(rule for rule in RULES if rule.get("alert") == name)
    query = f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in case.items()],
            "promql_expr_test": [
                {"expr": query, "eval_time": "25m", "exp_samples": [{"labels": "{}", "value": 1}] if fires else []}
            ],
        }
        for case, fires in ((BAD[name], True), (GOOD[name], False))
    ]
    path = tmp_path / "alert.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(MONITORING / "rules.yml")], "tests": tests}))
    promtool("test", "rules", str(path))
    assert rule["annotations"]["summary"]
    assert any(f"`{name}`" in path.read_text() for path in (ROOT / "docs").glob("monitoring*.md"))


@needs_promtool
def test_two_gateways_tell_of_the_same_replicas_and_a_second_server_of_others(tmp_path):
    slots = next(panel for panel in PANELS if panel["title"] == "Slots")
    query = next(target["expr"] for target in slots["targets"] if target["legendFormat"] == "all")
    labels = 'job="{}",instance="{}",model="m",replica="{}"'
    told = [("a", "gateway-1", "r1"), ("a", "gateway-1", "r2"), ("a", "gateway-2", "r1"), ("b", "gateway-3", "r1")]
    inputs = [{"series": f"rungpt_num_slots{{{labels.format(*each)}}}", "values": "16"} for each in told]
    case = {"expr": re.sub(r"\$\w+", ".*", query), "eval_time": "0m", "exp_samples": [{"labels": "{}", "value": 48}]}
    tests = [{"interval": "1m", "input_series": inputs, "promql_expr_test": [case]}]
    (tmp_path / "slots.yml").write_text(yaml.safe_dump({"rule_files": [], "tests": tests}))
    promtool("test", "rules", str(tmp_path / "slots.yml"))
