"""Without these tests a server could admit the wrong clients, refuse the right ones, or write a key into its log."""

import asyncio
import base64
import logging
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from grpc.aio import AbortError

from run_gpt.config import GatewayConfig
from run_gpt.errors import AuthenticationError, SetupError
from run_gpt.gateway import grpc_access
from run_gpt.gateway import keys as keys_module
from run_gpt.gateway.http_access import check_origins
from run_gpt.gateway.keys import MOST_FILE_BYTES, Keys, parse_keys, sent_key
from run_gpt.gateway.record import Record, line_of

ALICE, BOB, OWN = "alice-secret:#1", "bob-secret-2", "own-secret-3"


class Clock:
    """Clock that the test sets forward."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(keys_module, "time", clock)
    return clock


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"alice: {ALICE}\n")
    file.chmod(0o600)
    return file


def later(clock: Clock, keys: Keys) -> None:
    """Let a second pass, and a request come."""
    clock.now += 1
    asyncio.run(keys.refresh())


def refused(keys: Keys, key: str) -> bool:
    """Return True if the key is refused by an error that does not contain it. Fails if the key is accepted."""
    with pytest.raises(AuthenticationError) as raised:
        keys.check(key)
    return len(key) < 8 or key not in raised.value.message


def test_a_file_has_a_line_for_each_key() -> None:
    text = f"\ufeff# Who may ask\n\n  alice:{ALICE}  \r\nbob.2_x-y :\t{BOB}\n   # no key"
    assert list(parse_keys(text.encode(), Path("keys"))) == ["alice", "bob.2_x-y"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("alice", "line 1: write NAME: KEY"),
        (f"\nsecret-of-nobody\nalice: {ALICE}", "line 2: write NAME: KEY"),
        (": longenough", "line 1: a name has"),
        ("two words: longenough", "line 1: a name has"),
        ("-x: longenough", "line 1: a name has"),
        (f"{'x' * 101}: longenough", "line 1: a name has"),
        ("jos\u00e9: longenough", "line 1: a name has"),
        ("alice:", "line 1: a key has 8 to 512"),
        ("alice: short77", "line 1: a key has 8 to 512"),
        (f"alice: {'x' * 513}", "line 1: a key has 8 to 512"),
        ("alice: with space", "line 1: a key has 8 to 512"),
        ("alice: schl\u00fcssel-77", "line 1: a key has 8 to 512"),
        (f"alice: {ALICE}\nalice: {BOB}", "line 2: there is another key called alice"),
        (f"alice: {ALICE}\n#\nbob: {ALICE}", "line 3: bob has the same key as alice"),
        (f"default: {ALICE}", "line 1: there is another key called default"),
        (f"alice: {OWN}", "line 1: alice has the same key as default"),
    ],
)
def test_a_malformed_file_is_one_line_that_says_where_and_never_the_key(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(SetupError) as raised:
        Keys(OWN, file)
    assert f"{file}, {says}" in raised.value.message
    assert "\n" not in raised.value.message
    for line in text.splitlines():
        key = line.partition(":")[2].strip() or line
        assert len(key) < 6 or key not in raised.value.message


def test_a_file_that_is_no_file_of_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot be read: No such file"):
        Keys(file=tmp_path / "none")
    with pytest.raises(SetupError, match="cannot be read: Is a directory"):
        Keys(file=tmp_path)
    (tmp_path / "large").write_bytes(b"#" * (MOST_FILE_BYTES + 1))
    with pytest.raises(SetupError, match=f"more than {MOST_FILE_BYTES} bytes"):
        Keys(file=tmp_path / "large")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(SetupError, match="line 1"):
        Keys(file=tmp_path / "binary")


@pytest.mark.parametrize("key", ["", "short", "with space", "schl\u00fcssel-77"])
def test_a_key_that_cannot_be_is_refused_at_the_start(key: str) -> None:
    """An empty RUNGPT_API_KEY would otherwise start a server without a key."""
    with pytest.raises(SetupError, match=r"--api-key or \$RUNGPT_API_KEY: a key has 8"):
        Keys.of(GatewayConfig(), key)


def test_a_server_that_must_have_a_key_does_not_start_without_one(file: Path) -> None:
    assert Keys.of(GatewayConfig(), None) is None
    with pytest.raises(SetupError, match="set RUNGPT_API_KEY"):
        Keys.of(GatewayConfig(require_key=True), None)
    for keys in (
        Keys.of(GatewayConfig(require_key=True), OWN),
        Keys.of(GatewayConfig(require_key=True, api_key_file=file), None),
    ):
        assert keys is not None


def test_a_key_gives_its_name_and_everything_else_is_refused(file: Path) -> None:
    keys = Keys(OWN, file)
    assert keys.names == ["default", "alice"]
    assert (keys.check(OWN), keys.check(ALICE)) == ("default", "alice")
    for other in ("", OWN[:-1], OWN + "x", OWN.upper(), BOB, "default", "alice", "\udcff\u00fc", "x" * 100_000):
        assert refused(keys, other)


def test_every_key_is_compared_in_constant_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the time of an answer would reveal how much of a key is right, or which key it is."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(ours: bytes, theirs: bytes) -> bool:
        compared.append((ours, theirs))
        return ours == theirs

    file.write_text(f"alice: {ALICE}\nbob: {BOB}\n")
    keys = Keys(OWN, file)
    monkeypatch.setattr("run_gpt.gateway.keys.hmac.compare_digest", compare)
    assert keys.check(OWN) == "default"
    assert refused(keys, "wrong")
    assert [len(ours) for ours, _ in compared] == [32] * 6
    assert all(len(theirs) == 32 for _, theirs in compared)


def test_no_key_is_kept(file: Path) -> None:
    assert not [key for key in (OWN, ALICE) if key in repr(vars(Keys(OWN, file)))]


def test_a_change_of_the_file_counts_without_a_restart(file: Path, clock: Clock) -> None:
    keys = Keys(file=file)
    stat = file.stat()
    file.write_text(f"alice: {ALICE[::-1]}\n")  # as long as before, and not newer
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert keys.check(ALICE) == "alice", "it was looked at a moment ago"
    later(clock, keys)
    assert refused(keys, ALICE)
    assert keys.check(ALICE[::-1]) == "alice"
    (file.parent / "new").write_text(f"bob: {BOB}\n")
    (file.parent / "new").replace(file)
    later(clock, keys)
    assert keys.check(BOB) == "bob"
    assert refused(keys, ALICE[::-1])


@pytest.mark.parametrize("content", [None, b"alice", b"alice: short", b"\xff: longenough"])
def test_a_file_that_becomes_bad_changes_nothing_and_warns_once(
    file: Path, clock: Clock, caplog: Any, content: bytes | None
) -> None:
    keys = Keys(file=file)
    file.unlink() if content is None else file.write_bytes(content)
    for _ in range(3):
        later(clock, keys)
        assert keys.check(ALICE) == "alice"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(file) in caplog.text
    assert "stay" in caplog.text
    file.write_text(f"bob: {BOB}")
    later(clock, keys)
    assert keys.check(BOB) == "bob"
    assert refused(keys, ALICE)
    assert BOB not in caplog.text


async def test_a_large_file_is_read_beside_the_loop_and_once_for_all_who_wait(
    file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a megabyte held every stream of the gateway for two seconds."""
    keys = Keys(file=file)
    await asyncio.to_thread(file.write_text, f"bob: {BOB}\n")
    threads, go, real = [], threading.Event(), parse_keys

    def parse(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        assert go.wait(20)
        return real(*arguments)

    monkeypatch.setattr(keys_module, "parse_keys", parse)
    clock.now += 1
    asking = [asyncio.create_task(keys.admit(BOB, "192.0.2.1")) for _ in range(3)]
    while not threads:
        await asyncio.sleep(0.01)  # between two polls of the condition
    asking.pop().cancel()
    assert not any(task.done() for task in asking)
    go.set()
    assert [name for name, _ in await asyncio.gather(*asking)] == ["bob"] * 2
    assert threads != [threading.main_thread()]
    assert len(threads) == 1


def test_an_emptied_file_lets_nobody_in_and_a_start_with_it_says_so(file: Path, clock: Clock, caplog: Any) -> None:
    keys = Keys(file=file)
    file.write_text("# nobody for now\n")
    later(clock, keys)
    for emptied in (keys, Keys(file=file)):
        assert refused(emptied, ALICE)
        assert refused(emptied, "")
    assert "every request is refused" in caplog.text
    file.write_text(f"alice: {ALICE}")
    later(clock, keys)
    assert keys.check(ALICE) == "alice"


@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o440, False), (0o660, False), (0o644, True)])
def test_a_file_that_everybody_may_read_is_a_warning_once(
    file: Path, clock: Clock, caplog: Any, mode: int, warns: bool
) -> None:
    """A Secret in a container is often readable by its group, and nobody else is there."""
    file.chmod(mode)
    keys = Keys(file=file)
    for i in range(3):
        later(clock, keys)
        file.chmod(0o600)
        file.write_text(f"alice: {ALICE}\n# {i}\n")
        file.chmod(mode)
        assert keys.check(ALICE) == "alice"
    assert [line for line in caplog.messages if "chmod o-r" in line] == caplog.messages[: int(warns)]
    assert ALICE not in caplog.text


def test_a_file_that_everybody_may_write_is_refused(file: Path, clock: Clock, caplog: Any) -> None:
    """Everybody on the machine could add a key of their own."""
    keys = Keys(file=file)
    file.chmod(0o602)
    with pytest.raises(SetupError, match="may be written by everybody on this machine: chmod o-w"):
        Keys(file=file)
    file.write_text(f"bob: {BOB}\n")
    later(clock, keys)
    assert refused(keys, BOB)
    assert keys.check(ALICE) == "alice"
    assert "chmod o-w" in caplog.text


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def test_a_key_is_a_bearer_token_or_a_password() -> None:
    for value in (f"Bearer {ALICE}", f"bearer   {ALICE} ", basic(f"any:{ALICE}"), basic(f":{ALICE}")):
        assert sent_key([value]) == ALICE
        assert sent_key([value], [f" {ALICE} "]) == ALICE, "the same key twice is one"
    assert sent_key([ALICE], plain=True) == ALICE
    assert sent_key([], [ALICE]) == ALICE


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [
        ([f"Bearer {ALICE}"], [BOB]),
        ([basic(f"any:{ALICE}")], [BOB]),
        ([f"Bearer {ALICE}", f"Bearer {BOB}"], []),
        ([], [ALICE, BOB]),
    ],
)
def test_several_keys_are_refused(authorization: list[str], api_key: list[str]) -> None:
    """To take one of them would hide that the other is wrong, or was meant."""
    with pytest.raises(AuthenticationError, match="several keys") as raised:
        sent_key(authorization, api_key)
    assert ALICE not in raised.value.message


@pytest.mark.parametrize(
    "value", [None, "", "Bearer", "Bearer ", ALICE, f"Digest {ALICE}", "Basic", "Basic =", "Basic é"]
)
def test_what_holds_no_key_is_an_error_that_says_how_to_send_one(value: str | None) -> None:
    with pytest.raises(AuthenticationError, match="Authorization"):
        sent_key([] if value is None else [value], [""])


def test_an_origin_that_no_browser_sends_is_refused() -> None:
    """Such an origin would never match, and users would not know why."""
    check_origins(["*", "https://app.example.com", "http://127.0.0.1:8080", "chrome-extension://abc"])
    for origin in ("app.example.com", "https://app.example.com/", "https://App.example.com", "", "null", "https://"):
        with pytest.raises(SetupError, match="--cors-origin"):
            check_origins([origin])


def test_a_line_of_the_log_is_one_line_whatever_a_client_sends() -> None:
    record = Record(method="POST", route="/x\n2026 POST /forged" + "é" * 10_000, user='"\nforged')
    line = line_of(record.facts("404"))
    assert "\n" not in line
    assert len(line) < 600
    assert "forged key=" not in line


async def test_nothing_is_read_of_a_caller_without_a_key() -> None:
    """Otherwise such a caller could keep calls open for ever, or fill the memory with its messages."""
    ended: list[Any] = []

    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("this was read")
        yield b""

    async def abort(*arguments: Any) -> None:
        ended.append(arguments)
        raise AbortError

    with pytest.raises(AbortError):
        await grpc_access._refusal(AuthenticationError("no")).stream_stream(unread(), SimpleNamespace(abort=abort))
    assert [arguments[1] for arguments in ended] == ["no"]
