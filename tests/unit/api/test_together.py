"""Without these tests a request of many parts could be refused for ever by the queue that its own parts fill."""

import asyncio

import pytest

from run_gpt.api.together import Turns, together
from run_gpt.errors import InternalError, QueueFull


class Queue:
    """Queue with a few places; others may have some of them."""

    def __init__(self, places):
        self.places, self.most, self.running = places, 0, 0

    async def call(self, number):
        if self.running >= self.places:
            raise QueueFull("full")
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            return number
        finally:
            self.running -= 1


async def taken(queue, count, most):
    turns = Turns(most)
    async with asyncio.timeout(20):
        return await together([turns.whole(lambda i=i: queue.call(i)) for i in range(count)])


@pytest.mark.parametrize("most", [1, 4, 100])
@pytest.mark.parametrize("places", [1, 2, 5, 200])
async def test_parts_that_find_the_queue_full_wait_for_the_others(places, most):
    queue = Queue(places)
    assert await taken(queue, 100, most) == list(range(100))
    assert queue.most == min(places, most, 100)


async def test_a_queue_that_others_fill_refuses_the_request():
    with pytest.raises(QueueFull):
        await taken(Queue(0), 5, 3)


async def test_an_error_of_one_part_ends_all():
    queue, turns = Queue(2), Turns(10)

    async def fail():
        raise InternalError("broken")

    with pytest.raises(InternalError):
        await together([*(turns.whole(lambda i=i: queue.call(i)) for i in range(5)), turns.whole(fail)])
    assert not queue.running
