"""Without these tests the error line for a server's fault could lack the request id that its operator needs."""

import pytest

from run_gpt import cli
from run_gpt.cli import app as commands
from run_gpt.errors import InternalError, InvalidRequest, SetupError


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (InternalError("the request failed"), "rungpt: the request failed (request mine)\n"),
        (InvalidRequest("top_p: too large"), "rungpt: top_p: too large\n"),
        (SetupError("no such model"), "rungpt: no such model\n"),
    ],
)
def test_what_is_the_servers_fault_has_the_requests_name(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error.request_id = "mine"  # type: ignore[attr-defined]

    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(commands, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, capsys.readouterr().err) == (1, says)
