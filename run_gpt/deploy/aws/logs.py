"""Owns the output of a deployment's containers, from CloudWatch Logs."""

import time
from collections.abc import Iterator
from typing import Any

from run_gpt.deploy.aws.containers import log_group
from run_gpt.deploy.aws.session import Refused, Session
from run_gpt.errors import SetupError

ROLES = ("gateway", "executor")
MOST_CONTAINERS = 20
"""Number of containers per role whose lines are shown, the latest ones."""
PAUSE = 2.0
"""Seconds between two polls for new lines."""
_OVERLAP = 30_000
"""Milliseconds that each poll reads again: CloudWatch does not ingest lines in order."""


def last_lines(session: Session, name: str, lines: int) -> list[str]:
    """Return the last lines of each container, in order of time. Raises SetupError if there is no such log."""
    events = [event for role in ROLES for event in _latest(session, log_group(name, role), lines)]
    return [_line(event) for event in sorted(events, key=lambda event: event["timestamp"])]


def following(session: Session, name: str) -> Iterator[str]:
    """Yield the lines that are written from now on, for ever. Raises SetupError when the log no longer exists."""
    start, seen = _now(), set[str]()
    while True:
        events = [event for role in ROLES for event in _since(session, log_group(name, role), start)]
        fresh = [event for event in events if event["eventId"] not in seen]
        for event in sorted(fresh, key=lambda event: event["timestamp"]):
            yield _line(event)
        seen = {event["eventId"] for event in events}
        start = max([start, *(event["timestamp"] - _OVERLAP for event in events)])
        time.sleep(PAUSE)


def _latest(session: Session, group: str, lines: int) -> Iterator[dict[str, Any]]:
    streams = _call(
        session, "describe_log_streams", group, orderBy="LastEventTime", descending=True, limit=MOST_CONTAINERS
    )
    for stream in streams["logStreams"]:
        name = stream["logStreamName"]
        page = _call(session, "get_log_events", group, logStreamName=name, limit=lines, startFromHead=False)
        yield from ({**event, "logStreamName": name} for event in page["events"])


def _since(session: Session, group: str, start: int) -> Iterator[dict[str, Any]]:
    more: dict[str, str] = {}
    while True:
        page = _call(session, "filter_log_events", group, startTime=start, **more)
        yield from page["events"]
        if not page.get("nextToken"):
            return
        more = {"nextToken": page["nextToken"]}


def _call(session: Session, operation: str, group: str, **arguments: Any) -> dict[str, Any]:
    try:
        return session.call("logs", operation, logGroupName=group, **arguments)
    except Refused as refused:
        if refused.code == "ResourceNotFoundException":
            raise SetupError(f"there is no log {group} in {session.region}: see the name and --region") from refused
        raise


def _line(event: dict[str, Any]) -> str:
    """Format an event as `[executor 1a2b3c4d] text`; the name of the stream is prefix/container/task."""
    _, role, task = event["logStreamName"].split("/")
    return f"[{role} {task[:8]}] {event['message'].rstrip()}"


def _now() -> int:
    return int(time.time() * 1000)
