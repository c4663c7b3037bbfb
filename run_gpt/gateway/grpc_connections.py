"""The connections of the gRPC port, as the system shows them: how many bytes came, and how many are of one address.

gRPC reads a message to its end, up to 4 GiB, before it looks at its limit (grpc/grpc, issue 43012), and has no bound
for one address. So both are held from outside, by the port's sockets. That works on Linux; elsewhere it does nothing.
"""

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import unquote

from run_gpt.errors import RequestTooLarge
from run_gpt.gateway.grpc_reads import OVERHEAD, Reads

LOOK_SECONDS, IDLE_LOOK_SECONDS = 0.1, 1.0
"""Interval of looks at the connections, while a call waits for a message and while none does."""
MOST_HELD = 256 * 1024 * 1024
"""Most bytes of messages that are not complete, of all connections together."""
SLACK = 1024 * 1024
"""Bytes that a connection may send beside its messages, such as pings, until it waits for no message."""
SILENT_BYTES = 1024
"""Bytes that a connection has sent when it had a call, or nearly so."""

_DESCRIPTORS = "/proc/self/fd"
_RECEIVED = struct.Struct("Q"), 128
"""Form and place of `tcpi_bytes_received` in the kernel's tcp_info."""


class ConnectionWatch:
    """Watch over the connections to `port`, with at most `most_of_address` of one address.

    It ends the calls that wait for more bytes than their bounds allow, and closes connections above the number.
    """

    def __init__(self, port: int, reads: Reads, most_of_address: int):
        self._port = port
        self._reads = reads
        self._most = most_of_address
        self._bases: dict[str, int] = {}
        """Bytes that had come from each connection when no call waited for a message."""
        self._received: Mapping[str, int] = {}
        self._order: dict[str, int] = {}
        """Number of the look that found each connection first."""
        self._looks = 0

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._time_to_look()
            taken = self._reads.taken.copy()
            received = await asyncio.to_thread(received_from, self._port)
            self.look(received, taken)
            if surplus := self.surplus():
                await asyncio.to_thread(cut, self._port, surplus)

    async def _time_to_look(self) -> None:
        """Wait until a call has waited for its message for LOOK_SECONDS, at most IDLE_LOOK_SECONDS."""
        with suppress(TimeoutError):
            async with asyncio.timeout(IDLE_LOOK_SECONDS):
                while True:
                    self._reads.begun.clear()
                    if not self._reads.peers:
                        await self._reads.begun.wait()
                    await asyncio.sleep(LOOK_SECONDS)
                    if self._reads.peers:
                        return

    def look(self, received: Mapping[str, int], taken: Mapping[str, int]) -> None:
        """End the calls that hold too much. `taken`: the bytes that were read before `received` was counted."""
        reads, waiting = self._reads, self._reads.peers
        self._looks += 1
        self._order = {peer: self._order.get(peer, self._looks) for peer in received}
        self._received = received
        for gone in (self._bases.keys() | taken.keys()) - received.keys() - waiting:
            self._bases.pop(gone, None)
            del reads.taken[gone]
        held: dict[str, int] = {}
        for peer, count in received.items():
            if peer in waiting:
                held[peer] = count - self._bases.setdefault(peer, 0) - reads.taken[peer]
            else:
                self._bases[peer] = count
                reads.taken[peer] -= taken.get(peer, 0)
        for peer, count in held.items():
            if count > SLACK + sum(read.bound.most_bytes + OVERHEAD for read in reads.of(peer)):
                self._end(peer)
                held[peer] = 0
        while sum(held.values()) > MOST_HELD:
            largest = max(held, key=lambda peer: held[peer])
            self._end(largest)
            held[largest] = 0

    def surplus(self) -> set[str]:
        """Return the connections above the number of each address: first those that sent little, the oldest first."""
        of_host: dict[str, list[str]] = {}
        for peer in self._received:
            of_host.setdefault(peer.rpartition(":")[0], []).append(peer)
        found: set[str] = set()
        for peers in of_host.values():
            if (surplus := len(peers) - self._most) > 0:
                peers.sort(key=lambda peer: (self._received[peer] >= SILENT_BYTES, self._order[peer]))
                found.update(peers[:surplus])
        return found

    def _end(self, peer: str) -> None:
        for read in self._reads.of(peer):
            read.fail(RequestTooLarge(f"the message has more than the limit of {read.bound.most_bytes} bytes"))


def can_watch() -> bool:
    """Return True where the system shows connections."""
    return os.path.isdir(_DESCRIPTORS)


def peer_of(context: Any) -> str:
    """Return the peer of a call as `received_from` names it: HOST:PORT, without brackets."""
    host, _, port = unquote(context.peer()).partition(":")[2].rpartition(":")
    return f"{host.strip('[]')}:{port}"


def received_from(port: int) -> dict[str, int]:
    """Return the number of bytes that came over each connection to `port`, by its peer."""
    form, place = _RECEIVED
    found = {}
    for name in os.listdir(_DESCRIPTORS):
        with suppress(OSError, struct.error), _connection(int(name), port) as (peer, connection):
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, place + form.size)
            (found[peer],) = form.unpack_from(info, place)
    return found


def cut(port: int, peers: set[str]) -> None:
    """Close these connections to `port`."""
    for name in os.listdir(_DESCRIPTORS):
        with suppress(OSError), _connection(int(name), port) as (peer, connection):
            if peer in peers:
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def _connection(descriptor: int, port: int) -> Iterator[tuple[str, socket.socket]]:
    """Yield the connection of a descriptor. Raises OSError if it is none to `port`.

    gRPC may close the descriptor at any time, and another thread may get its number: a copy stays what it is.
    """
    copy = os.dup(descriptor)
    try:
        if not stat.S_ISSOCK(os.fstat(copy).st_mode):
            raise OSError("not a socket")
        connection = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with connection:
        ours, theirs = connection.getsockname(), connection.getpeername()
        if connection.family not in (socket.AF_INET, socket.AF_INET6) or ours[1] != port:
            raise OSError("not a connection to the port")
        yield f"{theirs[0].removeprefix('::ffff:')}:{theirs[1]}", connection
