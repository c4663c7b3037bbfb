"""TLS between gateways and executors, in which each side shows a certificate of the same authority.

The files are in the folder that $RUNGPT_EXECUTOR_TLS names, under the names that cert-manager gives them in a Secret.
They are read again when they have changed.
"""

import logging
import os
import ssl
import threading
from functools import cache
from pathlib import Path
from typing import Any

from run_gpt.config import EXECUTOR_TLS_VARIABLE
from run_gpt.errors import SetupError

log = logging.getLogger(__name__)

CA, CERT, KEY = "ca.crt", "tls.crt", "tls.key"
NAME = "rungpt-executor"
"""DNS name that the certificate must have: executors are called by addresses that change."""
CHANNEL_OPTIONS = [("grpc.ssl_target_name_override", NAME)]
"""Options of a channel to an executor."""


class ExecutorTLS:
    """The authority, the certificate and its key in a folder. Raises SetupError if they cannot be used."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._lock = threading.Lock()
        self._seen: object = None
        self._read()

    @property
    def files(self) -> tuple[str, str]:
        """Paths of the key and of the certificate."""
        return str(self._folder / KEY), str(self._folder / CERT)

    def server_credentials(self) -> Any:
        """Return credentials of a port that refuses clients without a certificate of the authority."""
        import grpc

        def configuration(parts: tuple[bytes, bytes, bytes]) -> Any:
            return grpc.ssl_server_certificate_configuration([parts[1:]], parts[0])

        taken = self.current()

        def changed() -> Any:  # called in gRPC's threads, for each handshake
            nonlocal taken
            before, taken = taken, self.current()
            return None if taken is before else configuration(taken)

        return grpc.dynamic_ssl_server_credentials(configuration(taken), changed, require_client_authentication=True)

    def channel_credentials(self) -> Any:
        """Return credentials of a channel that trusts the authority only, and shows the certificate."""
        import grpc

        authority, key, chain = self.current()
        return grpc.ssl_channel_credentials(authority, key, chain)

    def current(self) -> tuple[bytes, bytes, bytes]:
        """Return authority, key and certificate as they are now; the same object until they change.

        Files that cannot be used, for example while they are replaced, change nothing and are a warning.
        """
        with self._lock:
            try:
                if self._state() != self._seen:
                    self._read()
            except SetupError as error:
                log.warning("%s; the certificate that was read before stays", error.message)
            return self._parts

    def _read(self) -> None:
        state = self._state()
        authority, cert, key = (self._folder / name for name in (CA, CERT, KEY))
        try:
            context = ssl.create_default_context(cafile=authority)
            context.load_cert_chain(cert, key, password=_no_password)
            self._parts = authority.read_bytes(), key.read_bytes(), cert.read_bytes()
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise SetupError(
                f"${EXECUTOR_TLS_VARIABLE} {self._folder}: {CA}, {CERT} and {KEY} are no authority, certificate and "
                f"key in PEM: {why}"
            ) from None
        self._seen = state

    def _state(self) -> object:
        """Return what changes when a file does. Raises SetupError."""
        found = []
        for name in (CA, CERT, KEY):
            try:
                state = (self._folder / name).stat()
            except OSError as error:
                why = f"{name} cannot be read: {error.strerror}"
                raise SetupError(f"${EXECUTOR_TLS_VARIABLE} {self._folder}: {why}") from None
            found.append((state.st_mtime_ns, state.st_ino, state.st_size))
        return found


@cache
def executor_tls() -> ExecutorTLS | None:
    """Return this process' TLS between gateways and executors; None without it. Raises SetupError."""
    folder = os.environ.get(EXECUTOR_TLS_VARIABLE)
    return ExecutorTLS(Path(folder)) if folder else None


def _no_password() -> str:
    """Raise ValueError: OpenSSL would ask for the password of an encrypted key at the terminal."""
    raise ValueError("the key is encrypted: give one without a password")
