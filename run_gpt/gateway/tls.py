"""The gateway's certificate: for both ports, from two files, read again when they change."""

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Any, Self

import grpc

from run_gpt.config import GatewayConfig
from run_gpt.errors import SetupError

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Interval of looks at the files."""

State = tuple[tuple[int, int, int], ...]


class Certificate:
    """The certificate chain in `cert` and its key in `key`, both PEM. Raises SetupError.

    After a change new connections have the new certificate within LOOK_SECONDS; those that exist go on. Files that are
    then missing or do not belong together change nothing and are a warning.
    """

    def __init__(self, cert: Path, key: Path):
        self._files = cert, key
        self.context = _new_context()
        """The HTTP port's; it is changed in place."""
        self._seen: State | None = None
        self._complaint = ""
        self._read()

    @classmethod
    def of(cls, config: GatewayConfig) -> Self | None:
        """Return the certificate that the configuration names, None without one. Raises SetupError."""
        cert, key = config.tls_cert, config.tls_key
        if cert is None and key is None:
            return None
        if cert is None or key is None:
            raise SetupError("TLS needs both files: give --tls-cert and --tls-key")
        return cls(cert, key)

    def credentials(self) -> Any:
        """Return the gRPC port's credentials."""
        taken = self._grpc

        def changed() -> Any:  # called in gRPC's threads, for each handshake
            nonlocal taken
            taken, before = self._grpc, taken
            return None if taken is before else taken

        return grpc.dynamic_ssl_server_credentials(taken, changed)

    async def watch(self) -> None:
        """Read the files again when they have changed, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Read the files again if they have changed."""
        try:
            if self._state() == self._seen:
                return
            self._read()
            log.warning("%s has changed: new connections have the new certificate", self._files[0])
            self._complaint = ""
        except SetupError as error:
            if error.message != self._complaint:
                log.warning("%s; the certificate that was read before stays", error.message)
            self._complaint = error.message

    def _read(self) -> None:
        cert, key = self._files
        state = self._state()
        try:
            _new_context().load_cert_chain(cert, key, password=_no_password)  # a fault must not harm the one in use
            pair = key.read_bytes(), cert.read_bytes()
            self.context.load_cert_chain(cert, key, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise SetupError(f"--tls-cert {cert}, --tls-key {key}: no certificate and its key in PEM: {why}") from None
        self._grpc = grpc.ssl_server_certificate_configuration([pair])
        self._seen = state

    def _state(self) -> State:
        """Return what changes when a file does. Raises SetupError."""
        found = []
        for file in self._files:
            try:
                state = file.stat()
            except OSError as error:
                raise SetupError(f"the TLS file {file} cannot be read: {error.strerror}") from None
            found.append((state.st_mtime_ns, state.st_ino, state.st_size))
        return tuple(found)


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _no_password() -> str:
    """Raise ValueError: OpenSSL would ask for the password of an encrypted key at the terminal."""
    raise ValueError("the key is encrypted: give one without a password")
