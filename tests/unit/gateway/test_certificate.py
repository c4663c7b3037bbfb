"""The gateway's certificate. A fault in its files must be a line at the start, never a prompt or a port in the open."""

from pathlib import Path

import pytest
from certificates import write_certificate

from run_gpt.config import GatewayConfig
from run_gpt.errors import SetupError
from run_gpt.gateway.tls import Certificate


def test_a_certificate_needs_both_files_and_none_is_no_tls(tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path)
    assert Certificate.of(GatewayConfig()) is None
    assert Certificate.of(GatewayConfig(tls_cert=cert, tls_key=key)) is not None
    for half in ({"tls_cert": cert}, {"tls_key": key}):
        with pytest.raises(SetupError, match="--tls-cert and --tls-key"):
            Certificate.of(GatewayConfig(**half))


def test_files_that_cannot_be_are_a_line(tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = write_certificate(tmp_path / "other")
    junk = tmp_path / "junk"
    junk.write_text("junk")
    encrypted = tmp_path / "encrypted"
    encrypted.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n")
    for pair in ((cert, other), (key, cert), (junk, key), (cert, junk), (tmp_path, key), (cert, encrypted)):
        with pytest.raises(SetupError) as raised:
            Certificate(*pair)
        assert "\n" not in raised.value.message
    with pytest.raises(SetupError, match="cannot be read: No such file"):
        Certificate(tmp_path / "none", key)
