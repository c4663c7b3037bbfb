"""The certificates that clients trust: those of a file, or the well-known ones."""

import os
import ssl
from pathlib import Path
from typing import Any

from run_gpt.config import CA_FILE_VARIABLE
from run_gpt.errors import InvalidRequest


def given_ca(file: str | Path | None = None) -> Path | None:
    """Return the file of trusted certificates, in PEM: `file`, else the one that the environment names, else None.

    Raises InvalidRequest if it has none.
    """
    if (name := file or os.environ.get(CA_FILE_VARIABLE)) is None or not str(name):
        return None
    path = Path(name)
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise InvalidRequest(f"ca_file = {str(path)!r}: no certificates in PEM: {error}", param="ca_file") from None
    return path


def http_trust(is_secure: bool, ca: Path | None = None) -> ssl.SSLContext | bool:
    """Return httpx's `verify`. Plain HTTP needs none: that saves the time to read certificates."""
    return ssl.create_default_context(cafile=ca) if is_secure and ca is not None else is_secure


def grpc_trust(ca: Path | None) -> Any:
    """Return gRPC's credentials of a channel."""
    import grpc

    return grpc.ssl_channel_credentials(None if ca is None else ca.read_bytes())
