"""Changes of adapters in several replicas: without these tests the same request could get different answers."""

import asyncio
from typing import Any

import pytest

from run_gpt.api.adapters import AdapterList, ListAdaptersRequest, LoadAdapterRequest, UnloadAdapterRequest
from run_gpt.config import GatewayConfig
from run_gpt.errors import DeadlineExceeded, Forbidden, InvalidRequest, ModelNotFound, RequestError, Unavailable
from run_gpt.gateway.adapters import AdapterChanges
from run_gpt.gateway.service import Service


class ScriptedReplica:
    """Replica with adapters by name and path. The next load raises `fails`, the next change `late` after it is made."""

    address = "scripted"

    def __init__(self, **adapters: str):
        self.adapters = dict(adapters)
        self.fails: RequestError | None = None
        self.late: RequestError | None = None
        self.waits: asyncio.Event | None = None
        self.asked = asyncio.Event()

    async def ask(self, request: Any) -> AdapterList:
        self.asked.set()
        if self.waits is not None:
            await self.waits.wait()
        if isinstance(request, LoadAdapterRequest):
            if self.fails:
                raise self.fails
            if request.name in self.adapters:
                raise InvalidRequest("taken", param="name")
            self.adapters[request.name] = request.path
        elif isinstance(request, UnloadAdapterRequest):
            if request.name not in self.adapters:
                raise ModelNotFound("not loaded", param="adapter")
            del self.adapters[request.name]
        if self.late and not isinstance(request, ListAdaptersRequest):
            error, self.late = self.late, None
            raise error
        return AdapterList(id="x", created=1, model="m", adapters=list(self.adapters))


def changes() -> AdapterChanges:
    return AdapterChanges(lambda replica, request: replica.ask(request))  # type: ignore[attr-defined]


def load(name: str, path: str = "path") -> LoadAdapterRequest:
    return LoadAdapterRequest.parse({"name": name, "path": path})


def unload(name: str) -> UnloadAdapterRequest:
    return UnloadAdapterRequest.parse({"name": name})


def of(*replicas: Any) -> Any:
    return lambda: list(replicas)


async def test_a_change_is_made_in_every_replica() -> None:
    a, b, made = ScriptedReplica(), ScriptedReplica(), changes()
    assert (await made.make(load("x"), of(a, b))).adapters == ["x"]  # type: ignore[attr-defined]
    assert a.adapters == b.adapters == {"x": "path"}
    await made.make(unload("x"), of(a, b))
    assert a.adapters == b.adapters == {}


async def test_what_one_replica_refuses_no_replica_keeps() -> None:
    a, b, made = ScriptedReplica(), ScriptedReplica(), changes()
    b.fails = InvalidRequest("it does not fit", param="path")
    with pytest.raises(InvalidRequest, match="does not fit"):
        await made.make(load("x"), of(a, b))
    assert a.adapters == {}
    back = ScriptedReplica()
    await made.bring_up_to_date(back)  # type: ignore[arg-type]
    assert back.adapters == {}


async def test_a_load_that_is_too_late_is_undone_where_it_came_to_pass() -> None:
    a, b, made = ScriptedReplica(), ScriptedReplica(), changes()
    b.late = DeadlineExceeded("too late")
    with pytest.raises(DeadlineExceeded):
        await made.make(load("x"), of(a, b))
    assert a.adapters == b.adapters == {}


async def test_a_name_that_is_taken_keeps_what_it_names() -> None:
    a, b, made = ScriptedReplica(x="old"), ScriptedReplica(x="old"), changes()
    with pytest.raises(InvalidRequest, match="taken"):
        await made.make(load("x", "new"), of(a, b))
    assert a.adapters == b.adapters == {"x": "old"}


async def test_unloading_what_is_nowhere_is_an_error_and_what_is_somewhere_is_none() -> None:
    a, b, made = ScriptedReplica(x="path"), ScriptedReplica(), changes()
    with pytest.raises(ModelNotFound):
        await made.make(unload("y"), of(a, b))
    await made.make(unload("x"), of(a, b))
    assert a.adapters == {}


async def test_a_replica_that_fails_to_unload_is_told_and_is_not_given_it_back() -> None:
    a, b, made = ScriptedReplica(x="path"), ScriptedReplica(x="path"), changes()
    b.late = DeadlineExceeded("requests still have it")
    with pytest.raises(DeadlineExceeded):
        await made.make(unload("x"), of(a, b))
    back = ScriptedReplica(x="path")  # as it starts
    await made.bring_up_to_date(back)  # type: ignore[arg-type]
    assert back.adapters == {}


async def test_a_replica_that_comes_back_gets_what_was_loaded_and_loses_what_was_unloaded() -> None:
    made, there = changes(), ScriptedReplica(start="old", gone="old")
    await made.make(load("new"), of(there))
    await made.make(unload("gone"), of(there))
    await made.make(unload("start"), of(there))
    await made.make(load("start", "other"), of(there))
    back = ScriptedReplica(start="old", gone="old")
    await made.bring_up_to_date(back)  # type: ignore[arg-type]
    assert back.adapters == there.adapters == {"new": "path", "start": "other"}


async def test_a_replica_that_comes_back_during_a_change_is_not_left_out() -> None:
    """The change waits for the returning replica, and only then asks which replicas are ready."""
    made, there, back = changes(), ScriptedReplica(), ScriptedReplica()
    await made.make(load("first"), of(there))
    ready = [there]
    back.waits = asyncio.Event()

    async def come_back() -> None:
        await made.bring_up_to_date(back)  # type: ignore[arg-type]
        ready.append(back)

    coming = asyncio.create_task(come_back())
    await back.asked.wait()
    loading = asyncio.create_task(made.make(load("second"), lambda: list(ready)))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    back.waits.set()
    await asyncio.gather(coming, loading)
    assert back.adapters == there.adapters == {"first": "path", "second": "path"}


async def test_a_client_that_goes_away_does_not_stop_a_change_half_way() -> None:
    made, a, b = changes(), ScriptedReplica(), ScriptedReplica()
    b.waits = asyncio.Event()
    loading = asyncio.create_task(made.make(load("x"), of(a, b)))
    await b.asked.wait()
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    b.waits.set()
    back = ScriptedReplica()
    await made.bring_up_to_date(back)  # type: ignore[arg-type]  # it waits for its turn
    assert a.adapters == b.adapters == back.adapters == {"x": "path"}


async def test_without_a_replica_a_change_is_refused() -> None:
    with pytest.raises(Unavailable):
        await changes().make(load("x"), of())


async def test_changes_are_refused_unless_the_server_allows_them() -> None:
    """Without this check a client could name files on the server's machine."""
    service = Service([], GatewayConfig())  # type: ignore[arg-type]
    for change in (load("x"), unload("x")):
        with pytest.raises(Forbidden, match="--runtime-adapters"):
            await service.answer(change)
