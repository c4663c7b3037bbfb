"""Owns the state of a deployment's services on ECS, as a phase and numbers."""

from typing import Any

from run_gpt.deploy.aws.session import Session
from run_gpt.deploy.target import Phase, Status

_EVENTS = 2
"""Number of latest events of each service that are shown while it does not serve."""


def status_of(session: Session, stack_status: str, outputs: dict[str, str]) -> Status:
    """Return the status of a stack in this state with these outputs; it has no outputs until it was complete once."""
    if stack_status.startswith("DELETE") or "Cluster" not in outputs:
        return Status(name="", phase=_unserved(stack_status))
    services = _services(session, outputs)
    executors, gateways = services[outputs["ExecutorService"]], services[outputs["GatewayService"]]
    ready, wanted = _healthy(session, outputs), executors["desiredCount"]
    phase: Phase = "serving" if ready and gateways["runningCount"] else "starting"
    if not wanted:
        phase = "stopped"
    notes = () if phase != "starting" else tuple(_latest(executors) + _latest(gateways))
    return Status(name="", phase=phase, ready=ready, wanted=wanted, notes=notes)


def replicas_of(session: Session, outputs: dict[str, str]) -> int:
    """Return the number of executors that ECS wants now."""
    return int(_services(session, outputs)[outputs["ExecutorService"]]["desiredCount"])


def _unserved(stack_status: str) -> Phase:
    if "FAILED" in stack_status or "ROLLBACK" in stack_status:
        return "failed"
    return "stopped" if stack_status.startswith("DELETE") else "starting"


def _services(session: Session, outputs: dict[str, str]) -> dict[str, dict[str, Any]]:
    names = [outputs["ExecutorService"], outputs["GatewayService"]]
    found = session.call("ecs", "describe_services", cluster=outputs["Cluster"], services=names)
    return {service["serviceName"]: service for service in found["services"]}


def _healthy(session: Session, outputs: dict[str, str]) -> int:
    """Return the number of executors whose model is loaded: a task is RUNNING long before that."""
    cluster = outputs["Cluster"]
    tasks = session.call("ecs", "list_tasks", cluster=cluster, serviceName=outputs["ExecutorService"])["taskArns"]
    if not tasks:
        return 0
    found = session.call("ecs", "describe_tasks", cluster=cluster, tasks=tasks)["tasks"]
    return sum(task.get("healthStatus") == "HEALTHY" for task in found)


def _latest(service: dict[str, Any]) -> list[str]:
    return [event["message"] for event in service.get("events", [])[:_EVENTS]]
