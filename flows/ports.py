"""Owns the checks of ports: whether a port is free, which ports are free, and whether a server answers on one."""

import errno
import http.client
import os
import socket
import ssl

from run_gpt.config import LOOPBACK
from run_gpt.errors import PortInUse, SetupError

_UNSPECIFIED = {"0.0.0.0": LOOPBACK, "": LOOPBACK, "::": "::1"}


def local_host(host: str) -> str:
    """Return the address at which this machine reaches a server that listens on `host`."""
    return _UNSPECIFIED.get(host, host)


def check_port(host: str, port: int, option: str) -> None:
    """Raise PortInUse, or SetupError if the port or host is not available; `option` is the one that changes the port.

    Port 0 stands for any free port.
    """
    if not 0 <= port <= 65535:
        raise SetupError(f"{port} is not a port; give one of 1 to 65535 with {option}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            if os.name == "posix":  # a port whose last connections are still closing is free
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except socket.gaierror as error:
        raise SetupError(f"no such address: {host}; give another with --host") from error
    except OSError as error:
        raise _explain(error, host, port, option) from error


def _explain(error: OSError, host: str, port: int, option: str) -> SetupError:
    if error.errno == errno.EADDRINUSE:
        return PortInUse(f"port {port} is in use; end the program that listens there, or give another with {option}")
    if error.errno == errno.EACCES:
        return SetupError(f"port {port} needs more rights than this user has; give another with {option}")
    if error.errno == errno.EADDRNOTAVAIL:
        return SetupError(f"{host} is not an address of this machine; give another with --host")
    return SetupError(f"cannot listen on {host}:{port}: {error.strerror}")


def free_ports(count: int) -> list[int]:
    """Return different ports on loopback on which nothing listens now."""
    listeners = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for listener in listeners:
            listener.bind((LOOPBACK, 0))
        return [int(listener.getsockname()[1]) for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


def is_listening(host: str, port: int) -> bool:
    """Return True if the port accepts a connection."""
    try:
        socket.create_connection((local_host(host), port), timeout=1.0).close()
    except OSError:
        return False
    return True


def answers_ok(host: str, port: int, path: str, *, tls: bool = False) -> bool:
    """Return True if an HTTP GET of the path is answered with 200. `tls`: over TLS, with any certificate."""
    connection = _connection(local_host(host), port, tls=tls)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _connection(host: str, port: int, *, tls: bool) -> http.client.HTTPConnection:
    if not tls:
        return http.client.HTTPConnection(host, port, timeout=1.0)
    context = ssl.create_default_context()
    context.check_hostname = False  # the server's own probe: the certificate is for other names
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=1.0, context=context)
