"""Without these tests a deployment that scales by its gateway's log could stay at one replica under any load."""

import json
from typing import Any

from waiting import wait_until


def test_the_log_has_a_line_of_json_with_the_load_again_and_again(start_stack: Any) -> None:
    stack = start_stack(log_load=0.1)

    def loads() -> list[dict[str, Any]]:
        lines = stack.log_of("gateway").splitlines()
        return [json.loads(line) for line in lines if line.startswith('{"event": "load"')]

    wait_until(lambda: any(load["ready"] == 1 for load in loads()), 20)
    assert loads()[-1] == {"event": "load", "in_flight": 0, "ready": 1, "loading": 0, "in_flight_per_replica": 0.0}


def test_as_json_it_is_a_line_of_the_log_that_a_filter_finds_as_before(start_stack: Any) -> None:
    """A collector of JSON logs expects a time and a level in every line."""
    stack = start_stack(log_load=0.1, env={"RUNGPT_LOG_FORMAT": "json"})
    wait_until(lambda: '"event": "load"' in stack.log_of("gateway"))
    lines = [json.loads(line) for line in stack.log_of("gateway").splitlines()]
    loads = [line for line in lines if line.get("event") == "load"]
    for load in loads:
        assert {"ts", "level", "pod", "message", "in_flight", "in_flight_per_replica"} <= load.keys()
