"""Delays for wrong keys: without these tests keys could be guessed fast, or clients with right keys be kept out."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from run_gpt.errors import AuthenticationError
from run_gpt.gateway import guesses as module
from run_gpt.gateway.guesses import FREE, MOST_SECONDS, QUIET_SECONDS, UNKNOWN, Guesses, client_address, peer_address
from run_gpt.gateway.keys import Keys

HERE, THERE = "192.0.2.1", "192.0.2.2"


class Time:
    """Clock that the waits set forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(module, "time", time)
    monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=time.sleep))
    return time


async def waited(time: Time, guesses: Guesses, address: str, key: bytes, *, right: bool = False) -> float:
    before = time.now
    await guesses.wait(address, key, right=right)
    return time.now - before


async def test_the_delay_grows_with_each_wrong_key_up_to_a_bound(time: Time) -> None:
    waits = [await waited(time, Guesses(), HERE, b"x") for _ in range(3)]
    assert waits == [0, 0, 0], "each address counts for itself"
    guesses = Guesses()
    waits = [await waited(time, guesses, HERE, b"%d" % i) for i in range(40)]
    assert waits[:FREE] == [0] * FREE
    assert waits == sorted(waits)
    assert 0 < waits[FREE] < waits[FREE + 1] < waits[-1]
    assert waits[-1] == pytest.approx(MOST_SECONDS)


async def test_wrong_keys_of_one_address_delay_no_other_and_no_key_that_was_right_before(time: Time) -> None:
    guesses = Guesses()
    assert await waited(time, guesses, HERE, b"good", right=True) == 0
    for i in range(40):
        await guesses.wait(HERE, b"%d" % i, right=False)
    assert await waited(time, guesses, HERE, b"good", right=True) == 0
    assert await waited(time, guesses, THERE, b"other", right=True) == 0
    assert await waited(time, guesses, THERE, b"wrong") == 0


async def test_a_right_key_that_is_new_to_a_guessers_address_waits_like_a_wrong_one_once(time: Time) -> None:
    """Otherwise a guesser would wait a moment for each answer, and take its lateness for a no."""
    guesses = Guesses()
    for i in range(40):
        await guesses.wait(HERE, b"%d" % i, right=False)
    assert await waited(time, guesses, HERE, b"good", right=True) == pytest.approx(MOST_SECONDS)
    assert await waited(time, guesses, HERE, b"good", right=True) == 0
    await guesses.wait(HERE, b"good", right=False)  # it was removed
    assert await waited(time, guesses, HERE, b"good", right=True) == 0, "or it comes back"


async def test_the_same_guess_twice_at_once_tells_nothing_sooner() -> None:
    guesses = Guesses()
    for i in range(FREE):
        await guesses.wait(HERE, b"%d" % i, right=False)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*(guesses.wait(HERE, b"good", right=True) for _ in range(3)))
    assert loop.time() - began >= 0.09
    first, _ = await asyncio.wait(
        [asyncio.create_task(guesses.wait(HERE, b"new", right=right)) for right in (True, True, False)],
        return_when=asyncio.FIRST_COMPLETED,
    )
    assert loop.time() - began >= 0.18
    assert first


async def test_an_address_without_a_wrong_key_for_a_minute_begins_anew(time: Time) -> None:
    guesses = Guesses()
    for i in range(40):
        await guesses.wait(HERE, b"%d" % i, right=False)
    time.now += QUIET_SECONDS
    assert await waited(time, guesses, HERE, b"x") == 0


async def test_what_is_kept_is_bounded_and_a_network_of_ipv6_is_one_source(
    time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CAPACITY", 10)
    guesses = Guesses()
    for i in range(100):
        await guesses.wait(f"10.0.0.{i}", b"x", right=False)
        await guesses.wait(f"10.0.0.{i}", b"y", right=True)
    assert (len(guesses._wrong), len(guesses._proven)) == (10, 10)
    waits = [await waited(time, guesses, f"2001:db8::{i:x}", b"%d" % i) for i in range(1, 40)]
    assert waits[-1] == pytest.approx(MOST_SECONDS)
    assert await waited(time, guesses, "2001:db8:0:1::1", b"x") == 0


async def test_an_address_that_guesses_is_one_line_of_the_log(time: Time, caplog: Any) -> None:
    guesses = Guesses()
    for i in range(40):
        await guesses.wait(HERE, b"%d" % i, right=False)
    assert [line for line in caplog.messages if HERE in line] == caplog.messages[:1] != []
    assert len(caplog.messages) == 1


def test_an_address_is_an_ip_address_in_its_usual_form_or_unknown() -> None:
    """A proxy's header may hold any text, and the address stands in the log."""
    for host, shown in {
        "127.0.0.1": "127.0.0.1",
        "::ffff:192.0.2.1": "192.0.2.1",
        "2001:DB8:0::1": "2001:db8::1",
        "fe80::1%eth0": "fe80::1",
        None: UNKNOWN,
        "": UNKNOWN,
        "x\nforged": UNKNOWN,
        "1" * 10_000: UNKNOWN,
    }.items():
        assert client_address(host) == shown
    for peer, shown in {
        "ipv4:127.0.0.1:50000": "127.0.0.1",
        "ipv6:%5B::1%5D:50000": "::1",
        "ipv6:[::1]:50000": "::1",
        "unix:/tmp/x": UNKNOWN,
        "": UNKNOWN,
    }.items():
        assert peer_address(peer) == shown


async def test_keys_count_their_wrong_guesses(time: Time) -> None:
    keys = Keys("own-key-1")
    assert (await keys.admit("own-key-1", THERE))[0] == "default"
    for i in range(FREE + 1):
        before = time.now
        with pytest.raises(AuthenticationError):
            await keys.admit(f"wrong-{i}", HERE)
    assert time.now > before
    before = time.now
    assert (await keys.admit("own-key-1", THERE))[0] == "default"
    assert time.now == before
