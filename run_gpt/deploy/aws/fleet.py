"""Owns the calls about a stack's instances that bypass CloudFormation: why none starts, and their release."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from run_gpt.deploy.aws.session import Refused, Session

LOGICAL_NAME = "Instances"
RECENT = timedelta(minutes=15)
"""Age up to which failed starts are reported; AWS keeps older ones for weeks, and they say nothing about now."""


class Fleet:
    """Auto Scaling group of one stack, once it exists."""

    def __init__(self, session: Session, stack: str):
        self._session = session
        self._stack = stack
        self._reported: set[str] = set()
        self._group: str | None = None

    def problems(self) -> Iterator[str]:
        """Yield a line for each recent failed start of an instance, such as by a quota of 0, if not yet reported."""
        if self._name() is None:
            return
        activities = self._call("describe_scaling_activities", AutoScalingGroupName=self._group, MaxRecords=10)
        for activity in reversed(activities.get("Activities", [])):
            said = activity.get("StatusMessage", "")
            lately = activity["StartTime"] > datetime.now(UTC) - RECENT
            if activity["StatusCode"] == "Failed" and lately and said not in self._reported:
                self._reported.add(said)
                yield f"no instance could be started: {said}"

    def release(self) -> None:
        """Remove the instances' protection: CloudFormation waits for ever for a group whose instances are protected."""
        if self._name() is None:
            return
        groups = self._call("describe_auto_scaling_groups", AutoScalingGroupNames=[self._group])
        held = [
            instance["InstanceId"]
            for group in groups.get("AutoScalingGroups", [])
            for instance in group["Instances"]
            if instance.get("ProtectedFromScaleIn") and instance["LifecycleState"] == "InService"
        ]
        if held:
            self._call(
                "set_instance_protection",
                AutoScalingGroupName=self._group,
                InstanceIds=held,
                ProtectedFromScaleIn=False,
            )

    def _name(self) -> str | None:
        """Return the group's name, or None as long as there is no group."""
        if self._group is None:
            try:
                found = self._session.call(
                    "cloudformation",
                    "describe_stack_resource",
                    StackName=self._stack,
                    LogicalResourceId=LOGICAL_NAME,
                )
            except Refused as refused:
                if refused.code != "ValidationError":  # not made yet
                    raise
                return None
            self._group = found["StackResourceDetail"].get("PhysicalResourceId") or None
        return self._group

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer, which is empty if the group no longer exists."""
        try:
            return self._session.call("autoscaling", operation, **arguments)
        except Refused as refused:
            if refused.code != "ValidationError":
                raise
            return {}
