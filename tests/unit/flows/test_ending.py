"""Without this test the streams of a server whose supervisor was killed would be cut in the middle of their drain."""

import os
import signal
import time

import pytest

from run_gpt.flows import ending


def test_a_process_without_its_supervisor_stops_orderly_and_is_killed_only_after_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Ended(Exception):
        pass

    def leave(code: int) -> None:
        raise Ended

    did: list[object] = []
    monkeypatch.setattr(os, "read", lambda fd, size: b"")
    monkeypatch.setattr(os, "kill", lambda pid, number: did.append((pid, number)))
    monkeypatch.setattr(os, "killpg", lambda pid, number: did.append((pid, number)))
    monkeypatch.setattr(os, "getpgrp", os.getpid)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(time, "sleep", did.append)
    with pytest.raises(Ended):
        ending.end_with_parent(42.0)
    assert did == [(os.getpid(), signal.SIGTERM), 42.0, (os.getpid(), signal.SIGKILL)]
