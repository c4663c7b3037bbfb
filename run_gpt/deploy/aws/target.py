"""Owns the target AWS: a deployment as a CloudFormation stack with an ECS cluster behind a load balancer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from run_gpt.deploy.aws import keys, logs
from run_gpt.deploy.aws.containers import secret_fields
from run_gpt.deploy.aws.fleet import Fleet
from run_gpt.deploy.aws.machines import check_instance_type, instance_type
from run_gpt.deploy.aws.options import MOST_REPLICAS, Options, check_pullable
from run_gpt.deploy.aws.session import Session
from run_gpt.deploy.aws.stack import Stack
from run_gpt.deploy.aws.state import replicas_of, status_of
from run_gpt.deploy.aws.template import template
from run_gpt.deploy.deployment import Deployment
from run_gpt.deploy.target import Endpoints, Report, Status
from run_gpt.errors import SetupError

TEMPLATE = "cloudformation.yaml"


@dataclass(frozen=True, kw_only=True)
class AWS(Options):
    """Deployments in one account and region, each a stack of the same name."""

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return the template. Raises SetupError for a deployment that AWS could not run."""
        self.check(deployment)
        return {TEMPLATE: template(deployment, self)}

    def deploy(self, deployment: Deployment, report: Report) -> Endpoints:
        """Create or update the stack; keys go into a secret first. Returns when a gateway with a replica answers."""
        check_pullable(deployment)
        text = self.render(deployment)[TEMPLATE]
        session = Session(self.region)
        check_instance_type(session, instance_type(deployment, self), deployment)
        stack = Stack(session, deployment.name, report)
        parameters = {"Replicas": str(_first_replicas(stack, deployment))}
        fields = secret_fields(deployment)
        if fields:
            if self.certificate is None and not self.internal:
                report("warning: without --certificate keys and texts cross the internet unencrypted")
            parameters |= keys.keep(session, deployment.name, fields)
        try:
            stack.put(text, parameters)
        except SetupError:
            if stack.find() is None:
                keys.forget(session, deployment.name)
            raise
        if not fields:
            keys.forget(session, deployment.name)
        outputs = _outputs(stack.get())
        if self.domain:
            report(f"have {self.domain} point to {outputs['LoadBalancer']} (a CNAME)")
        return _endpoints(outputs)

    def status(self, name: str) -> Status:
        """Return the stack's state, its services' tasks, and the reasons why it does not serve."""
        session = Session(self.region)
        found = Stack(session, name).get()
        outputs = _outputs(found)
        state = status_of(session, found["StackStatus"], outputs)
        problems = Fleet(session, found["StackId"]).problems() if state.phase != "serving" else ()
        reason = found.get("StackStatusReason")
        notes = (*([f"{found['StackStatus']}: {reason}"] if reason else []), *state.notes, *problems)
        return Status(
            name=name,
            phase=state.phase,
            ready=state.ready,
            wanted=state.wanted,
            endpoints=_endpoints(outputs),
            notes=notes,
        )

    def logs(self, name: str, *, follow: bool, lines: int) -> Iterator[str]:
        """Yield the lines of both log groups, each prefixed with its container."""
        session = Session(self.region)
        yield from logs.last_lines(session, name, lines)
        if follow:
            yield from logs.following(session, name)

    def scale(self, name: str, replicas: int, report: Report) -> None:
        """Update the stack's parameter. Raises SetupError with autoscaling, which another `deploy` changes."""
        stack = Stack(Session(self.region), name, report)
        if bounds := _outputs(stack.get()).get("Autoscale"):
            raise SetupError(f"{name} scales by load ({bounds}): deploy it with another --autoscale, or without")
        if replicas > MOST_REPLICAS:
            raise SetupError(f"{replicas} replicas are more than the {MOST_REPLICAS} that a deployment has on AWS")
        stack.change(Replicas=str(replicas))

    def remove(self, name: str, report: Report) -> None:
        """Delete the stack, then the secret."""
        session = Session(self.region)
        stack = Stack(session, name, report)
        there = stack.find() is not None
        if there:
            stack.delete()
        if keys.forget(session, name):
            report("the secret with the keys is deleted")
        elif not there:
            stack.get()  # raises: there is no such deployment


def _first_replicas(stack: Stack, deployment: Deployment) -> int:
    """Return the requested number of replicas; with autoscaling the present one, so that an update keeps it."""
    found = stack.find()
    if deployment.autoscale is None or found is None or "ExecutorService" not in _outputs(found):
        return deployment.replicas
    now = replicas_of(stack.session, _outputs(found))
    return min(deployment.autoscale.most, max(deployment.autoscale.least, now))


def _outputs(stack: dict[str, Any]) -> dict[str, str]:
    return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}


def _endpoints(outputs: dict[str, str]) -> Endpoints:
    return Endpoints(http=outputs.get("Http"), grpc=outputs.get("Grpc"))
