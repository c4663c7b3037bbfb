"""A fixture for the tests of the commands: one that runs a command which fails."""

import sys
from collections.abc import Callable

import pytest

from run_gpt.cli import main
from run_gpt.flows.ports import free_ports


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`fail("serve", "smolm2")` runs the command, which must end with exit code 1 and one line; returns that line.

    A server is given free ports: its default ports may be taken by a connection of any other program.
    """

    def run(*arguments: str) -> str:
        ports: list[str] = []
        if arguments[0] == "serve" and "--dry-run" not in arguments:
            grpc, http = free_ports(2)
            ports = ["--grpc-port", str(grpc), "--http-port", str(http)]
        monkeypatch.setattr(sys, "argv", ["rungpt", arguments[0], *ports, *arguments[1:]])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert (ended.value.code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("rungpt: ")
        return err

    return run
