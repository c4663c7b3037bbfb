"""Files of TLS between gateways and executors: faults are one line, and a replaced certificate is read again."""

from pathlib import Path

import pytest
from certificates import write_executor_tls

from run_gpt.errors import SetupError
from run_gpt.process.executor_tls import ExecutorTLS, executor_tls


def test_faults_of_the_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"\$RUNGPT_EXECUTOR_TLS .*: ca\.crt cannot be read: No such file"):
        ExecutorTLS(tmp_path)
    folder, other = write_executor_tls(tmp_path / "a"), write_executor_tls(tmp_path / "b")
    (folder / "tls.key").write_bytes((other / "tls.key").read_bytes())
    with pytest.raises(SetupError, match=r"are no authority, certificate and key in PEM: .*MISMATCH"):
        ExecutorTLS(folder)


def test_replaced_files_are_read_again_and_broken_ones_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_executor_tls(tmp_path / "a")
    tls = ExecutorTLS(folder)
    first = tls.current()
    assert tls.current() is first
    write_executor_tls(folder)
    second = tls.current()
    assert second is not first
    assert second != first
    (folder / "tls.key").write_text("no key")
    assert tls.current() is second
    assert "the certificate that was read before stays" in caplog.text
    assert tls.server_credentials() is not None
    assert tls.channel_credentials() is not None


def test_without_the_variable_there_is_no_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNGPT_EXECUTOR_TLS", raising=False)
    executor_tls.cache_clear()
    assert executor_tls() is None
