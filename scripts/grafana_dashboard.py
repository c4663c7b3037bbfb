"""Print the Grafana dashboard, made from the rows of grafana_panels.py; `--write` writes it to monitoring/grafana.

A test compares the file, and another one evaluates every query in a real Prometheus.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grafana_panels import ROWS, Panel

FILE = Path(__file__).parents[1] / "monitoring" / "grafana" / "dashboards" / "rungpt.json"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
"""Columns of Grafana's grid."""


def dashboard() -> dict[str, Any]:
    """Return the dashboard, in the classic model of Grafana 11 and 12."""
    return {
        "uid": "rungpt",
        "title": "RunGPT",
        "description": "Made by scripts/grafana_dashboard.py. Gateways of one server share a job in Prometheus.",
        "tags": ["rungpt", "llm"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": list(variables())},
        "annotations": {"list": []},
        "links": [],
        "panels": list(panels()),
    }


def variables() -> Iterator[dict[str, Any]]:
    """Return the variables: data source, then job, model and replica, each limited by the one before."""
    yield {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1}
    for name, query in (
        ("job", "label_values(rungpt_build_info, job)"),
        ("model", 'label_values(rungpt_model_loaded{job=~"$job"}, model)'),
        ("replica", 'label_values(rungpt_num_slots{job=~"$job",model=~"$model"}, replica)'),
    ):
        yield {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": DATASOURCE,
            "definition": query,
            "query": {"query": query, "refId": f"variable-{name}", "qryType": 1},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
        }


def panels() -> Iterator[dict[str, Any]]:
    """Place rows and panels from left to right and downwards."""
    identity = top = 0
    for title, row in ROWS.items():
        identity += 1
        place = {"x": 0, "y": top, "w": WIDTH, "h": 1}
        yield {"id": identity, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        top += 1
        left = height = 0
        for panel in row:
            if left + panel.columns > WIDTH:
                left, top = 0, top + height
            height = 4 if panel.stat else 8
            identity += 1
            place = {"x": left, "y": top, "w": panel.columns, "h": height}
            yield {"id": identity, "gridPos": place, **_drawn(panel)}
            left += panel.columns
        top += height


def _drawn(panel: Panel) -> dict[str, Any]:
    limits = {"min": 0} | ({"max": panel.most} if panel.most is not None else {})
    lines = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 8, "showPoints": "never", "spanNulls": False}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
    stat_options = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "none"}
    return {
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": DATASOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, **limits, **({} if panel.stat else {"custom": lines})},
            "overrides": [],
        },
        "options": stat_options if panel.stat else {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "editorMode": "code",
                "expr": query,
                "legendFormat": name,
                "range": True,
            }
            for number, (name, query) in enumerate(panel.queries.items())
        ],
    }


def made() -> str:
    """Return the text of the file."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        FILE.write_text(made())
    else:
        print(made(), end="")
