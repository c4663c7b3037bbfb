"""Addresses behind a name: the answers of the resolver are followed, but its silence removes no server."""

import asyncio
import socket
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from run_gpt.gateway.discovery import Name, is_name, join_address, resolve, split_address, wanted

FAILURE = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
NONE = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class Answers:
    """A resolver that gives its answers one by one."""

    def __init__(self, *answers: Sequence[str] | OSError):
        self.answers = list(answers)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer


async def looked_up(*answers: Sequence[str] | OSError) -> Name:
    name = Name("engines:1", Answers(*answers))
    for _ in answers:
        await name.look_up()
    return name


async def test_the_newest_answer_counts() -> None:
    name = await looked_up(["a:1", "b:1"], ["b:1", "c:1"])
    assert wanted([name], {"a:1": True, "b:1": True}) == {"b:1", "c:1"}


async def test_a_failed_lookup_changes_nothing() -> None:
    """A name server that is down must not stop a running server."""
    name = await looked_up(["a:1", "b:1"], FAILURE, FAILURE)
    assert wanted([name], {"a:1": True, "b:1": False}) == {"a:1", "b:1"}


async def test_an_empty_answer_takes_away_only_what_does_not_answer() -> None:
    name = await looked_up(["a:1", "b:1", "c:1"], ["a:1", "b:1"], [], FAILURE)
    assert wanted([name], {"a:1": True, "b:1": False, "c:1": True}) == {"a:1"}
    assert wanted([name], {}) == set(), "nothing is added by it either"


async def test_names_that_share_an_address_share_it() -> None:
    one, two = await looked_up(["a:1", "b:1"]), await looked_up(["b:1"])
    assert wanted([one, two], {}) == {"a:1", "b:1"}


async def test_a_failure_is_said_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    await looked_up(["a:1"], FAILURE, FAILURE, [], [], ["a:1"], ["a:1"])
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "the executors' name engines:1 cannot be looked up: Temporary failure in name resolution",
        "the executors' name engines:1 has no address",
        "the executors' name engines:1 has addresses again",
    ]


def answering(monkeypatch: pytest.MonkeyPatch, by_family: dict[Any, list[str] | OSError]) -> None:
    def getaddrinfo(host: str, port: int, family: int = 0, type: int = 0, *_: Any, **__: Any) -> list[Any]:
        answer = by_family[family]
        if isinstance(answer, OSError):
            raise answer
        return [(family, type, 6, "", (ip, port)) for ip in answer]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


async def test_a_records_come_before_aaaa_records(monkeypatch: pytest.MonkeyPatch) -> None:
    v4, v6 = socket.AF_INET, socket.AF_INET6
    answering(monkeypatch, {v4: ["10.0.0.2", "10.0.0.1", "10.0.0.1"], v6: ["fd00::1"]})
    assert await resolve("engines", 5) == ["10.0.0.1:5", "10.0.0.2:5"]
    answering(monkeypatch, {v4: NONE, v6: ["fd00::1"]})
    assert await resolve("engines", 5) == ["[fd00::1]:5"]
    answering(monkeypatch, {v4: NONE, v6: NONE})
    assert await resolve("engines", 5) == []


async def test_that_nobody_could_be_asked_is_not_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With half an answer, all replicas with addresses of both kinds would change addresses."""
    answering(monkeypatch, {socket.AF_INET: FAILURE, socket.AF_INET6: ["fd00::1"]})
    with pytest.raises(OSError, match="Temporary failure"):
        await resolve("engines", 5)


async def test_a_slow_name_server_does_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = threading.Event(), threading.Event()

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        asked.set()
        answer.wait(10)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    lookup = asyncio.create_task(resolve("engines", 5))
    while not asked.is_set():
        await asyncio.sleep(0)
    assert not lookup.done()
    answer.set()
    assert await lookup == []


async def test_the_real_resolver_knows_this_machine() -> None:
    assert "127.0.0.1:51001" in await resolve("localhost", 51001)


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [("engines.ns.svc:51001", "engines.ns.svc", 51001), ("10.0.0.1:1", "10.0.0.1", 1), ("[fd00::1]:2", "fd00::1", 2)],
)
def test_addresses(address: str, host: str, port: int) -> None:
    assert split_address(address) == (host, port)
    assert join_address(host, port) == address
    assert is_name(host) == (host == "engines.ns.svc")


@pytest.mark.parametrize("address", ["engines", "engines:", "engines:x", ":5", "fd00::1:5", "engines:70000"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        split_address(address)
