"""A client that speaks HTTP/2 by itself: it sends what no gRPC library would, and counts what the server takes."""

import socket
import struct
import threading
import time
from typing import Self

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def header(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


class RawClient:
    """One connection to a gRPC port, as a context. Each method may be called from one thread."""

    def __init__(self, port: int):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
        self._initial = 65535
        self._windows = {0: self._initial}
        self._changed = threading.Condition()
        self.ended: set[int] = set()
        """Streams that the server has ended."""
        self.closed = False
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def open(self, stream: int, method: str) -> None:
        """Begin a call."""
        fields = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "x", "te": "trailers"}
        fields["content-type"] = "application/grpc"
        with self._changed:
            self._windows[stream] = self._initial
            block = b"".join(header(name.encode(), value.encode()) for name, value in fields.items())
            self._socket.sendall(frame(HEADERS, 4, stream, block))

    def send(self, stream: int, data: bytes, seconds: float = 5.0) -> int:
        """Send as much as the server's windows let it; return the number of bytes."""
        sent, end = 0, time.monotonic() + seconds
        while sent < len(data):
            with self._changed:
                while min(self._windows[0], self._windows[stream]) <= 0 and not self._over(stream):
                    if not self._changed.wait(max(0, end - time.monotonic())):
                        return sent
                if self._over(stream):
                    return sent
                size = min(16384, self._windows[0], self._windows[stream], len(data) - sent)
                self._windows[0] -= size
                self._windows[stream] -= size
            try:
                self._socket.sendall(frame(DATA, 0, stream, data[sent : sent + size]))
            except OSError:
                return sent
            sent += size
        return sent

    def wait_over(self, stream: int, seconds: float = 20.0) -> bool:
        """Return True when the server has ended the stream or the connection."""
        with self._changed:
            return self._changed.wait_for(lambda: self._over(stream), seconds)

    def _over(self, stream: int) -> bool:
        return stream in self.ended or self.closed

    def _read(self) -> None:
        try:
            with self._socket.makefile("rb") as source:
                while head := source.read(9):
                    payload = source.read(int.from_bytes(head[:3], "big"))
                    with self._changed:
                        self._take(head[3], head[4], int.from_bytes(head[5:], "big"), payload)
                        self._changed.notify_all()
        except OSError:
            pass
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW:
            self._windows[stream] = self._windows.get(stream, self._initial) + int.from_bytes(payload, "big")
        elif kind == SETTINGS and not flags & ACK:
            for number, value in struct.iter_unpack(">HI", payload):
                if number == 4:
                    self._initial = value
            self._socket.sendall(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._socket.sendall(frame(PING, ACK, 0, payload))
        elif kind == RESET or (kind == HEADERS and flags & END_STREAM):
            self.ended.add(stream)


def message(size: int, sent: int | None = None) -> bytes:
    """Return a gRPC message that announces `size` bytes, and has `sent` of them."""
    return b"\0" + struct.pack(">I", size) + b"x" * (size if sent is None else sent)
