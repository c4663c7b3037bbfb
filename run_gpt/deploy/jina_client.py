"""Owns jcloud's client of Jina Cloud as RunGPT uses it: its calls, with our own waits and errors of one line.

Importing it imports jcloud, which reads $JCLOUD_API at that time. jcloud prints errors and ends the process, waits up
to 30 minutes with a poll every 5 seconds, and does not check certificates: these three are replaced here.
"""

import asyncio
import io
import time
from collections.abc import Coroutine
from contextlib import redirect_stdout
from typing import Any, TypeVar

import aiohttp
import jcloud.flow
from jcloud.constants import JCLOUD_API, Phase
from jcloud.flow import Auth, CloudFlow

from run_gpt.deploy.target import Report
from run_gpt.errors import SetupError

POLL_SECONDS = 2.0
SETTLE_SECONDS = 10.0
"""Seconds that a change gets to begin: until then the phase may be the old one."""
REMOVE_SECONDS = 600
MOST_MISSED = 5
"""Number of successive polls that may fail before we give up: a wait of minutes survives a short network failure."""
MOST_TEXT = 500
"""Greatest number of characters of an answer in a message."""

_THERE = "Pending,Starting,Serving,Failed,Updating,Paused"
_T = TypeVar("_T")


class Refused(SetupError):
    """Error with which Jina Cloud answered; `status` is the HTTP status."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def deploy(name: str, spec: str, seconds: float, report: Report) -> list[str]:
    """Push the Flow, or update the one with this name. Return the endpoints' URLs once it serves."""

    async def run() -> list[str]:
        found = await _find(name)
        failed = [flow for flow in found if phase_of(flow) == "Failed"]
        await _end(failed, report)  # a failed Flow looks like a change that fails
        kept = [flow for flow in found if flow not in failed]
        flow = Flow(report, seconds, spec=spec, flow_id=_only(name, kept)["id"] if kept else None)
        if flow.flow_id is None:
            await flow.__aenter__()  # jcloud's way to deploy
        else:
            report(f"changing {flow.flow_id}")
            await flow.validate()
            await flow.update()
        return list(flow.endpoints)

    return _run(run())


def status(name: str) -> dict[str, Any]:
    """Return Jina Cloud's status of the Flow."""

    async def run() -> dict[str, Any]:
        return dict(await Flow(flow_id=_only(name, await _find(name))["id"]).status)

    return _run(run())


def logs(name: str, executor: str) -> dict[str, str]:
    """Return the output so far of each container, by the container's name."""

    async def run() -> dict[str, str]:
        flow = Flow(flow_id=_only(name, await _find(name))["id"])
        return {**await flow.logs(), **await flow.logs(executor)}

    return _run(run())


def scale(name: str, executor: str, replicas: int, seconds: float, report: Report) -> None:
    """Change the number of replicas of an executor; returns when the Flow serves again."""

    async def run() -> None:
        flow = Flow(report, seconds, flow_id=_only(name, await _find(name))["id"])
        await flow.scale(executor=executor, replicas=replicas)

    _run(run())


def remove(name: str, report: Report) -> None:
    """Delete all Flows of this name; returns when they are deleted."""

    async def run() -> None:
        found = await _find(name)
        if not found:
            raise _nothing(name)
        await _end(found, report)

    _run(run())


def phase_of(answer: dict[str, Any]) -> str:
    """Return Jina Cloud's name of the phase."""
    return str((answer.get("status") or {}).get("phase") or "")


def endpoints_of(answer: dict[str, Any]) -> list[str]:
    """Return the URLs of the gateway."""
    endpoints = (answer.get("status") or {}).get("endpoints") or {}
    return [url for url in endpoints.values() if isinstance(url, str)]


def reasons_of(answer: dict[str, Any]) -> list[str]:
    """Return Jina Cloud's reasons for the present phase."""
    status = answer.get("status") or {}
    conditions = [c.get("message") or c.get("reason") for c in status.get("conditions") or [] if isinstance(c, dict)]
    said = [answer.get("error"), status.get("error"), status.get("message"), *conditions]
    return list(dict.fromkeys(_line(text) for text in said if text))


class Flow(CloudFlow):  # type: ignore[misc]
    """Client of one Flow, jcloud's with SetupError as its error. Raises it at once when the user is not logged in."""

    def __init__(
        self, report: Report = lambda line: None, seconds: float = 0, *, spec: str = "", flow_id: str | None = None
    ):
        if not Auth.get_auth_token():
            raise SetupError("you are not logged in at Jina Cloud: run `jcloud login`, or set JINA_AUTH_TOKEN")
        super().__init__(flow_id=flow_id)
        self.path = "flow.yml"  # only a title
        self.report, self.seconds, self.spec = report, seconds, spec
        self.changes = flow_id is not None

    async def _get_post_params(self, from_validate: bool = False) -> dict[str, Any]:
        """Send the Flow unchanged: jcloud would load jina, and convert texts that look like numbers or variables."""
        form = aiohttp.FormData()
        form.add_field("spec", io.BytesIO(self.spec.encode()), filename="spec")
        return {"data": form, "params": {}}

    async def validate(self) -> dict[str, Any]:
        """Raise SetupError with the errors that Jina Cloud finds in it."""
        answer = dict(await super().validate())
        if answer.get("errors"):
            raise SetupError(f"Jina Cloud refuses the Flow: {'; '.join(map(_line, answer['errors']))}")
        return answer

    async def _deploy(self) -> Any:
        answer = await super()._deploy()
        self.report(f"submitted as {self.flow_id}")
        return answer

    async def _fetch_until(self, intermediate: Any, desired: Any = Phase.Serving) -> tuple[list[str], None]:
        """Wait for the phase; jcloud calls this after each request for a change, and stores the endpoints."""
        answer = await self._wait(str(desired.value), SETTLE_SECONDS if self.changes else 0)
        return endpoints_of(answer), None

    async def end(self) -> None:
        """Delete it, and wait until Jina Cloud reports it as deleted."""
        try:
            await self._terminate()
            await self._wait("Deleted", 0)
        except Refused as error:
            if error.status != 404:
                raise

    async def _wait(self, desired: str, settle: float) -> dict[str, Any]:
        begun, seen, missed = time.monotonic(), "", 0
        while True:
            try:
                answer, missed = await self.status, 0
            except (aiohttp.ClientError, TimeoutError, Refused) as error:
                answer, missed = {}, missed + 1
                if missed > MOST_MISSED or (isinstance(error, Refused) and error.status < 500):
                    raise
            phase, waited = phase_of(answer), time.monotonic() - begun
            if phase == desired and (waited >= settle or seen not in ("", desired)):
                return dict(answer)
            if desired == "Serving" and phase in ("Failed", "Deleted", "Paused"):
                raise SetupError(f"{self.flow_id} is {phase.lower()}{_because(answer)}{self._advice()}")
            if waited > self.seconds:
                raise SetupError(
                    f"{self.flow_id} is still {phase.lower() or 'not known'} after {self.seconds:.0f} s"
                    f"{_because(answer)}{self._advice() if desired == 'Serving' else ''}"
                )
            if phase and phase != seen:
                self.report(f"{self.flow_id} is {phase.lower()}")
                seen = phase
            await asyncio.sleep(POLL_SECONDS)

    def _advice(self) -> str:
        return f"; see `rungpt deploy logs {self.flow_id} --cloud jina`, and `remove` ends it"


async def _find(name: str) -> list[dict[str, Any]]:
    """Return the Flows of this name or id; an id is a name, a hyphen and a suffix of Jina Cloud."""
    answer = await Flow().list_all(phase=_THERE, labels="app=rungpt")
    flows = (answer or {}).get("flows") or []
    return [flow for flow in flows if name in (flow["id"], flow["id"].rpartition("-")[0])]


def _only(name: str, flows: list[dict[str, Any]]) -> dict[str, Any]:
    if not flows:
        raise _nothing(name)
    if len(flows) > 1:
        raise SetupError(f"there are several {name}: give one of {', '.join(flow['id'] for flow in flows)}")
    return flows[0]


async def _end(flows: list[dict[str, Any]], report: Report) -> None:
    for flow in flows:
        report(f"removing {flow['id']}, which is {phase_of(flow).lower()}")
        await Flow(report, REMOVE_SECONDS, flow_id=flow["id"]).end()


def _nothing(name: str) -> SetupError:
    return SetupError(f"this account has no deployment {name} on Jina Cloud")


def _run(calls: Coroutine[Any, Any, _T]) -> _T:
    """Run the calls, and keep jcloud's prints out of our output. Raises SetupError."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            return asyncio.run(calls)
    except (aiohttp.ClientConnectionError, TimeoutError) as error:
        said = _line(error) or "no answer in time"
        raise SetupError(f"Jina Cloud at {JCLOUD_API} cannot be reached: {said}") from error
    except (aiohttp.ClientError, ValueError) as error:
        raise SetupError(f"Jina Cloud at {JCLOUD_API} sent what jcloud cannot read: {_line(error)}") from error
    except SystemExit as error:
        raise SetupError(f"jcloud gave up: {_line(printed.getvalue())}") from error


def _session() -> aiohttp.ClientSession:
    """Replace jcloud's own session, which accepts any certificate and leaves errors to its caller."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        timeout=aiohttp.ClientTimeout(total=60, sock_connect=10),
        raise_for_status=_check,
    )


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    text = await response.text(errors="replace")
    try:
        said = await response.json()
        text = said.get("error") or said.get("message") or said.get("detail") or text
    except (aiohttp.ClientError, ValueError, AttributeError):
        pass  # no JSON object: the text itself
    advice = {
        401: ": run `jcloud login`, or set another JINA_AUTH_TOKEN",
        403: ": the account must be active and have credit",
    }
    what = {401: "refuses the token", 403: "refuses this"}.get(response.status, "answers")
    message = f"Jina Cloud {what} ({response.status}: {_line(text)}){advice.get(response.status, '')}"
    raise Refused(message, response.status)


def _because(answer: dict[str, Any]) -> str:
    reasons = reasons_of(answer)
    return f": {'; '.join(reasons)}" if reasons else ""


def _line(text: object) -> str:
    return " ".join(str(text).split())[:MOST_TEXT]


jcloud.flow.get_aiohttp_session = _session
