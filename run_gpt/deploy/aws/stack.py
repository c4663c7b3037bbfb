"""Owns a deployment's CloudFormation stack: creates, changes and deletes it, and waits for the end of each."""

import time
from collections.abc import Iterator
from typing import Any

from run_gpt.deploy.aws.fleet import Fleet
from run_gpt.deploy.aws.logs import last_lines
from run_gpt.deploy.aws.session import Refused, Session
from run_gpt.deploy.target import Report
from run_gpt.errors import SetupError

TAG = "rungpt"
"""Tag that marks RunGPT's stacks; its value is the deployment's name."""
PAUSE = 5.0
"""Seconds between two polls of a stack."""
MOST_BYTES = 51_200
"""Size limit of a template that is sent with the call, in bytes."""
LAST_LINES = 10

_REMOVED = "DELETE_COMPLETE"
_GONE_WRONG = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED")
"""States from which a stack does not recover: it can only be deleted."""


class Stack:
    """Stack of one deployment."""

    def __init__(self, session: Session, name: str, report: Report = lambda line: None):
        self.session = session
        self.name = name
        self._report = report

    def find(self, which: str | None = None) -> dict[str, Any] | None:
        """Return CloudFormation's description of it; None if there is none. Raises SetupError if it is not RunGPT's."""
        try:
            found = self.session.call("cloudformation", "describe_stacks", StackName=which or self.name)["Stacks"][0]
        except Refused as refused:
            if refused.code == "ValidationError" and "does not exist" in refused.said:
                return None
            raise
        if not any(tag["Key"] == TAG for tag in found.get("Tags", [])):
            raise SetupError(f"the stack {self.name} in {self.session.region} is not RunGPT's: give another --name")
        return dict(found)

    def get(self) -> dict[str, Any]:
        """Return CloudFormation's description of it. Raises SetupError if there is none."""
        if (found := self.find()) is None:
            raise SetupError(f"there is no deployment {self.name} in {self.session.region}: see --region")
        return found

    def put(self, template: str, parameters: dict[str, str]) -> None:
        """Create it, or update it to the template; returns when it serves. Raises SetupError."""
        if len(template.encode()) > MOST_BYTES:
            raise SetupError(f"the template has more than the {MOST_BYTES} bytes that AWS takes: name fewer adapters")
        found = self.find()
        if found is not None and found["StackStatus"] in _GONE_WRONG:
            self._report(f"the stack {self.name} had failed before: it is deleted first")
            self.delete()
            found = None
        given = [{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()]
        self._start(found, TemplateBody=template, Parameters=given)

    def change(self, **parameters: str) -> None:
        """Update the given parameters and leave everything else as it is. Raises SetupError."""
        found = self.get()
        kept = [name["ParameterKey"] for name in found["Parameters"] if name["ParameterKey"] not in parameters]
        given: list[dict[str, Any]] = [{"ParameterKey": name, "UsePreviousValue": True} for name in kept]
        given += [{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()]
        self._start(found, UsePreviousTemplate=True, Parameters=given)

    def delete(self) -> None:
        """Delete it with all its resources, and wait until that is done. Raises SetupError."""
        found = self.get()
        seen = self._seen(found["StackId"])
        self.session.call("cloudformation", "delete_stack", StackName=found["StackId"])
        self._wait(found["StackId"], seen, ending=(_REMOVED,))

    def _start(self, found: dict[str, Any] | None, **arguments: Any) -> None:
        arguments |= {"StackName": self.name, "Capabilities": ["CAPABILITY_IAM"]}
        arguments["Tags"] = [{"Key": TAG, "Value": self.name}]
        if found is None:
            self._report(f"creating the stack {self.name} in {self.session.region}; Ctrl-C leaves it to AWS")
            made = self.session.call("cloudformation", "create_stack", OnFailure="DELETE", **arguments)
            self._wait(made["StackId"], set(), ending=("CREATE_COMPLETE",))
            return
        if found["StackStatus"].endswith("_IN_PROGRESS"):
            raise SetupError(f"the stack {self.name} is being changed ({found['StackStatus']}): wait for its end")
        seen = self._seen(found["StackId"])
        try:
            self.session.call("cloudformation", "update_stack", **arguments)
        except Refused as refused:
            if "No updates are to be performed" not in refused.said:
                raise
            self._report(f"the stack {self.name} is as it should be: nothing to change")
            return
        self._report(f"changing the stack {self.name} in {self.session.region}; Ctrl-C leaves it to AWS")
        self._wait(found["StackId"], seen, ending=("UPDATE_COMPLETE",))

    def _wait(self, stack: str, seen: set[str], ending: tuple[str, ...]) -> None:
        """Report each new event until the stack is in a final state. Raises SetupError if that is not in `ending`.

        Failed starts of instances are reported too: CloudFormation itself only waits for them, for hours.
        """
        failure, fleet = "", Fleet(self.session, stack)
        while True:
            found = self.find(stack)
            status = _REMOVED if found is None else found["StackStatus"]
            for event in self._events(stack, seen):
                failure = failure or self._failure(event)
                self._report_event(event)
            if not status.endswith("_IN_PROGRESS"):
                break
            if "ROLLBACK" in status or "DELETE" in status:
                fleet.release()
            for problem in fleet.problems():
                self._report(problem)
            time.sleep(PAUSE)
        if status not in ending:
            raise SetupError(f"{failure or f'the stack {self.name} ended as {status}'}; {_what_now(status, self.name)}")

    def _events(self, stack: str, seen: set[str]) -> Iterator[dict[str, Any]]:
        """Yield the events that are not in `seen`, oldest first, and add them to it."""
        new: list[dict[str, Any]] = []
        more: dict[str, str] = {}
        while True:
            page = self.session.call("cloudformation", "describe_stack_events", StackName=stack, **more)
            fresh = [event for event in page["StackEvents"] if event["EventId"] not in seen]
            new += fresh
            if len(fresh) < len(page["StackEvents"]) or "NextToken" not in page:
                break
            more = {"NextToken": page["NextToken"]}
        seen |= {event["EventId"] for event in new}
        yield from reversed(new)

    def _seen(self, stack: str) -> set[str]:
        seen: set[str] = set()
        list(self._events(stack, seen))
        return seen

    def _failure(self, event: dict[str, Any]) -> str:
        """Return the line for an event that says what failed, or an empty text.

        The last log lines of a failed service are reported at once: the logs are deleted with the stack.
        """
        reason = event.get("ResourceStatusReason", "")
        if not event["ResourceStatus"].endswith("_FAILED") or "cancelled" in reason:
            return ""
        if event["ResourceType"] == "AWS::ECS::Service":
            self._report_last_lines()
        return (
            f"{event['LogicalResourceId']} ({event['ResourceType']}) failed: {reason.rstrip('.') or 'no reason given'}"
        )

    def _report_last_lines(self) -> None:
        try:
            for line in last_lines(self.session, self.name, LAST_LINES):
                self._report(line)
        except SetupError as error:  # the failure is what counts
            self._report(error.message)

    def _report_event(self, event: dict[str, Any]) -> None:
        status, reason = event["ResourceStatus"], event.get("ResourceStatusReason", "")
        # Loading a model takes minutes: users should see that this is the reason for the wait.
        if status.endswith("_IN_PROGRESS") and (event["ResourceType"] != "AWS::ECS::Service" or reason):
            return
        what = status.replace("_", " ").lower()
        self._report(f"{event['LogicalResourceId']}: {what}" + (f": {reason}" if "FAILED" in status and reason else ""))


def _what_now(status: str, name: str) -> str:
    if status == _REMOVED:
        return "what had been made is deleted again"
    if status == "UPDATE_ROLLBACK_COMPLETE":
        return "it is rolled back: the previous version serves"
    return f"the stack is left as {status}: `rungpt deploy remove {name} --cloud aws` deletes it"
