"""Clients that do not read their streams, and then do."""

import asyncio

from studies.campaign import wire
from studies.campaign.finding import Finding
from studies.campaign.memory import MIB, growth
from studies.campaign.site import Site

READERS = 12
BUFFER = 4096
TOKENS = 3000
MOST_GROWTH = 64 * MIB
BODY = {"prompt": "Once", "min_new_tokens": TOKENS, "max_new_tokens": TOKENS, "logprobs": 3}


async def attack(site: Site, seconds: float) -> list[Finding]:
    """Open streams and read nothing for a while; then read all of them to their end."""
    connections = [await wire.connect(site, buffer=BUFFER) for _ in range(READERS)]
    async with growth(site, "gateway") as grown:
        for connection in connections:
            await connection.send(wire.post(site, "/generate_stream", BODY, connection="close"))
        await asyncio.sleep(seconds)
    answers = await asyncio.gather(*(_read(connection) for connection in connections))
    short = [answer for answer in answers if f'"completion_tokens":{TOKENS}'.encode() not in answer]
    figure = f"{READERS - len(short)} of {READERS} whole"
    figure += "".join(f"; one ends {answer[-60:]!r}" for answer in short[:1])
    return [
        Finding("a slow reader gets the whole answer", figure, not short),
        Finding("a slow reader costs little memory", grown.figure, grown.most < MOST_GROWTH),
    ]


async def _read(connection: wire.Connection) -> bytes:
    """Return an answer as far as it comes."""
    answer = bytearray()
    try:
        async with asyncio.timeout(45):
            while data := await connection.reader.read(65536):
                answer += data
    except (ConnectionError, TimeoutError):
        pass
    connection.close()
    return bytes(answer)
