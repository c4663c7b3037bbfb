"""Several coroutines or streams run together, or in turns: either all results, or the first error, no task left."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar, cast

from run_gpt.errors import QueueFull

T = TypeVar("T")


async def together(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return all results in order. The first error cancels the rest and is raised unchanged."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def merged(streams: Sequence[AsyncIterator[T]]) -> AsyncIterator[tuple[int, T]]:
    """Yield the items of all streams as they come, each with its stream's number. The first error ends all streams."""
    arrived: asyncio.Queue[tuple[int, Any, BaseException | None]] = asyncio.Queue()
    ended = object()

    async def read(i: int, stream: AsyncIterator[T]) -> None:
        try:
            async with aclosing(cast("Any", stream)):
                async for item in stream:
                    arrived.put_nowait((i, item, None))
        except Exception as error:  # raised again below, in the consumer's task
            arrived.put_nowait((i, None, error))
        else:
            arrived.put_nowait((i, ended, None))

    tasks = [asyncio.create_task(read(i, stream)) for i, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            i, item, error = await arrived.get()
            if error is not None:
                raise error
            if item is ended:
                running -= 1
            else:
                yield i, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def in_order(
    answer: Callable[[bytes], Awaitable[bytes]], messages: AsyncIterator[bytes], most: int, most_bytes: int
) -> AsyncIterator[bytes]:
    """Yield the answers to messages in order. No message is read while `most` messages or `most_bytes` are open."""
    tasks: asyncio.Queue[asyncio.Future[bytes] | None] = asyncio.Queue()
    started: dict[asyncio.Future[bytes], int] = {}
    room = asyncio.Event()

    async def read() -> None:
        async for message in messages:
            task = asyncio.ensure_future(answer(message))
            started[task] = len(message)
            tasks.put_nowait(task)
            while len(started) >= most or sum(started.values()) >= most_bytes:
                room.clear()
                await room.wait()
        tasks.put_nowait(None)

    reading = asyncio.ensure_future(read())
    try:
        while (task := await _next(tasks, reading)) is not None:
            yield await task
            del started[task]
            room.set()
    finally:
        reading.cancel()
        for task in started:
            task.cancel()
        await asyncio.gather(reading, *started, return_exceptions=True)


async def _next(tasks: asyncio.Queue[Any], reading: asyncio.Future[None]) -> Any:
    """Return the next of `tasks`. Raises the error of `reading`, if that failed."""
    getting: asyncio.Future[Any] = asyncio.ensure_future(tasks.get())
    try:
        if not reading.done():
            await asyncio.wait((getting, reading), return_when=asyncio.FIRST_COMPLETED)
        if reading.done() and not getting.done():
            reading.result()
        return await getting
    finally:
        getting.cancel()


class Turns:
    """Turns of the calls of one request: at most `most` have one, and fewer while the queue has no place for them."""

    def __init__(self, most: int):
        self._places = asyncio.Semaphore(most)
        self._taken = 0
        self._ended = asyncio.Event()

    @asynccontextmanager
    async def turn(self, begin: Callable[[], Awaitable[T]]) -> AsyncIterator[T]:
        """Begin a call and yield its result; the turn ends with the block.

        If the queue is full, the call begins again when another turn of this request has ended. Raises the errors of
        `begin`; QueueFull only if no other call has a turn.
        """
        async with self._places:
            begun = await self._begin(begin)
            try:
                yield begun
            finally:
                self._taken -= 1
                self._ended.set()
                self._ended = asyncio.Event()

    async def whole(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call in its turn. Raises its errors, as `turn` does."""
        async with self.turn(call) as result:
            return result

    async def _begin(self, begin: Callable[[], Awaitable[T]]) -> T:
        while True:
            ended = self._ended
            self._taken += 1
            try:
                return await begin()
            except BaseException as error:
                self._taken -= 1
                if not isinstance(error, QueueFull) or not self._taken:
                    raise
            await ended.wait()
