"""Bytes that are no requests, and forms of requests on which servers and proxies disagree, on both ports."""

import asyncio
import random
import time
from collections import Counter

import grpc

from studies.campaign import wire
from studies.campaign.finding import Finding
from studies.campaign.site import Site

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
NO_FAULT_OF_THE_SERVER = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED}
GET = b"GET /health HTTP/1.1\r\nhost: x\r\n"
POST = b"POST /tokenize HTTP/1.1\r\nhost: x\r\n"
FORMS = {
    "length and chunks": POST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "a negative length": POST + b"content-length: -1\r\n\r\n",
    "lines that end in LF": GET.replace(b"\r\n", b"\n") + b"\n",
    "HTTP/3.7": GET.replace(b"1.1", b"3.7") + b"\r\n",
    "a space before the colon": GET + b"x : y\r\n\r\n",
    "a folded header": GET + b"x: y\r\n z: 1\r\n\r\n",
    "a null in a header": GET + b"x: a\0b\r\n\r\n",
    "headers of 1 MB": GET + b"x: " + b"y" * 2**20 + b"\r\n\r\n",
    "a huge chunk": POST + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\n",
    "two transfer encodings": POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
}

REFUSALS = (400, 411, 413, 431, 501, 505)


async def attack(site: Site, seconds: float) -> list[Finding]:
    """Send each form, and random bytes until the time is up."""
    taken = [name for name, form in FORMS.items() if not await _is_refused(site, form)]
    forms = Finding(
        "forms on which proxies disagree are refused, and the connection is closed",
        f"{len(FORMS) - len(taken)} of {len(FORMS)} refused" + (f"; taken: {', '.join(taken)}" if taken else ""),
        not taken,
    )
    return [forms, await _random_bytes(site, seconds), await _random_messages(site, seconds)]


async def _is_refused(site: Site, form: bytes) -> bool:
    """Return True for a refusal, or none at all, and a closed connection. A 401 means that the form was taken."""
    connection = await wire.connect(site)
    try:
        await connection.send(form)
        status = await connection.status(5)
        return (status is None or status in REFUSALS) and await connection.closed(5)
    except TimeoutError:
        return False
    finally:
        connection.close()


async def _random_bytes(site: Site, seconds: float) -> Finding:
    """Send random bytes to both ports; with some, what begins a proper connection."""
    chance, deadline, sent, faults = random.Random(0), time.monotonic() + seconds / 2, 0, 0
    begins = (b"", GET, POST + b"content-length: 100\r\n\r\n", PREFACE)
    while sent < 8 or time.monotonic() < deadline:
        sent += 1
        for port in (site.http_port, site.grpc_port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(chance.choice(begins) + chance.randbytes(chance.randrange(1, 3000)))
            try:
                async with asyncio.timeout(0.05):
                    faults += b" 500 " in await reader.read(100)
            except (TimeoutError, ConnectionError):
                pass
            writer.transport.abort()
    return Finding("random bytes end one connection only", f"{2 * sent} connections, {faults} x 500", faults == 0)


async def _random_messages(site: Site, seconds: float) -> Finding:
    """Send random messages to the methods of the gRPC port."""
    chance, deadline, codes = random.Random(1), time.monotonic() + seconds / 2, Counter[str]()
    unary, streams, rounds = (wire.UNARY, HEALTH), (wire.LEGACY, wire.STREAM, REFLECTION), 0
    async with wire.channel(site) as channel:
        while rounds < 3 or time.monotonic() < deadline:
            rounds += 1
            message = b"\xff" + chance.randbytes(chance.randrange(1, 2000))
            calls = [channel.unary_unary(name)(message, metadata=wire.metadata(site), timeout=10) for name in unary]
            calls += [
                channel.stream_stream(name)(iter([message]), metadata=wire.metadata(site), timeout=10)
                for name in streams
            ]
            codes.update([(await wire.code_of(call)).name for call in calls])
    bad = {code: count for code, count in codes.items() if grpc.StatusCode[code] not in NO_FAULT_OF_THE_SERVER}
    figure = ", ".join(f"{count} x {code}" for code, count in sorted(codes.items()))
    return Finding("a malformed gRPC message is the client's fault", figure, not bad)
