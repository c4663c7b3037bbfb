"""Fixture for the tests of the commands: runs a command that must fail."""

import sys
from collections.abc import Callable

import pytest

from run_gpt.cli import main
from run_gpt.flows.ports import free_ports
from run_gpt.process import logs


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function: `fail("serve", "smolm2")` runs the command and returns its line of error.

    The command must end with exit code 1 and one line. Servers get free ports, since another program may use the
    default ports.
    """

    def run(*arguments: str) -> str:
        ports: list[str] = []
        if arguments[0] == "serve" and "--dry-run" not in arguments:
            grpc, http = free_ports(2)
            ports = ["--grpc-port", str(grpc), "--http-port", str(http)]
        monkeypatch.setattr(sys, "argv", ["rungpt", arguments[0], *ports, *arguments[1:]])
        with monkeypatch.context() as streams:
            streams.setattr(sys, "stdout", sys.stdout)  # a server replaces both
            streams.setattr(sys, "stderr", sys.stderr)
            with pytest.raises(SystemExit) as ended:
                main()
        logs.finish()
        out, err = capsys.readouterr()
        assert (ended.value.code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("rungpt: ")
        return err

    return run
