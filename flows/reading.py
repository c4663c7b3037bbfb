"""Owns the reading of a pod's Flow: from the environment or from the supervisor, with a check of its form."""

import json
import os
import sys
from typing import Any

import yaml

from run_gpt.config import FLOW_VARIABLE
from run_gpt.errors import SetupError

_NEEDED: dict[str, dict[str, type]] = {
    "gateway": {"uses": dict, "host": str, "port": list, "protocol": list},
    "executor": {"name": str, "uses": dict, "host": str, "port": list, "replicas": int},
}
_KINDS = {dict: "a mapping", str: "a text", list: "a list", int: "a number"}


def flow_of_environment() -> dict[str, Any] | None:
    """Return the Flow in $RUNGPT_FLOW, None without that variable. Raises SetupError, in one line, if it is no Flow."""
    text = os.environ.get(FLOW_VARIABLE)
    return None if text is None else read_flow(text)


def flow_of_supervisor() -> dict[str, Any] | None:
    """Return the Flow on stdin, one line of JSON that holds its YAML; None for a terminal or any other input."""
    line = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.readline()
    try:
        return read_flow(json.loads(line))
    except json.JSONDecodeError:
        return None


def read_flow(text: str) -> dict[str, Any]:
    """Parse the Flow in a YAML text. Raises SetupError, in one line, if it lacks settings that the pods need."""
    try:
        flow: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SetupError(f"{FLOW_VARIABLE} is no YAML: {' '.join(str(error).split())}") from error
    executors = flow.get("executors") if isinstance(flow, dict) else None
    if not isinstance(executors, list) or not executors:
        raise SetupError(f"{FLOW_VARIABLE} is no Flow with a gateway and executors: give it the YAML of one")
    _check_part("gateway", flow.get("gateway"))
    for executor in executors:
        _check_part("executor", executor)
    names = [executor["name"] for executor in executors]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise SetupError(f"{FLOW_VARIABLE}: two executors are called {double!r}")
    return dict(flow)


def _check_part(name: str, part: Any) -> None:
    for key, kind in _NEEDED[name].items():
        if not isinstance(part, dict) or not isinstance(part.get(key), kind) or part[key] in ("", []):
            raise SetupError(f"{FLOW_VARIABLE}: the {name} needs {key!r}, {_KINDS[kind]}")
